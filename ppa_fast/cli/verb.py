"""The parser class and helpers that all verbs share."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any, NoReturn, Protocol, TypeVar

from ppa_fast import console
from ppa_fast.errors import input_error
from ppa_fast.settings import Options, add_arguments, from_arguments

O = TypeVar("O", bound=Options)  # noqa: E741
ParserT = TypeVar("ParserT", covariant=True)

FLAG = re.compile(r"--[a-zA-Z][\w-]*")
WRONG_CHOICE = re.compile(r"(?P<argument>.*): invalid choice: '(?P<value>.*)' \(choose from (?P<choices>.*)\)")


class Verbs(Protocol[ParserT]):
    """The type that ``add_subparsers`` returns."""

    def add_parser(self, name: str, **options: Any) -> ParserT: ...


class Parser(argparse.ArgumentParser):
    """A parser with ``--quiet`` and ``--debug`` whose errors are one line with a suggestion.

    The parsers of the verbs have the same class, so both flags may come before or after a verb.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self.has_verbs, self.words, self.hidden = False, list[str](), list[str]()
        super().__init__(*args, **options)
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        output = self.add_argument_group("output")
        # No default, because the default of a verb's parser would override a flag before the verb.
        for flag, text in (
            ("--quiet", "show only results and errors, without progress and log messages"),
            ("--debug", "show tracebacks and the messages of other libraries"),
        ):
            output.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=text)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As in argparse; also lets the shell complete files for arguments without a type."""
        if options.get("help") == argparse.SUPPRESS:
            self.hidden += names
        return _complete_files(super().add_argument(*names, **options))

    def add_mutually_exclusive_group(self, **options: Any) -> Any:
        group = super().add_mutually_exclusive_group(**options)
        add = group.add_argument
        group.add_argument = lambda *names, **each: _complete_files(add(*names, **each))  # type: ignore[method-assign]
        return group

    def add_subparsers(self, **options: Any) -> Any:
        self.has_verbs = True
        return super().add_subparsers(**options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse, but an unknown flag of a verb is an error here."""
        self.words = sys.argv[1:] if args is None else args
        found, rest = super().parse_known_args(args, namespace)
        if not self.has_verbs and self._unknown_flag(rest):
            self.error("")
        return found, rest

    def _unknown_flag(self, words: Sequence[str]) -> str:
        flags = [word.partition("=")[0] for word in words if word.startswith("--")]
        known = FLAG.findall(self.format_help()) + self.hidden
        unknown = [flag for flag in flags if not any(each.startswith(flag) for each in known)]
        return f"unknown flag {unknown[0]}{_suggestion(unknown[0], known)}" if unknown else ""

    def _print_message(self, message: str, file: Any = None) -> None:
        """As in argparse, but a full disk is an error, and a reader that has closed stdout ends the process."""
        try:
            print(message or "", end="", file=file or sys.stderr, flush=True)
        except OSError as error:
            console.discard_stdout()
            if reason := input_error(error):
                self.exit(2, f"error: {reason}\n")
            sys.exit(0)

    def error(self, message: str) -> NoReturn:
        """Exits with one line on stderr; an unknown flag is reported before a missing argument."""
        if found := WRONG_CHOICE.fullmatch(message):
            choices = found["choices"].replace("'", "").split(", ")
            nearest = _suggestion(found["value"], choices)
            message = f"{found['argument']}: found {found['value']!r}{nearest}, expected one of {', '.join(choices)}"
        if not self.has_verbs:
            message = self._unknown_flag(self.words) or message
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def _complete_files(action: argparse.Action) -> argparse.Action:
    if action.nargs != 0 and action.choices is None and action.type is None:
        action.complete = "file"  # type: ignore[attr-defined]  # shtab reads this attribute
    return action


def _suggestion(word: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def parse(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments of a command, including ``quiet`` and ``debug``."""
    parser.set_defaults(quiet=False, debug=False)
    return parser.parse_args(argv)


def add_verb(
    verbs: Verbs[argparse.ArgumentParser],
    name: str,
    text: str,
    examples: str,
    work: Callable[[argparse.Namespace], object],
    **options: Any,
) -> argparse.ArgumentParser:
    """Adds a verb and returns its parser.

    ``text`` is its help and description, ``examples`` has one example a line, and ``work`` runs the verb.
    """
    parser = _add_parser(verbs, name, text, examples, **options)
    parser.set_defaults(work=work)
    return parser


def add_verb_of(
    cls: type[O],
    verbs: Verbs[argparse.ArgumentParser],
    name: str,
    text: str,
    examples: str,
    work: Callable[[O], object],
) -> argparse.ArgumentParser:
    """Adds a verb whose flags are the options of ``cls``; ``work`` takes an instance of it."""
    parser = add_verb(verbs, name, text, examples, lambda arguments: work(from_arguments(cls, arguments)))
    add_arguments(parser, cls)
    return parser


def calling(function: str, message: str = "") -> Callable[[Options], None]:
    """Returns the work of a verb: import a function by its dotted name and call it with the options as arguments.

    It then prints ``message``, formatted with the options and ``result``.
    """

    def work(options: Options) -> None:
        module, _, name = function.rpartition(".")
        result = getattr(import_module(module), name)(**vars(options))
        if message:
            print(message.format(result=result, **vars(options)))

    return work


def add_family(
    verbs: Verbs[argparse.ArgumentParser], name: str, text: str, examples: str
) -> Verbs[argparse.ArgumentParser]:
    """Adds a verb with tasks; returns the object to which the tasks are added, as verbs are."""
    parser = _add_parser(verbs, name, text, examples)
    return parser.add_subparsers(title="tasks", metavar="TASK", required=True)


def _add_parser(
    verbs: Verbs[argparse.ArgumentParser], name: str, text: str, examples: str, **options: Any
) -> argparse.ArgumentParser:
    lines = examples.split("\n")
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog="\n  ".join(["example:" if len(lines) == 1 else "examples:", *lines]),
        **options,
    )
    return parser
