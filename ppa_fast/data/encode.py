"""Text to token ids: fast tokenizers of transformers, in batches, without special tokens and without surprises."""

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

# What tokenizers treat differently: case, accents (composed and not), scripts with and without spaces, marks, joiners,
# compatibility forms, white space, control characters, long words, literal special tokens.
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
    """The ids that assembly and masking need; ``vocab_size`` = ``len(tokenizer)``, special tokens included."""

    cls: int
    sep: int
    mask: int
    pad: int
    vocab_size: int


def load_tokenizer(name_or_dir: str) -> PreTrainedTokenizerBase:
    """Loads a fast tokenizer by its Hugging Face name or from a folder; code of the repository is never run.

    Raises:
        UserError: it cannot be loaded, is not a fast one, has no ``[CLS]``, ``[SEP]``, ``[MASK]`` or padding token, or
            no vocabulary.
    """
    from transformers import AutoTokenizer

    from ppa_fast.hub import load_pretrained  # here: a process that only encodes does without transformers

    tokenizer = load_pretrained(AutoTokenizer, name_or_dir)
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer {name_or_dir}: not a fast tokenizer (tokenizer.json), which the encoding needs")
    special_ids(tokenizer)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes an empty one where the files are missing
        raise UserError(f"tokenizer {name_or_dir}: has no vocabulary; expected its files there (tokenizer.json)")
    return tokenizer


def special_ids(tokenizer: PreTrainedTokenizerBase) -> SpecialIds:
    """The special ids of a tokenizer.

    Raises:
        UserError: one of the four is missing.
    """
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep", "mask", "pad")}
    missing = [f"{name}_token" for name, value in ids.items() if value is None]
    if missing:
        raise UserError(f"tokenizer {tokenizer.name_or_path}: has no {', '.join(missing)}, which TLM and padding need")
    return SpecialIds(**ids, vocab_size=len(tokenizer))


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """32 hex digits that are equal for tokenizers which encode alike, and for one saved and loaded again.

    XXH3-128 over the vocabulary, the special ids and the ids of :data:`PROBES`. Not over ``tokenizer.json``: its layout
    depends on the library's version, and a class may rebuild on loading what the file says (case, accents).
    """
    encoder = TextEncoder(tokenizer, max_tokens=max(map(len, PROBES)) * 4)
    content = [
        sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0])),
        [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id, tokenizer.pad_token_id],
        encoder(list(PROBES)),
    ]
    return xxhash.xxh3_128_hexdigest(json.dumps(content).encode())


class TextEncoder:
    """Encodes texts to ids without special tokens, truncated to ``max_tokens`` (126 leaves room for ``[CLS]`` and
    ``[SEP]`` in 128 positions).

    A special token that the text spells out (``[SEP]``, ``</s>``) stays ordinary text: no id of a special token comes
    out, except the unknown token's. Picklable; may be called from many threads at once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int = 126) -> None:
        self.max_tokens = max_tokens
        # A private copy: the caller's tokenizer keeps its own truncation, padding and treatment of special tokens.
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        special = special_ids(tokenizer)
        self._special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
        self._special |= {special.cls, special.sep, special.mask, special.pad}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        self._backend.encode_special_tokens = True  # which a pickled backend forgets

    def __call__(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, at most ``max_tokens`` of them."""
        return [ids[: self.max_tokens] for ids in self._encode(texts)]

    def arrays(self, texts: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]:
        """The same for n texts without a Python object for each token: the ids of all, one text after the other (int32
        [T]), how many each has (int32 [n]), and whether it was truncated (bool [n])."""
        rows = self._encode(texts)
        lengths = np.fromiter(map(len, rows), np.int32, len(rows))
        ids = np.fromiter(chain.from_iterable(rows), np.int32, lengths.sum())
        truncated = lengths > self.max_tokens
        if truncated.any():
            ids = ids[_places(lengths) < self.max_tokens]
            lengths = np.minimum(lengths, self.max_tokens)
        return ids, lengths, truncated

    def _encode(self, texts: list[str]) -> list[list[int]]:
        rows = [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        for index, ids in enumerate(rows):
            if not self._special.isdisjoint(ids):
                rows[index] = self._encode_in_parts(texts[index])
        return rows

    def _encode_in_parts(self, text: str) -> list[int]:
        """Encodes a text that holds a special token's literal, cut behind the literal's first character.

        ``encode_special_tokens`` keeps literals from being matched as added tokens, but a Unigram or BPE model still
        finds ``</s>`` as a piece of its vocabulary. No piece reaches over a cut. A special token of one character
        cannot be cut and is left out.
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        found = zip(encoding.ids, encoding.offsets, strict=True)
        cuts = sorted({start + 1 for id_, (start, end) in found if id_ in self._special and end - start > 1})
        if not cuts:
            return [id_ for id_ in encoding.ids if id_ not in self._special]
        parts = [text[left:right] for left, right in pairwise([0, *cuts, len(text)])]
        return [id_ for part in parts for id_ in self._encode_in_parts(part)]


def _places(lengths: NDArray[np.int32]) -> NDArray[np.int64]:
    """0, 1, … within each row of these lengths: int64 [T]."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
