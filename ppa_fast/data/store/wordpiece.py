"""Trains a WordPiece tokenizer like that of multilingual BERT from text files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer

from ppa_fast.data.reading.lines import count_lines, text_lines
from ppa_fast.errors import UserError
from ppa_fast.files import check_new_folder, new_folder
from ppa_fast.progress import Progress
from ppa_fast.settings import SPECIALS, TokenizerSettings, takes


def _lines(paths: Sequence[Path], purpose: str, total: int) -> Iterator[str]:
    with Progress(f"reading {purpose}", total, "lines") as bar:
        for path in paths:
            for _, text in text_lines(path):
                bar.update()
                if text:
                    yield text


def _train(lines: Iterator[str], vocab_size: int, first: list[str], lowercase: bool) -> dict[str, int]:
    """Trains the vocabulary, piece → id: ``first``, every character of the text, and the most frequent pieces."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=lowercase, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=first, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer.get_vocab()


@takes(TokenizerSettings)
def train_wordpiece(settings: TokenizerSettings) -> None:
    """Trains a WordPiece vocabulary on the lines of ``files`` (UTF-8, plain or compressed) and saves it in ``out``.

    The arguments are the fields of :class:`TokenizerSettings`.

    Text is normalized as by multilingual BERT (cased): control characters are dropped, CJK characters are separated,
    text is split at whitespace and punctuation, accents and case are kept. ``lowercase`` lower-cases and strips
    accents, as uncased BERT does. The first five ids are [PAD] [UNK] [CLS] [SEP] [MASK].
    ``AutoTokenizer.from_pretrained(out)`` loads exactly this tokenizer.

    Equal files in an equal order give an equal tokenizer. This requires reading the text twice: the library numbers
    the continuing pieces (``##e``) in the order of a hash table, and breaks ties between equally frequent merges by
    these numbers. The first pass finds the continuing pieces; the second starts from them in sorted order.

    Raises UserError, before any work, for a missing file or an ``out`` that is not a new or empty folder; later for a
    line that is not UTF-8 or over 64 KiB, for files without text, and for a ``vocab_size`` that is too small for the
    characters of the text.
    """
    paths = [Path(file) for file in settings.files]
    vocab_size, lowercase = settings.vocab_size, settings.lowercase
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    check_new_folder(settings.out)

    total = sum(map(count_lines, paths))
    characters = _train(_lines(paths, "the characters", total), len(SPECIALS), [*SPECIALS], lowercase)
    if len(characters) == len(SPECIALS):
        raise UserError(f"{', '.join(map(str, paths))}: found only blank lines, expected text")
    if len(characters) > vocab_size:
        raise UserError(
            f"vocab_size: found {vocab_size}, expected at least {len(characters)} for the characters of the text"
        )
    continuing = sorted(piece for piece in characters if len(piece) == len("##e") and piece.startswith("##"))
    vocab = _train(_lines(paths, "the words", total), vocab_size, [*SPECIALS, *continuing], lowercase)

    # Set all three normalizer options: on loading, a missing option takes the class's default, which lower-cases.
    tokenizer = BertTokenizer(
        vocab=vocab, do_lower_case=lowercase, strip_accents=lowercase, tokenize_chinese_chars=True
    )
    with new_folder(settings.out) as folder:
        tokenizer.save_pretrained(folder)
