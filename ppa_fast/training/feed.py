"""The micro-batches of a rank on its device, a step ahead of their use."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext

import torch

from ppa_fast.data.batch import Batches, PairBatch
from ppa_fast.ops.assemble import Assembled

MicroBatch = tuple[PairBatch, Assembled]


class Feed:
    """While a step runs, a thread packs the next one, copies it to the device and assembles its streams there.

    On CUDA the copy and the assembling are on a stream of their own, so that neither the host nor the step's stream
    waits for them; buffers are pinned (``Batches``). Of memory it costs one more step of token ids.

    Args:
        batches: of this rank.
        assemble: the streams of a micro-batch that is on the device.
    """

    def __init__(
        self, batches: Batches, assemble: Callable[[PairBatch], Assembled], device: torch.device | str
    ) -> None:
        self._batches, self._assemble, self._device = batches, assemble, torch.device(device)
        self._side = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        # A new thread is on GPU 0: going back there from the side stream, every rank would open a CUDA context on it.
        here = (torch.cuda.set_device, (self._side.device,)) if self._side is not None else ()
        self._worker = ThreadPoolExecutor(1, "feed", *here)
        self._ahead: tuple[int, Future[tuple[list[MicroBatch], torch.cuda.Event | None]]] | None = None
        self._held: list[MicroBatch] = []

    def __call__(self, step: int) -> list[MicroBatch]:
        """The micro-batches of global step ``step``; a step other than the one after the last is made on the spot.

        Raises what packing raises (``data.pack``), when the step is asked for.
        """
        if self._ahead is None or self._ahead[0] != step:
            self._submit(step)
        assert self._ahead is not None
        ready, made = self._ahead[1].result()
        if made is not None:
            torch.cuda.current_stream(self._device).wait_event(made)
        # Only now may the memory of the step before be used again: all that reads it is launched, and the side stream
        # waits for what is launched up to here.
        self._held = ready
        self._submit(step + 1)
        return ready

    def _submit(self, step: int) -> None:
        launched = torch.cuda.current_stream(self._device).record_event() if self._side is not None else None
        self._ahead = (step, self._worker.submit(self._make, step, launched))

    def _make(self, step: int, launched: torch.cuda.Event | None) -> tuple[list[MicroBatch], torch.cuda.Event | None]:
        packed = self._batches(step)
        with torch.cuda.stream(self._side) if self._side is not None else nullcontext():
            if self._side is not None and launched is not None:
                self._side.wait_event(launched)
            there = [batch.to(self._device) for batch in packed]
            made = [(batch, self._assemble(batch)) for batch in there]
            return made, self._side.record_event() if self._side is not None else None

    def close(self) -> None:
        """Ends the thread."""
        self._worker.shutdown(cancel_futures=True)
