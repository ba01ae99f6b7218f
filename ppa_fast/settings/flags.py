"""Converts options to command-line flags and back."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any, get_origin

from ppa_fast.settings.options import O, Options, parts, read_yaml, types


def add_arguments(parser: argparse.ArgumentParser, cls: type[Options]) -> None:
    """Adds a flag for each option, and ``--settings FILE`` if a file may give the options."""
    if cls.FROM_FILE:
        parser.add_argument("--settings", metavar="FILE", help="YAML file of settings; flags override it")
    _add(cls, "", {"": parser})


def _add(cls: type[Options], title: str, groups: dict[str, Any]) -> None:
    """Adds the flags of a class to ``groups`` (title → argument group); an option without a group goes to ``title``."""
    kinds, nested = types(cls), parts(cls)
    for f in dataclasses.fields(cls):
        name = f.metadata["group"] or title
        if name not in groups:
            groups[name] = groups[""].add_argument_group(name, f.metadata["help"])
        if f.name in nested:
            _add(nested[f.name], name, groups)
        else:
            names, options = _argument(cls, f, kinds[f.name])
            groups[name].add_argument(*names, **options)


def _argument(cls: type[Options], f: dataclasses.Field[Any], kind: Any) -> tuple[list[str], dict[str, Any]]:
    """Returns the arguments of ``add_argument`` for an option; without a default, so that a file can give the value."""
    text, choices = f.metadata["help"].replace("%", "%%"), f.metadata["choices"]
    shown = str(f.default).lower() if kind is bool else f.default
    if f.default not in (MISSING, None, "", ()) and (kind is not bool or cls.FROM_FILE):
        text = f"{text} (default {shown})".strip()
    options: dict[str, Any] = {"default": None, "help": text}
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction if cls.FROM_FILE else "store_true"
    elif choices:
        options["choices"] = choices
    else:
        options["metavar"] = f.name.upper()
    if kind in (int, float):
        options["type"] = str  # the class converts and checks it
    elif get_origin(kind) is list or kind == tuple[str, ...]:
        options |= {"nargs": "+", "action": "append" if kind == list[list[str]] else "extend"}
    if f.metadata["positional"]:
        return [f.name], {**options, **f.metadata["flag"]}
    dashed = f"--{f.name.replace('_', '-')}"
    names = [dashed, f"--{f.name}"] if cls.UNDERSCORES and "_" in f.name else [dashed]
    required = f.default is MISSING and f.default_factory is MISSING
    return names, {**options, "dest": f.name, "required": required, **f.metadata["flag"]}


def given(cls: type[Options], arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the options that the command line gave."""
    values = {name: getattr(arguments, name, None) for name in types(cls)}
    return {name: value for name, value in values.items() if value is not None}


def from_arguments(cls: type[O], arguments: argparse.Namespace) -> O:
    """Builds options from the defaults, the YAML file and the given flags, in rising priority.

    Raises UserError for an invalid value.
    """
    values = read_yaml(cls, arguments.settings) if cls.FROM_FILE and arguments.settings else {}
    flags = given(cls, arguments)
    for names in cls.EXCLUSIVE:
        if not flags.keys().isdisjoint(names):
            values = {name: value for name, value in values.items() if name not in names}
    nested = {name: from_arguments(kind, arguments) for name, kind in parts(cls).items()}
    return cls(**{**values, **nested, **flags})


def to_flags(values: Mapping[str, Any]) -> list[str]:
    """Converts options to flags: ``--name=value``; ``--name A B`` for a list; ``--name`` or ``--no-name`` for a
    switch."""
    flags: list[str] = []
    for name, value in values.items():
        dashed = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{dashed}" if value else f"--no-{dashed}")
        elif isinstance(value, list):
            flags += [f"--{dashed}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{dashed}={value}")
    return flags
