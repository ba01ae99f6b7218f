"""The base class of the dataclasses of options. Each field declares its type, default, help and check once.

Flags (:mod:`ppa_fast.settings.flags`), YAML files, saved settings and function arguments are derived from the fields.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, NamedTuple, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

import yaml

from ppa_fast.errors import UserError
from ppa_fast.files import write_text

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
O = TypeVar("O", bound="Options")  # noqa: E741

REQUIRED: Any = MISSING
"""The default that marks a required option."""


class Check(NamedTuple):
    """A condition on the value of an option, and the text after "expected" in the error message."""

    holds: Callable[[Any], bool]
    expected: str


def at_least(bound: int) -> Check:
    """Returns the condition value ≥ ``bound``."""
    return Check(lambda value: value >= bound, f"at least {bound}")


POSITIVE = Check(lambda value: value > 0, "more than 0")
SHARE = Check(lambda value: 0 <= value <= 1, "0 to 1")
ABOVE_0 = Check(lambda value: 0 < value <= 1, "more than 0 and at most 1")
PROBABILITY = Check(lambda value: 0 < value < 1, "a probability between 0 and 1")
BELOW_1 = Check(lambda value: 0 <= value < 1, "0 or more and less than 1")
SOME = Check(bool, "at least one")


def option(
    default: Any,
    text: str,
    check: Check | None = None,
    /,
    *,
    choices: Sequence[str] = (),
    group: str = "",
    positional: bool = False,
    **flag: Any,
) -> Any:
    """Declares a field of an :class:`Options` class.

    Args:
        default: the default, or ``REQUIRED``.
        text: the help text.
        check: a condition on values other than None.
        choices: the allowed values of a text.
        group: the title of the flag's group in ``--help``. If the field's type is a class of options, the group has
            its flags and ``text`` describes the group.
        positional: the command line gives the value without a flag.
        flag: further arguments of argparse's ``add_argument``, such as ``metavar``.
    """
    metadata: dict[str, Any] = {"help": text, "check": check, "choices": choices, "group": group}
    metadata |= {"positional": positional, "flag": flag}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """Base class of the dataclasses of options. It converts each value to the type of its field.

    Raises UserError, naming the option, for an invalid value.
    """

    EXCLUSIVE: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Groups of options; at most one option of each group may be given."""
    ONE_OF: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Groups of options; exactly one option of each group must be given."""
    NEEDS: ClassVar[Mapping[str, str]] = {}
    """Option → another option that it requires."""
    FROM_FILE: ClassVar[bool] = False
    """A YAML file may give the options (``--settings FILE``); switches have the flags ``--name`` and ``--no-name``."""
    UNDERSCORES: ClassVar[bool] = False
    """Flags may be written with underscores, as those of DeepSpeed."""
    IGNORED: ClassVar[tuple[str, ...]] = ()
    """Names in a YAML file that are not options and are ignored."""

    def __post_init__(self) -> None:
        kinds = types(type(self))
        for f in dataclasses.fields(self):
            self._set(f.name, _checked(f, kinds[f.name], getattr(self, f.name)))
        given = {f.name: value for f in dataclasses.fields(self) if (value := getattr(self, f.name)) not in (None, [])}
        for names in (*self.EXCLUSIVE, *self.ONE_OF):
            several = [name for name in names if name in given]
            if len(several) > 1:
                values = " and ".join(str(given[name]) for name in several)
                raise UserError(f"{' and '.join(several)}: found both ({values}), expected one of them")
            if not several and names in self.ONE_OF:
                raise UserError(f"{' and '.join(names)}: found neither, expected one of them")
        for name, other in self.NEEDS.items():
            if name in given and other not in given:
                raise UserError(f"{name}: found {given[name]} without {other}, expected both")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


def types(cls: type[Options]) -> dict[str, Any]:
    """Returns the type of each option of a class: without None, and Path for ``str | Path``."""
    hints = get_type_hints(cls)
    return {f.name: _without_none(hints[f.name]) for f in dataclasses.fields(cls)}


def parts(cls: type[Options]) -> dict[str, type[Options]]:
    """Returns the fields of a class whose types are classes of options."""
    return {name: kind for name, kind in types(cls).items() if isinstance(kind, type) and issubclass(kind, Options)}


def _without_none(kind: Any) -> Any:
    return [k for k in get_args(kind) if k is not NoneType][-1] if get_origin(kind) is UnionType else kind


def _checked(f: dataclasses.Field[Any], kind: Any, value: Any) -> Any:
    if value is None and f.default is None:
        return None
    try:
        value = _converted(kind, value)
    except (TypeError, ValueError, OverflowError) as error:
        expected = _EXPECTED.get(kind) or (kind.__name__ if isinstance(kind, type) else str(kind))
        raise UserError(f"{f.name}: found {value!r}, expected {expected}") from error
    check, choices = f.metadata["check"], f.metadata["choices"]
    if choices and value not in choices:
        raise UserError(f"{f.name}: found {value!r}, expected one of {', '.join(choices)}")
    if check and not check.holds(value):
        raise UserError(f"{f.name}: found {value}, expected {check.expected}")
    return value


_EXPECTED: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list[str]: "a list of texts",
    tuple[str, str]: "two names, A,B",
}


def _converted(kind: Any, value: Any) -> Any:
    """Converts ``value`` to the option's type: flags are text, and YAML reads 3e-5 as text and 1 as an integer."""
    origin, of = get_origin(kind) or kind, get_args(kind)
    if kind in (int, float):
        number = math.nan if isinstance(value, bool) else float(value)
        if math.isfinite(number) and (kind is float or number == int(number)):
            return kind(value)
    elif origin is list and isinstance(value, (list, tuple)):
        return [_converted(_without_none(of[0]), each) for each in value]
    elif kind == tuple[str, ...]:
        return tuple(_converted(list[str], value))
    elif kind == tuple[str, str]:
        a, b = value.split(",") if isinstance(value, str) else value
        if a and b:
            return _converted(str, a), _converted(str, b)
    elif kind in (str, Path) and isinstance(value, (str, Path)):
        return kind(value)
    elif isinstance(kind, type) and isinstance(value, kind):
        return value
    raise TypeError


def takes(cls: Callable[P, S]) -> Callable[[Callable[[S], R]], Callable[P, R]]:
    """Decorator: a function ``f(options)`` takes the arguments of the class instead, as ``f(model="m", …)``."""

    def decorate(function: Callable[[S], R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return function(cls(*args, **kwargs))

        call.__signature__ = inspect.signature(cls)  # type: ignore[attr-defined]
        return call

    return decorate


def read_yaml(cls: type[Options], path: str | Path) -> dict[str, Any]:
    """Reads options from a YAML file as a mapping; raises UserError for an invalid file and for unknown names."""
    try:
        with open(path, encoding="utf-8") as f:
            values = yaml.safe_load(f) or {}
    except OSError as error:
        raise UserError(f"settings: {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: invalid UTF-8 or an invalid date
        raise UserError(f"settings: {path}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"settings: {path}: found {type(values).__name__}, expected a mapping of names to values")
    values = {name: value for name, value in values.items() if name not in cls.IGNORED}
    known = types(cls)
    if unknown := sorted(set(map(str, values)) - set(known)):
        raise UserError(f"settings: {path}: found unknown names {', '.join(unknown)}, expected {', '.join(known)}")
    return values


def write_yaml(options: Options, path: str | Path, **others: Mapping[str, Any]) -> None:
    """Writes the options and ``others``, whose names are in ``IGNORED``, to a YAML file."""
    values = {**dataclasses.asdict(options), **others}
    write_text(Path(path), yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
