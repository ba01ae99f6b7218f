"""Hugging Face data sets, by name or from a folder: ``hf:NAME[,CONFIG][:SPLIT]``. Code of a data set is never run."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pyarrow as pa

from ppa_fast.data.formats.parquet import BATCH_ROWS, column_names, items
from ppa_fast.data.source import Item, PairSource
from ppa_fast.errors import UserError, shortened

PREFIX = "hf:"
SPLIT = "train"
SAVED = ("state.json", "dataset_dict.json")  # what save_to_disk leaves, of one split or of several


def check_installed(spec: str) -> None:
    """Raises UserError unless the ``datasets`` library is there, which only data sets need."""
    if importlib.util.find_spec("datasets") is None:
        raise UserError(f"{spec}: needs the datasets library: pip install 'ppa-fast[datasets]'")


def read(source: PairSource) -> Iterator[Item]:
    """One item for each row: of a folder that ``save_to_disk`` wrote, else of a data set streamed from hub or folder.

    Raises:
        UserError: there is no such data set, configuration, split or column.
    """
    tables = _tables(str(source.paths[0]))
    for first in tables:
        yield from items(source, chain([first], tables), column_names(source, first.schema))


def _tables(spec: str) -> Iterator[pa.Table]:
    import datasets

    name, colon, split = spec.removeprefix(PREFIX).partition(":")
    name, _, config = name.partition(",")
    split = split if colon else SPLIT
    try:
        if any(Path(name, file).is_file() for file in SAVED):
            saved = datasets.load_from_disk(name)
            if isinstance(saved, datasets.DatasetDict) and split not in saved:
                raise UserError(f"{spec}: no split {split}, found {', '.join(saved)}")
            rows = saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        else:
            rows = datasets.load_dataset(name, config or None, split=split, streaming=True)
        yield from rows.with_format("arrow").iter(BATCH_ROWS)
    except UserError:
        raise
    except Exception as error:  # whatever the library's many readers and file systems raise
        reason = " ".join(str(error).split()) or repr(error)  # in one line
        raise UserError(f"{spec}: cannot be read: {shortened(reason)}") from error
