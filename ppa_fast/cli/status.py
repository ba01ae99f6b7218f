"""The exit status of a command, and the line on stderr that reports an error."""

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

from ppa_fast import console, progress
from ppa_fast.errors import input_error, is_out_of_memory, sigterm_as_exit

FAILED, BAD_INPUT = 1, 2
INTERRUPTED = 128 + signal.SIGINT
EXIT_STATUSES = """exit status:
  0    success; also training that saved a checkpoint and stopped on a signal
  1    failure: an internal error, out of memory, or a lost rank
  2    invalid input or command line; the last line on stderr says what to change
  130  interrupted (Ctrl-C)
  143  terminated (SIGTERM)"""


def run(work: Callable[[argparse.Namespace], object], arguments: argparse.Namespace) -> int:
    """Runs ``work(arguments)`` and returns the exit status; an error becomes one line on stderr.

    With ``--debug``, the traceback precedes the line. Otherwise, the traceback of an internal error goes to a file that
    the line names. Only rank 0 reports invalid input. SIGTERM raises SystemExit, so that cleanup code runs.
    """
    with _output(arguments.quiet, arguments.debug), sigterm_as_exit():
        try:
            work(arguments)
            sys.stdout.flush()  # detects a closed pipe here rather than at interpreter exit
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, BrokenPipeError) and _stdout_closed():
                console.discard_stdout()
                return 0
            status = _report_error(error)
            try:
                sys.stdout.flush()
            except OSError:
                console.discard_stdout()
            return status
    return 0


def _stdout_closed() -> bool:
    """Whether the reader of a pipe on stdout, such as ``head``, has closed it."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _report_error(error: BaseException) -> int:
    """Prints the error and its remedy in one line; returns the exit status."""
    rank = os.environ.get("RANK", "0")
    if console.debug():
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        message, status = "interrupted", INTERRUPTED
    elif bad_input := input_error(error):
        if _first_rank_reports():
            return BAD_INPUT
        message, status = f"error: {bad_input}", BAD_INPUT
    elif is_out_of_memory(error):
        what = str(error).strip().split("\n")[0]
        message = (
            f"error: out of memory ({what}); reduce train_micro_batch_size_per_gpu in the DeepSpeed file, "
            "--micro-batch or --batch"
        )
        status = FAILED
    else:
        where = f" in rank {rank}" if rank != "0" else ""
        what = f"{type(error).__name__}: {error}".strip().split("\n")[0]
        message, status = f"internal error{where}: {what}; {_traceback_at(error)}", FAILED
    print(message, file=sys.stderr, flush=True)
    return status


def _first_rank_reports() -> bool:
    """Whether another rank reports an error of the input: this is one of several ranks, and not the first."""
    rank, ranks = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return rank.isdecimal() and ranks.isdecimal() and 0 < int(rank) < int(ranks)


def _traceback_at(error: BaseException) -> str:
    if console.debug():
        return "the traceback is above"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="ppa-fast-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            traceback.print_exception(error, file=file)
    except OSError:  # such as a full disk
        return "run again with --debug to see the traceback"
    return f"see the traceback in {file.name}, or run again with --debug"


@contextmanager
def _output(quiet: bool, debug: bool) -> Iterator[None]:
    """Sets ``--quiet`` and ``--debug`` for this process and its child processes."""
    wanted = {progress.QUIET: quiet, console.DEBUG: debug}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update({name: "1" for name, on in wanted.items() if on})
    try:
        with console.silenced(), console.shown():
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
