from collections.abc import Callable
from pathlib import Path

import pytest

from ppa_fast.data.reading.corpus import Drop, Item, Pair, ReadOptions, parse_pairs

Found = tuple[str, str] | tuple[str, str, float] | str
Read = Callable[..., list[Found]]


def found(item: Item) -> Found:
    """Returns the texts of a pair, with its score if it has one; ``drop: reason`` or ``reject: reason``."""
    if isinstance(item, Pair):
        return (item.a, item.b) if item.score is None else (item.a, item.b, item.score)
    return f"drop: {item.reason}" if isinstance(item, Drop) else f"reject: {item.reason}"


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Writes a file and reads it as a source; checks that items are numbered in sequence."""

    def read(name: str, content: str | bytes, pair: str = "en-de", **options: object) -> list[Found]:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        source = parse_pairs(f"{pair}:{path}", ReadOptions(**options))
        items = list(source.read())
        for number, item in enumerate(items, 1):
            if not isinstance(item, Pair):
                assert (item.path, item.record if isinstance(item, Drop) else item.line) == (path, number)
        assert source.bytes_read == source.bytes_total == path.stat().st_size
        return [found(item) for item in items]

    return read
