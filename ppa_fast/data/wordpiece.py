"""Trains a WordPiece tokenizer of multilingual BERT's kind from text files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer

from ppa_fast.data.lines import count_lines, text_lines
from ppa_fast.errors import UserError
from ppa_fast.files import check_new_folder
from ppa_fast.progress import Progress

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def _lines(paths: Sequence[Path], purpose: str, total: int) -> Iterator[str]:
    with Progress(f"reading {purpose}", total, "lines") as bar:
        for path in paths:
            for _, text in text_lines(path):
                bar.update()
                if text:
                    yield text


def _train(lines: Iterator[str], vocab_size: int, first: list[str], lowercase: bool) -> dict[str, int]:
    """The vocabulary, piece → id: ``first``, every character of the text, and the most frequent pieces."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=lowercase, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=first, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer.get_vocab()


def train_wordpiece(
    files: Sequence[str | Path], out: str | Path, vocab_size: int = 8000, lowercase: bool = False
) -> None:
    """Trains a WordPiece vocabulary on the lines of ``files`` (UTF-8, ``.gz`` read as it is) and saves it in ``out``.

    Text is treated as by multilingual BERT (cased): control characters dropped, CJK characters split, split at
    whitespace and punctuation, accents and case kept; ``lowercase`` lowers case and strips accents, as uncased BERT
    does. The first five ids are [PAD] [UNK] [CLS] [SEP] [MASK]. ``AutoTokenizer.from_pretrained(out)`` gives exactly
    this tokenizer.

    Equal text in an equal order of files gives an equal tokenizer. The text is read twice for it: the library numbers
    the pieces that continue a word (``##e``) as a hash table gives them, and breaks ties between equally frequent
    merges by those numbers. The first reading finds these pieces, the second starts from them, sorted.

    Raises UserError, before any work, for an absent file and an ``out`` that is not an empty or new folder; later for
    a line that is not UTF-8 or over 64 KiB, no text at all, and a ``vocab_size`` that does not hold
    every character of the text.
    """
    paths, folder = [Path(file) for file in files], Path(out)
    if not paths:
        raise UserError("files: found none, expected at least one text file")
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    check_new_folder(folder)
    if vocab_size <= len(SPECIALS):
        raise UserError(f"vocab_size: found {vocab_size}, expected more than the {len(SPECIALS)} special tokens")

    total = sum(map(count_lines, paths))
    characters = _train(_lines(paths, "the characters", total), len(SPECIALS), SPECIALS, lowercase)
    if len(characters) == len(SPECIALS):
        raise UserError(f"{', '.join(map(str, paths))}: no text in there, only blank lines")
    if len(characters) > vocab_size:
        raise UserError(f"vocab_size: found {vocab_size}, but the characters of the text alone need {len(characters)}")
    continuing = sorted(piece for piece in characters if len(piece) == len("##e") and piece.startswith("##"))
    vocab = _train(_lines(paths, "the words", total), vocab_size, SPECIALS + continuing, lowercase)

    # All three normalizer options are given: what is left out comes back from disk with the class's defaults, and
    # those lower the case.
    BertTokenizer(
        vocab=vocab, do_lower_case=lowercase, strip_accents=lowercase, tokenize_chinese_chars=True
    ).save_pretrained(folder)
