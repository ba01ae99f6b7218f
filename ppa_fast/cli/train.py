"""Training's own entry, ``ppa_fast/train.py``: argument parsing only."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from ppa_fast import settings
from ppa_fast.cli.status import guarded


def main_train(argv: Sequence[str] | None = None) -> int:
    """Entry of ``ppa_fast/train.py``, run in every rank by the deepspeed launcher; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="deepspeed ppa_fast/train.py",
        description="Align an encoder with a token store. Every setting is a flag and a key of the YAML file.",
        allow_abbrev=False,
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher adds it
    settings.add_arguments(parser)
    arguments = parser.parse_args(argv)
    rank = int(os.environ.get("RANK", "0"))

    def work() -> None:
        chosen = settings.from_arguments(arguments)
        from ppa_fast.training.loop import train

        # Until the loop saves on it: killed outright, DeepSpeed's first compilation leaves a lock behind, for which
        # every later start waits.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        train(chosen)

    return guarded(work, rank)
