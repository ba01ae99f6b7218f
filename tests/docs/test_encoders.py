"""The table of docs/encoders.md equals the registry; ``python -m tests.docs.test_encoders`` prints it."""

from __future__ import annotations

from ppa_fast.model.families import FAMILIES, OTHER
from tests.docs.pages import ROOT


def table() -> str:
    lines = ["| family | model type | models | forward | TLM | notes |", "|---|---|---|---|---|---|"]
    for kind, family in [*((f"`{kind}`", family) for kind, family in FAMILIES.items()), ("", OTHER)]:
        forward = "packed" if family.packed else "padded"
        lines.append(f"| {family.name} | {kind} | {family.models} | {forward} | yes | {family.notes} |")
    return "\n".join(lines)


def test_the_page_has_the_table_of_the_registry() -> None:
    assert table() in (ROOT / "docs" / "encoders.md").read_text(encoding="utf-8")


if __name__ == "__main__":
    print(table())
