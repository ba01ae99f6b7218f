"""Trains a WordPiece tokenizer of multilingual BERT's kind from text files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer

from ppa_fast.data.lines import count_lines, text_lines
from ppa_fast.errors import UserError
from ppa_fast.files import check_new_folder
from ppa_fast.progress import Progress, note

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def _lines(paths: Sequence[Path]) -> Iterator[str]:
    with Progress("reading", sum(map(count_lines, paths)), "lines") as bar:
        for path in paths:
            for _, text in text_lines(path):
                bar.update()
                if text:
                    yield text
    note(f"{bar.done:,} lines read, choosing the vocabulary")


def train_wordpiece(
    files: Sequence[str | Path], out: str | Path, vocab_size: int = 8000, lowercase: bool = False
) -> None:
    """Trains a WordPiece vocabulary on the lines of ``files`` (UTF-8, ``.gz`` read as it is) and saves it in ``out``.

    Text is treated as by multilingual BERT (cased): control characters dropped, CJK characters split, split at
    whitespace and punctuation, accents and case kept; ``lowercase`` lowers case and strips accents, as uncased BERT
    does. The first five ids are [PAD] [UNK] [CLS] [SEP] [MASK]. ``AutoTokenizer.from_pretrained(out)`` gives exactly
    this tokenizer.

    Not deterministic: the trainer breaks ties between equally frequent pieces in an order that changes from run to
    run, so two runs on equal text may differ in rare pieces. Keep the folder, not the command.

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

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=lowercase, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=list(SPECIALS), show_progress=False)
    tokenizer.train_from_iterator(_lines(paths), trainer)
    size = tokenizer.get_vocab_size()
    if size == len(SPECIALS):
        raise UserError(f"{', '.join(map(str, paths))}: no text in there, only blank lines")
    if size > vocab_size:
        raise UserError(f"vocab_size: found {vocab_size}, but the characters of the text alone need {size}")

    # All three normalizer options are given: what is left out comes back from disk with the class's defaults, and
    # those lower the case.
    BertTokenizer(
        vocab=tokenizer.get_vocab(), do_lower_case=lowercase, strip_accents=lowercase, tokenize_chinese_chars=True
    ).save_pretrained(folder)
