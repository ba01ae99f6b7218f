"""Writes docs/settings.md from the dataclasses in ppa_fast/settings: python docs/scripts/settings_page.py"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import MISSING
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, get_origin

import ppa_fast.settings
from ppa_fast.settings.options import Options, parts, types

PAGE = Path(__file__).parents[1] / "settings.md"
HEAD = """# Settings

This page lists the settings of each command, with their defaults.

- The setting `queue_size` is the flag `--queue-size` on the command line and the argument `queue_size` in Python.
  `ppa-fast VERB --help` prints the same descriptions.
- `train` also reads its settings from the YAML file that `--settings` names. Flags take precedence over the file. Each
  run saves its effective settings in `RUN/settings.yaml`.
- A switch of `train` has two flags, such as `--tlm` and `--no-tlm`.
- "(paper)" marks a value that the paper states. The other defaults are ours.
- Batch sizes, precision, ZeRO and gradient clipping belong to the [DeepSpeed file](../ds_configs/README.md).

A script generates this page. To change it, edit the descriptions in `ppa_fast/settings/` and run
`python docs/scripts/settings_page.py`.
"""


def subclasses(cls: type[Options]) -> Iterator[type[Options]]:
    """All classes below ``cls``."""
    for each in cls.__subclasses__():
        yield from (each, *subclasses(each))


def commands() -> dict[str, type[Options]]:
    """The class of each command, by the name that its docstring begins with: "Options of ``prepare``"."""
    for module in iter_modules(ppa_fast.settings.__path__, "ppa_fast.settings."):
        import_module(module.name)
    named = ((re.match(r"(?:Options|Settings) of ``([^`]+)``", cls.__doc__ or ""), cls) for cls in subclasses(Options))
    return {name[1]: cls for name, cls in named if name}


def rows(cls: type[Options]) -> Iterator[str]:
    """A table row for each setting of a class and of the classes in it."""
    kinds, nested = types(cls), parts(cls)
    for f in dataclasses.fields(cls):
        if f.name in nested:
            yield from rows(nested[f.name])
        else:
            name = f.metadata["flag"].get("metavar", f.name.upper())
            name = name if f.metadata["positional"] else f"--{f.name.replace('_', '-')}"
            yield f"| `{name}` | {_values(f, kinds[f.name])} | {_default(f)} | {_cell(f.metadata['help'])} |"


def _values(f: dataclasses.Field[Any], kind: Any) -> str:
    """What values a setting takes."""
    if f.metadata["choices"]:
        return " ".join(f"`{choice}`" for choice in f.metadata["choices"])
    names = {bool: "switch", int: "integer", float: "number", tuple[str, str]: "two names, `A,B`"}
    text = names.get(kind, "one or more" if get_origin(kind) in (list, tuple) else "text")
    return _cell(f"{text}, {f.metadata['check'].expected}" if f.metadata["check"] else text)


def _default(f: dataclasses.Field[Any]) -> str:
    if f.default is MISSING and f.default_factory is MISSING:
        return "required" if f.metadata["flag"].get("required", True) else ""
    if f.default in (MISSING, None, "", ()):
        return ""
    return f"`{str(f.default).lower() if isinstance(f.default, bool) else f.default}`"


def _cell(text: str) -> str:
    return re.sub(r"(?<!\w)(--[a-z][\w-]*|\w+\^\w+)", r"`\1`", text.replace("|", "\\|").replace("*", "\\*"))


def page() -> str:
    """The text of docs/settings.md."""
    text = HEAD
    for name, cls in sorted(commands().items()):
        text += f"\n## {name}\n\n| setting | values | default | meaning |\n|---|---|---|---|\n"
        text += "\n".join(rows(cls)) + "\n"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
