"""ppa-fast: align multilingual encoders with parallel text.

The four functions below are what the command line calls; they are imported on first use, so that ``import ppa_fast``
stays light and never fails for a part that is not needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["evaluate", "export", "prepare", "train"]

if TYPE_CHECKING:
    from ppa_fast.data.prepare import prepare
    from ppa_fast.evaluation import evaluate
    from ppa_fast.training.export import export
    from ppa_fast.training.loop import train

_HOME = {
    "prepare": "ppa_fast.data.prepare",
    "train": "ppa_fast.training.loop",
    "export": "ppa_fast.training.export",
    "evaluate": "ppa_fast.evaluation",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'ppa_fast' has no attribute {name!r}")
