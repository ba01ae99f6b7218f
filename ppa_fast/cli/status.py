"""How a command ends: its exit status, and one line on stderr for what went wrong."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ppa_fast import noise, progress
from ppa_fast.errors import input_error, sigterm_as_exit

FAILED, BAD_INPUT = 1, 2
INTERRUPTED = 128 + signal.SIGINT
EXIT_STATUSES = """exit status:
  0    done; also training that a signal stopped, once it has saved
  1    failed: an internal error, no memory left, another rank lost
  2    bad input or a wrong command line; the last line on stderr says what to change
  130  interrupted (Ctrl-C)
  143  terminated (SIGTERM)"""


def run(work: Callable[[argparse.Namespace], object], arguments: argparse.Namespace) -> int:
    """Runs ``work(arguments)`` and returns the exit status; an error becomes one line on stderr.

    ``--debug`` puts its traceback before it; else that of an internal error is kept in a file that the line names.
    Of the ranks of a run, the first one speaks for all where the input is bad. SIGTERM raises SystemExit, so that what
    is under way can be undone.
    """
    with _output(arguments.quiet, arguments.debug), sigterm_as_exit():
        try:
            work(arguments)
            sys.stdout.flush()  # so that a reader who is gone is noticed here, not when the interpreter ends
        except (Exception, KeyboardInterrupt) as error:
            if not isinstance(error, BrokenPipeError) or not _reader_is_gone():
                return _say(error)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _reader_is_gone() -> bool:
    """Whether nobody reads our output any more: head, say, has enough."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _say(error: BaseException) -> int:
    """Says in one line what went wrong and what to do; returns the exit status."""
    rank = int(os.environ.get("RANK", "0"))
    if noise.debug():
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        message, status = "interrupted", INTERRUPTED
    elif bad_input := input_error(error):
        if rank != 0:
            return BAD_INPUT
        message, status = f"error: {bad_input}", BAD_INPUT
    elif _no_memory(error):
        what = str(error).strip().split("\n")[0]
        message, status = f"error: no memory left ({what}): smaller batches need less, see --help", FAILED
    else:
        where = f" in rank {rank}" if rank else ""
        what = f"{type(error).__name__}: {error}".strip().split("\n")[0]
        message, status = f"internal error{where}: {what}; {_traceback_at(error)}", FAILED
    print(message, file=sys.stderr, flush=True)
    return status


def _no_memory(error: BaseException) -> bool:
    # By name, because torch may not be loaded; its CPU allocator raises a plain RuntimeError.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def _traceback_at(error: BaseException) -> str:
    if noise.debug():
        return "its traceback is above"
    with tempfile.NamedTemporaryFile("w", prefix="ppa-fast-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    return f"its traceback is in {file.name}, or run again with --debug"


@contextmanager
def _output(quiet: bool, debug: bool) -> Iterator[None]:
    """``--quiet`` and ``--debug`` for this process and those that it starts."""
    wanted = {progress.QUIET: quiet, noise.DEBUG: debug}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update({name: "1" for name, on in wanted.items() if on})
    try:
        with noise.silenced():
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
