"""Tokenizes text to ids, without special tokens, by the fast tokenizers of transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ppa_fast.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Text that tokenizers treat differently: case, accents (composed and decomposed), scripts with and without spaces,
# marks, joiners, compatibility forms, white space, control characters, long words, literal special tokens.
PROBES = (
    "The Quick BROWN fox, 3.14 times; it's e-mailed to x@example.org (2021/06/06)!",
    "Ünïcödé ÀÉÎÕÜ Ñandú Straße İstanbul Iğdır œuvre Łódź čšž Việt Nam đường phố",
    "U\u0308ni\u0308co\u0308de\u0301 Vie\u0323\u0302t cafe\u0301",
    "Привет, Мир! Ёлка и ёжик. Їжак. Γειά σου Κόσμε, ΟΔΥΣΣΕΥΣ",
    "مرحبا بالعالم، كَيْفَ حَالُكَ؟ یہ ایک جملہ ہے۔ שָׁלוֹם עולם",
    "नमस्ते दुनिया, यह एक वाक्य है। ক্ষমা தமிழ் ภาษาไทยไม่มีช่องว่าง ქართული",
    "汉字簡體與繁體。日本語のテキスト、カタカナ 한국어 문장입니다 ㎏ ｆｕｌｌｗｉｄｔｈ ﬁ ①",
    "😀👩‍👩‍👧 🇩🇪 ❤️ € ½ … “quotes” „unten‟ «guillemets» – —",
    "two  spaces\ta tab\u00a0no-break\u200bzero\u00adsoft\ufeffmark\u0007bell",
    "pneumono" * 20,
    "[CLS] [SEP] [MASK] [PAD] [UNK] <s> </s> <mask> <pad> <unk> a</s>b",
)


@dataclass(frozen=True)
class SpecialIds:
    """The special ids for assembly and masking; ``vocab_size`` is ``len(tokenizer)``, including special tokens."""

    cls: int
    sep: int
    mask: int
    pad: int
    vocab_size: int


def load_tokenizer(name_or_dir: str) -> PreTrainedTokenizerBase:
    """Loads a fast tokenizer by its Hugging Face name or from a folder, without remote code.

    Raises:
        UserError: the tokenizer cannot be loaded, is not fast, or lacks one of the special ids or a vocabulary.
    """
    from transformers import AutoTokenizer

    from ppa_fast.hub import load_pretrained  # imported here because worker processes do not need transformers

    tokenizer = load_pretrained(AutoTokenizer, name_or_dir)
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer {name_or_dir}: not a fast tokenizer; expected one with tokenizer.json")
    special_ids(tokenizer)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers returns an empty tokenizer if files are missing
        raise UserError(f"tokenizer {name_or_dir}: has no vocabulary; expected its files (tokenizer.json)")
    return tokenizer


def special_ids(tokenizer: PreTrainedTokenizerBase) -> SpecialIds:
    """Returns the special ids of a tokenizer; bos and eos replace ``[CLS]`` and ``[SEP]`` if it has none.

    Raises:
        UserError: one of the four special tokens is missing.
    """
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep", "mask", "pad")}
    for name, other in (("cls", tokenizer.bos_token_id), ("sep", tokenizer.eos_token_id)):
        ids[name] = other if ids[name] is None else ids[name]
    missing = [f"{name}_token" for name, value in ids.items() if value is None]
    if missing:
        raise UserError(f"tokenizer {tokenizer.name_or_path}: has no {', '.join(missing)}, which TLM and padding need")
    return SpecialIds(**ids, vocab_size=len(tokenizer))


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns 32 hex digits that are equal for tokenizers with equal encodings, also after saving and loading.

    XXH3-128 over the vocabulary, the special ids and the ids of :data:`PROBES`. ``tokenizer.json`` is not hashed: its
    layout depends on the library's version, and a class may override its options (case, accents) on loading.
    """
    encoder = TextTokenizer(tokenizer, max_tokens=max(map(len, PROBES)) * 4)
    content = [
        sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0])),
        [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id, tokenizer.pad_token_id],
        encoder(list(PROBES)),
    ]
    return xxhash.xxh3_128_hexdigest(json.dumps(content).encode())


class TextTokenizer:
    """Tokenizes texts to ids without special tokens, truncated to ``max_tokens`` (126 leaves room for ``[CLS]`` and
    ``[SEP]`` in 128 positions).

    The literal of a special token in the text (``[SEP]``, ``</s>``) is tokenized as ordinary text: the result has no
    special id except that of the unknown token. Picklable and thread-safe.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int = 126) -> None:
        self.max_tokens = max_tokens
        # A copy, so that the caller's tokenizer keeps its own truncation, padding and treatment of special tokens.
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        special = special_ids(tokenizer)
        self._special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
        self._special |= {special.cls, special.sep, special.mask, special.pad}
        self._unknown = tokenizer.unk_token_id

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        self._backend.encode_special_tokens = True  # pickling the backend loses this option

    def __call__(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of each text, at most ``max_tokens``."""
        return [ids[: self.max_tokens] for ids in self._encode(texts)]

    def arrays(self, texts: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]:
        """Tokenizes n texts without a Python object for each token.

        Returns the concatenated ids (int32 [T]), the length of each text in tokens (int32 [n]), and whether each text
        was truncated (bool [n]).
        """
        rows = self._encode(texts)
        lengths = np.fromiter(map(len, rows), np.int32, len(rows))
        ids = np.fromiter(chain.from_iterable(rows), np.int32, lengths.sum())
        truncated = lengths > self.max_tokens
        if truncated.any():
            ids = ids[_positions(lengths) < self.max_tokens]
            lengths = np.minimum(lengths, self.max_tokens)
        return ids, lengths, truncated

    def unknown_shares(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.float64]:
        """Returns the share of unknown tokens in each text of :meth:`arrays`, 0 to 1: float64 [n]."""
        unknown = ids == self._unknown
        if self._unknown is None or not unknown.any():
            return np.zeros(len(lengths))
        texts = np.repeat(np.arange(len(lengths)), lengths)
        return np.bincount(texts, unknown, len(lengths)) / np.maximum(lengths, 1)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        rows = [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        for index, ids in enumerate(rows):
            if not self._special.isdisjoint(ids):
                rows[index] = self._encode_in_parts(texts[index])
        return rows

    def _encode_in_parts(self, text: str) -> list[int]:
        """Tokenizes a text with a special token's literal; splits the text after the literal's first character.

        ``encode_special_tokens`` prevents matching literals as added tokens, but a Unigram or BPE model still finds
        ``</s>`` as a piece of its vocabulary. No piece spans a split. A special token of one character cannot be split
        and is omitted.
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        found = zip(encoding.ids, encoding.offsets, strict=True)
        cuts = sorted({start + 1 for id_, (start, end) in found if id_ in self._special and end - start > 1})
        if not cuts:
            return [id_ for id_ in encoding.ids if id_ not in self._special]
        parts = [text[left:right] for left, right in pairwise([0, *cuts, len(text)])]
        return [id_ for part in parts for id_ in self._encode_in_parts(part)]


def _positions(lengths: NDArray[np.int32]) -> NDArray[np.int64]:
    """Returns int64 [T]: 0, 1, … within each row of the given lengths."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
