"""Step metrics, copied to the host while the device continues."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ppa_fast.data.loading.batching import StepTotals
from ppa_fast.model.objective import Weights
from ppa_fast.settings import Settings
from ppa_fast.training import mfu

CONTRAST_METRICS = {"moco": ("loss_moco", "queue_top1"), "symmetric": ("loss_symmetric", "in_batch_top1")}
"""The names in metrics.jsonl of the loss and the top-1 of each sentence-level objective."""


class DeferredAllReduce:
    """Named values summed over the ranks in fp64, in one collective. The constructor does not synchronize.

    Args:
        values: one-element tensors on ``device``, or numbers.
    """

    def __init__(self, values: Mapping[str, float | Tensor], device: torch.device) -> None:
        self._names = list(values)
        # torch.full fills on the device; torch.tensor would copy from the host and synchronize.
        doubles = [
            v.detach().double() if isinstance(v, Tensor) else torch.full((), v, dtype=torch.float64, device=device)
            for v in values.values()
        ]
        total = torch.stack(doubles)
        dist.all_reduce(total)
        self._host = total.to("cpu", non_blocking=True)
        self._there = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

    def read(self) -> dict[str, float]:
        """The sums. Waits for the copy, which has finished by the next step."""
        if self._there is not None:
            self._there.synchronize()
        return dict(zip(self._names, self._host.tolist(), strict=True))


class StepMetrics:
    """The metrics of a global step, equal on every rank.

    Args:
        sums: sums over the ranks: ``tlm``, ``contrast``, ``top1`` (as in ``objective.Losses``), and ``stop``, the
            number of ranks that received a stop signal.
        weights: the weights of the objectives.
        contrast: the sentence-level objective, which names its metrics.
        totals: the counts of the step.
        applied: whether the step changed the weights.
        known: further metrics, already on the host, which :meth:`read` returns too.
    """

    def __init__(
        self,
        sums: DeferredAllReduce,
        weights: Weights,
        totals: StepTotals,
        applied: bool,
        contrast: str = "moco",
        **known: Any,
    ) -> None:
        self._sums, self._weights, self.totals, self.applied = sums, weights, totals, applied
        self._names = CONTRAST_METRICS[contrast]
        self.known = known

    def read(self) -> dict[str, Any]:
        """Returns ``loss``, ``loss_tlm`` (the mean over masked positions), the contrast's loss (the mean over pairs)
        and top-1 (the share of pairs whose positive is more similar than all negatives) under the names of
        ``CONTRAST_METRICS``, ``stop`` (a rank received a stop signal), ``applied`` and ``known``.

        Waits like ``DeferredAllReduce.read``.
        """
        sums, pairs = self._sums.read(), sum(self.totals.pairs)
        tlm, contrast = sums["tlm"] / max(self.totals.masked, 1), sums["contrast"] / pairs
        loss, top1 = self._names
        return {
            "loss": self._weights.tlm * tlm + self._weights.contrast * contrast,
            "loss_tlm": tlm,
            loss: contrast,
            top1: sums["top1"] / pairs,
            "stop": sums["stop"] > 0,
            "applied": self.applied,
            **self.known,
        }


class Throughput:
    """Pairs and encoder tokens per second since the last :meth:`read`, and MFU, the share of ``peak`` operations/s that
    the model used. Pauses are excluded. ``config``: the encoder's configuration; ``peak``: None if unknown."""

    def __init__(self, settings: Settings, config: Any, peak: float | None = None) -> None:
        self._settings, self._config, self._peak = settings, config, peak
        self._restart()

    def _restart(self) -> None:
        self._begin, self._pairs, self._tokens = time.monotonic(), 0, 0
        self._flop = 0.0

    def count(self, totals: StepTotals) -> None:
        """Adds a global step."""
        settings, pairs = self._settings, sum(totals.pairs)
        # Special tokens: three per TLM sequence; two per sentence, so four per pair.
        tlm_tokens = settings.tlm * (totals.text_tokens + 3 * pairs)
        contrast_tokens = settings.moco * (totals.text_tokens + 4 * pairs)
        self._pairs += pairs
        self._tokens += tlm_tokens + contrast_tokens
        self._flop += mfu.step_flop(self._config, settings, tlm_tokens, contrast_tokens, totals.masked)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time inside the block."""
        begin = time.monotonic()
        yield
        self._begin += time.monotonic() - begin

    def read(self) -> dict[str, float | None]:
        """``pairs_per_s``, ``tokens_per_s`` and ``mfu`` (a share or None); resets the counts."""
        seconds = max(time.monotonic() - self._begin, 1e-9)
        rates: dict[str, float | None] = {
            "pairs_per_s": self._pairs / seconds,
            "tokens_per_s": self._tokens / seconds,
            "mfu": self._flop / seconds / self._peak if self._peak else None,
        }
        self._restart()
        return rates
