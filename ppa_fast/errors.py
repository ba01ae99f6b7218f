"""The one exception that means "your input, not our code"; and SIGTERM as another one."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input: a file, an argument or a setting that cannot be used as given.

    The message is one sentence (or a few lines) that names the file, line or argument, says what was found and what was
    expected. The command line prints it without a traceback and exits with status 2.
    """


def shortened(text: str, characters: int = 300) -> str:
    """What was found, for a message: of a long text, which may be a whole line of binary data, the beginning."""
    return text if len(text) <= characters else text[:characters] + "…"


def input_error(error: BaseException) -> str | None:
    """What ``error`` says of the input: a UserError's message, or a file and why it cannot be used. None: our fault."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.filename:  # no permission, a full disk
        return f"{error.filename}: {error.strerror}"
    return None


@contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """SIGTERM raises SystemExit (status 143), so that what is under way can be undone or ended."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
