"""Progress of long work: a bar with rate and ETA on a terminal, plain lines in a log; notes. ``--quiet`` stops both."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

from tqdm import tqdm

LINE_EVERY_SECONDS = 10.0
QUIET = "PPA_FAST_QUIET"  # as --quiet, in this process and in those that it starts


def quiet() -> bool:
    """Whether ``--quiet`` was given."""
    return os.environ.get(QUIET, "0") != "0"


def note(message: str) -> None:
    """Says on stderr what is worth knowing, but is neither a result nor an error."""
    if quiet():
        return
    if sys.stderr.isatty():
        tqdm.write(message, file=sys.stderr)  # above a bar that is there, not into it
    else:
        print(message, file=sys.stderr, flush=True)


class Progress:
    """Counts ``unit``s towards ``total`` under the title ``what``; use as a context manager and call :meth:`update`.

    On a terminal this is a tqdm bar on stderr. Elsewhere a plain line is printed to stderr at most every ten seconds,
    and once at the end: short work stays quiet, long work shows in a log that it is alive and when it will end.
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
        """Adds ``n`` units done; ``note`` is shown behind the rate (a loss, say)."""
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
