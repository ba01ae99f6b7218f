"""A step's figures, on their way to the host while the device works on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ppa_fast.model.objective import Weights


class LateSums:
    """Named values summed over the ranks in fp64, in one collective. Making it waits for nothing.

    Args:
        values: tensors of one element on ``device``, and numbers.
    """

    def __init__(self, values: Mapping[str, float | Tensor], device: torch.device) -> None:
        self._names = list(values)
        # A number becomes the argument of a fill: a tensor made from it would be a copy, which waits.
        doubles = [
            v.detach().double() if isinstance(v, Tensor) else torch.full((), v, dtype=torch.float64, device=device)
            for v in values.values()
        ]
        total = torch.stack(doubles)
        dist.all_reduce(total)
        self._host = total.to("cpu", non_blocking=True)
        self._there = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

    def read(self) -> dict[str, float]:
        """The sums; waits until they are there, which a step later they are."""
        if self._there is not None:
            self._there.synchronize()
        return dict(zip(self._names, self._host.tolist(), strict=True))


class Figures:
    """What a global step says of itself, equal on every rank.

    Args:
        sums: over the ranks: ``tlm``, ``moco``, ``top1`` (as in ``objective.Losses``); ``stop`` (ranks with a
            signal).
        weights: of the objectives.
        masked, pairs: of the whole step.
        known: what the host knows already; part of what ``read`` returns.
    """

    def __init__(self, sums: LateSums, weights: Weights, masked: int, pairs: int, **known: Any) -> None:
        self._sums, self._weights, self._masked, self._pairs, self._known = sums, weights, masked, pairs, known

    def read(self) -> dict[str, Any]:
        """``loss``, ``loss_tlm``, ``loss_moco`` (means over the step's masked rows and pairs), ``queue_top1`` (share of
        pairs whose positive beats all negatives), ``stop`` (a rank got a signal) and ``known``. Waits as ``LateSums``.
        """
        sums = self._sums.read()
        tlm, moco = sums["tlm"] / max(self._masked, 1), sums["moco"] / self._pairs
        return {
            "loss": self._weights.tlm * tlm + self._weights.moco * moco,
            "loss_tlm": tlm,
            "loss_moco": moco,
            "queue_top1": sums["top1"] / self._pairs,
            "stop": sums["stop"] > 0,
            **self._known,
        }


class Rates:
    """Pairs and encoder tokens per second since the last reading, and the share of ``peak`` operations/s that the model
    used (None: not known); pauses do not count."""

    def __init__(self, peak: float | None = None) -> None:
        self._peak = peak
        self._start()

    def _start(self) -> None:
        self._begin, self._pairs, self._tokens = time.monotonic(), 0, 0
        self._flop = 0.0

    def count(self, pairs: int, tokens: int, flop: float) -> None:
        self._pairs += pairs
        self._tokens += tokens
        self._flop += flop

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What runs inside takes no time."""
        begin = time.monotonic()
        yield
        self._begin += time.monotonic() - begin

    def read(self) -> dict[str, float | None]:
        """``pairs_per_s``, ``tokens_per_s`` and ``mfu`` (a share or None); counting starts anew."""
        seconds = max(time.monotonic() - self._begin, 1e-9)
        rates: dict[str, float | None] = {
            "pairs_per_s": self._pairs / seconds,
            "tokens_per_s": self._tokens / seconds,
            "mfu": self._flop / seconds / self._peak if self._peak else None,
        }
        self._start()
        return rates
