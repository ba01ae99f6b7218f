"""JSON lines: one object a line, with the texts in its own fields or, as in OPUS data sets, in ``translation``."""

from __future__ import annotations

import json
from collections.abc import Iterator

from ppa_fast.data.reading.lines import decoded_lines
from ppa_fast.data.reading.source import Item, PairSource, Reject

NO_JSON = "not a JSON object"


def read(source: PairSource) -> Iterator[Item]:
    """Yields one item for each line."""
    path, (a, b), score = source.paths[0], source.columns, source.options.score_column
    for record, (text, reason) in enumerate(decoded_lines(path, source.meter), 1):
        try:
            fields = json.loads(text) if not reason else None
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            yield Reject(path, record, reason or NO_JSON)
            continue
        nested = fields.get("translation")
        texts = nested if isinstance(nested, dict) and not fields.keys() >= {a, b} else fields
        if missing := [name for name in (a, b) if name not in texts]:
            yield Reject(path, record, f"no field {missing[0]}; see --columns")
        else:
            yield source.item(record, texts[a], texts[b], None if score is None else fields.get(score))
