"""What the verbs' parsers share."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from ppa_fast.data.corpus import ReadOptions

Verbs = argparse._SubParsersAction  # of ArgumentParser; argparse has no public name for it
PAIRS_HELP = (
    "en-de:FILE.en,FILE.de (line-parallel), en-fr:FILE (.tsv .csv .jsonl .tmx .xliff .po .parquet; .gz .bz2 .xz .zst "
    "too) or en-de:hf:NAME[,CONFIG][:SPLIT] (data set); repeatable"
)


class Parser(argparse.ArgumentParser):
    """A parser with ``--quiet`` and ``--debug``, whose errors are one line: what was found, and what is nearest to it.

    The parsers of its verbs are of this class too, so that both flags stand before or after a verb.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        output = self.add_argument_group("output")
        # No default: that of a verb's parser would win over a flag before the verb.
        for flag, text in (
            ("--quiet", "results and errors only: no progress, no notes"),
            ("--debug", "an error's traceback too, and what other libraries say"),
        ):
            output.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=text)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but a flag that this verb lacks is told before an argument that is missing."""
        if self._subparsers is None:
            for word in sys.argv[1:] if args is None else args:
                flag = word.partition("=")[0]
                if flag.startswith("--") and not any(known.startswith(flag) for known in self._option_string_actions):
                    self.error(f"unknown flag {flag}{_nearest(flag, self._option_string_actions)}")
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            expected = f"expected one of {', '.join(choices)}"
            raise argparse.ArgumentError(action, f"found {value!r}{_nearest(str(value), choices)}, {expected}")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def _nearest(word: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def parse(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of a command, with ``quiet`` and ``debug`` among them."""
    parser.set_defaults(quiet=False, debug=False)
    return parser.parse_args(argv)


def add_verb(
    verbs: Verbs[argparse.ArgumentParser],
    name: str,
    text: str,
    examples: str,
    work: Callable[[argparse.Namespace], None],
    **options: Any,
) -> argparse.ArgumentParser:
    """The parser of a new verb: ``text`` is its help and description; ``examples``, one a line; ``work`` to run."""
    parser = _add_parser(verbs, name, text, examples, **options)
    parser.set_defaults(work=work)
    return parser


def add_family(
    verbs: Verbs[argparse.ArgumentParser], name: str, text: str, examples: str
) -> Verbs[argparse.ArgumentParser]:
    """The place for the tasks of a new verb, each to be added as a verb of its own."""
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


def add_read_options(parser: argparse.ArgumentParser) -> None:
    """The flags of how the files of ``--pairs`` are read; :func:`read_options` gives them."""
    parser.add_argument(
        "--format", metavar="NAME", help="tsv, csv, jsonl, tmx, xliff, po or parquet (default: by the extension)"
    )
    parser.add_argument(
        "--columns",
        metavar="A,B",
        help="columns or fields of the two sides (default: their codes); numbers for a table without header",
    )
    parser.add_argument(
        "--score-column", metavar="NAME", help="column, field or TMX property with the score of the alignment"
    )


def read_options(arguments: argparse.Namespace) -> ReadOptions:
    """What :func:`add_read_options` added, as given; raises UserError unless ``--columns`` are two."""
    from ppa_fast.data.corpus import ReadOptions
    from ppa_fast.errors import UserError

    columns = None if arguments.columns is None else arguments.columns.split(",")
    if columns is not None and (len(columns) != 2 or not all(columns)):
        raise UserError(f"--columns {arguments.columns}: expected two names, A,B")
    return ReadOptions(arguments.format, columns and (columns[0], columns[1]), arguments.score_column)
