"""Hugging Face data sets, by name or from a folder: ``hf:NAME[,CONFIG][:SPLIT]``. Their code is never executed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pyarrow as pa

from ppa_fast.data.reading.formats.parquet import BATCH_ROWS, column_names, items
from ppa_fast.data.reading.source import Item, PairSource
from ppa_fast.errors import UserError, shortened

PREFIX = "hf:"
SPLIT = "train"
SAVED = ("state.json", "dataset_dict.json")  # save_to_disk writes the first for one split, the second for several


def check_installed(spec: str) -> None:
    """Raises UserError unless the optional ``datasets`` library is installed."""
    if importlib.util.find_spec("datasets") is None:
        raise UserError(f"{spec}: needs the datasets library: pip install 'ppa-fast[datasets]'")


def read(source: PairSource) -> Iterator[Item]:
    """Yields one item for each row of a folder that ``save_to_disk`` wrote, or of a data set that is streamed.

    Raises:
        UserError: the data set, configuration, split or column does not exist.
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
    except Exception as error:  # the library's readers and file systems raise many types
        reason = " ".join(str(error).split()) or repr(error)
        raise UserError(f"{spec}: cannot be read: {shortened(reason)}") from error
