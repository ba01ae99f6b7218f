"""The exception for invalid input, the reasons of failed writes, and SIGTERM as an exception."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Invalid input: a file, an argument or a setting that cannot be used as given.

    The message names the file, line or argument, what was found and what was expected. The command line prints it
    without a traceback and exits with status 2.
    """


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Raises UserError if an import in the block fails for a missing package; names the extra that installs the
    package."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install 'ppa-fast[{extra}]'") from error


def shortened(text: str, characters: int = 300) -> str:
    """Truncates a value for a message, because it may be a long line of binary data."""
    return text if len(text) <= characters else text[:characters] + "…"


def input_error(error: BaseException) -> str | None:
    """Returns the message of an error that the input causes (a UserError, or an unusable file), else None."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.filename:  # such as no permission
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, Exception) and (reason := full_disk(error)):
        return f"the output cannot be written: {reason}"
    return None


_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_IN_LIBRARIES = (*(f"(os error {number})" for number in _FULL), "PytorchStreamWriter failed", "inline_container")


def full_disk(error: Exception) -> str | None:
    """Returns advice if a full disk caused the error, also inside torch or a library in Rust; else None."""
    full = error.errno in _FULL if isinstance(error, OSError) and error.errno else False
    if full or any(text in str(error) for text in _FULL_IN_LIBRARIES):
        return "no space is left on the device; free some space and run the same command again"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the host or on a device."""
    # Check the type by name, because torch may not be imported. Its CPU allocator raises a plain RuntimeError.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


@contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """Makes SIGTERM raise SystemExit (status 143), so that cleanup code runs."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
