"""Prefetches a rank's micro-batches to its device, one step ahead."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext

import torch

from ppa_fast.data.loading.batching import Batches, PairBatch
from ppa_fast.ops.assemble import AssembledBatch

MicroBatch = tuple[PairBatch, AssembledBatch]


class Prefetcher:
    """While a step runs, a thread packs the next one, copies it to the device and assembles its sequences there.

    On CUDA the copy and the assembly run on a separate stream, so that neither the host nor the step's stream waits for
    them; host buffers are pinned (``Batches``). The cost is memory for the token ids of one more step.

    Args:
        batches: the batches of this rank.
        assemble: assembles the sequences of a micro-batch on the device.
    """

    def __init__(
        self, batches: Batches, assemble: Callable[[PairBatch], AssembledBatch], device: torch.device | str
    ) -> None:
        self._batches, self._assemble, self._device = batches, assemble, torch.device(device)
        self._side = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        # A new thread starts on GPU 0. On leaving the side stream it would return there, and every rank would create a
        # CUDA context on GPU 0.
        here = (torch.cuda.set_device, (self._side.device,)) if self._side is not None else ()
        self._worker = ThreadPoolExecutor(1, "feed", *here)
        self._ahead: tuple[int, Future[tuple[list[MicroBatch], torch.cuda.Event | None]]] | None = None
        self._held: list[MicroBatch] = []

    def __call__(self, step: int) -> list[MicroBatch]:
        """The micro-batches of global step ``step``. A step that does not follow the previous one is made on demand.

        Raises the errors of packing (``data.loading.packing``) in the call for that step.
        """
        if self._ahead is None or self._ahead[0] != step:
            self._submit(step)
        assert self._ahead is not None
        ready, made = self._ahead[1].result()
        if made is not None:
            torch.cuda.current_stream(self._device).wait_event(made)
        # The previous step's memory may be reused from here on: all kernels that read it have been launched, and the
        # side stream waits for them.
        self._held = ready
        self._submit(step + 1)
        return ready

    def _submit(self, step: int) -> None:
        launched = torch.cuda.current_stream(self._device).record_event() if self._side is not None else None
        self._ahead = (step, self._worker.submit(self._load_step, step, launched))

    def _load_step(
        self, step: int, launched: torch.cuda.Event | None
    ) -> tuple[list[MicroBatch], torch.cuda.Event | None]:
        packed = self._batches(step)
        with torch.cuda.stream(self._side) if self._side is not None else nullcontext():
            if self._side is not None and launched is not None:
                self._side.wait_event(launched)
            there = [batch.to(self._device) for batch in packed]
            made = [(batch, self._assemble(batch)) for batch in there]
            return made, self._side.record_event() if self._side is not None else None

    def close(self) -> None:
        """Stops the thread."""
        self._worker.shutdown(cancel_futures=True)
