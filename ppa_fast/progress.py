"""Progress of long work: a bar with rate and ETA on a terminal, plain lines in a log, nothing with ``--quiet``."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

from tqdm import tqdm

LINE_EVERY_SECONDS = 10.0
QUIET = "PPA_FAST_QUIET"  # sets --quiet for this process and its child processes


def quiet() -> bool:
    """Whether ``--quiet`` was given."""
    return os.environ.get(QUIET, "0") != "0"


class Progress:
    """Shows progress in ``unit``s up to ``total`` with the title ``what``.

    Use as a context manager and call :meth:`update`. On a terminal, it is a tqdm bar on stderr. Otherwise, it prints a
    line to stderr at most every ten seconds and one at the end; work shorter than ten seconds prints nothing.
    """

    def __init__(self, what: str, total: int | None, unit: str, initial: int = 0, enabled: bool = True) -> None:
        self.what, self.total, self.unit, self.initial = what, total, unit, initial
        self.done = initial
        self.enabled = enabled and not quiet()
        self._start = self._last = time.monotonic()
        self._note = ""
        self._bar = None
        if self.enabled and sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=what, unit=f" {unit}", initial=initial, dynamic_ncols=True)

    def update(self, n: int = 1, note: str = "") -> None:
        """Adds ``n`` finished units; ``note``, such as a loss, is shown after the rate."""
        self.done += n
        self._note = note or self._note
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(n)
        elif self.enabled and time.monotonic() - self._last >= LINE_EVERY_SECONDS:
            self._line()

    def _line(self) -> None:
        self._last = time.monotonic()
        elapsed = max(self._last - self._start, 1e-9)
        rate = (self.done - self.initial) / elapsed
        parts = [f"{self.what}: {self.done:,}"]
        if self.total:
            parts.append(f"of {self.total:,} {self.unit} ({self.done / self.total:.0%}), {rate:,.1f} {self.unit}/s")
            if rate > 0:
                parts.append(f", {(self.total - self.done) / rate:,.0f} s left")
        else:
            parts.append(f"{self.unit}, {rate:,.1f} {self.unit}/s")
        text = " ".join(parts).replace(" ,", ",")
        print(text + (f" | {self._note}" if self._note else ""), file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.enabled and kind is None and time.monotonic() - self._start >= LINE_EVERY_SECONDS:
            self._line()
