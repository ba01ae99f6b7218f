"""Logging of commands to stderr: the log of ppa_fast, and only the errors of other libraries.

With ``--debug`` other libraries log everything. The Python API does not configure logging, except in ``hub.quiet`` and
``builds_quietly``.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from tqdm import tqdm

from ppa_fast.progress import quiet

DEBUG = "PPA_FAST_DEBUG"  # sets --debug for this process and its child processes

# The libraries read these variables on import. Values that the user has set take precedence.
ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",  # hides advice on generation, tokenizers and weights that are loaded elsewhere
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # hides the C++ stacks of c10d when a peer is lost, which the ranks also report
}
LOGGERS = ("DeepSpeed",)  # it logs "Setting accelerator to CPU" and all settings


def debug() -> bool:
    """Whether ``--debug`` was given."""
    return os.environ.get(DEBUG, "0") != "0"


def show_any_character() -> None:
    """Escapes the characters that the encoding of stdout or stderr does not have, such as ``→`` in Latin-1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard_stdout() -> None:
    """Discards what is written to stdout, so that the interpreter does not fail to write it again when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Handler(logging.Handler):
    """Writes to stderr; on a terminal, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        message = self.format(record)
        if record.levelno >= logging.WARNING:
            message = f"{record.levelname.lower()}: {message}"
        if sys.stderr.isatty():
            tqdm.write(message, file=sys.stderr)
        else:
            print(message, file=sys.stderr, flush=True)


@contextmanager
def shown() -> Iterator[None]:
    """Writes the log of ppa_fast to stderr inside the context, unless ``--quiet`` was given."""
    log, handler = logging.getLogger("ppa_fast"), logging.NullHandler() if quiet() else _Handler()
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


@contextmanager
def silenced() -> Iterator[None]:
    """Limits other libraries to errors inside the context: no advice, no warnings, no progress bars."""
    if debug():
        yield
        return
    added = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(added)
    for name in LOGGERS:  # filters, because the import of the library resets the level
        logging.getLogger(name).addFilter(_is_error)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(_is_error)
        for name in added:
            os.environ.pop(name, None)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextmanager
def builds_quietly() -> Iterator[None]:
    """Discards stdout inside the context, because DeepSpeed prints the operations that it has built."""
    if debug():
        yield
        return
    with redirect_stdout(io.StringIO()):
        yield
