"""What other libraries say of themselves, and how the commands keep it from drowning what they say.

Under ``--debug`` nothing is silenced. Calls from Python silence nothing but what ``hub.quiet`` and ``builds_quietly``
name: there the loggers are the caller's.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

DEBUG = "PPA_FAST_DEBUG"  # as --debug, in this process and in those that it starts

# Read when the libraries are imported; what the user has set stays.
ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",  # advice on generation, on tokenizers, on weights that are loaded elsewhere
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # c10d's stacks of C++ frames where a peer is gone; the ranks say it themselves
}
LOGGERS = ("DeepSpeed",)  # "Setting accelerator to CPU", and each setting once more


def debug() -> bool:
    """Whether ``--debug`` was given."""
    return os.environ.get(DEBUG, "0") != "0"


@contextmanager
def silenced() -> Iterator[None]:
    """Inside, other libraries say errors alone: no advice, no warnings, no bars of theirs."""
    if debug():
        yield
        return
    added = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(added)
    for name in LOGGERS:  # a level would be set anew when the library is imported
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
    """Inside, nothing reaches stdout: DeepSpeed prints which of its operations it has built."""
    if debug():
        yield
        return
    with redirect_stdout(io.StringIO()):
        yield
