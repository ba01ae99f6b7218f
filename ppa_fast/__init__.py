"""ppa-fast: align multilingual encoders with parallel text.

The functions below are what the command line calls; they are imported on first use, so that ``import ppa_fast``
stays light and never fails for a part that is not needed.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ppa_fast.version import __version__

__all__ = ["__version__", "align", "evaluate", "export", "prepare", "train"]

# torch then asks for huge pages for large tensors on a CPU, which saves most of the page faults of a step. torch reads
# this with its first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

if TYPE_CHECKING:
    from ppa_fast.data.store.prepare import prepare
    from ppa_fast.tasks import evaluate
    from ppa_fast.training.export import export
    from ppa_fast.training.trainer import train
    from ppa_fast.workflow import align

_HOME = {
    "align": "ppa_fast.workflow",
    "prepare": "ppa_fast.data.store.prepare",
    "train": "ppa_fast.training.trainer",
    "export": "ppa_fast.training.export",
    "evaluate": "ppa_fast.tasks",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'ppa_fast' has no attribute {name!r}")
