"""Processes that apply one function to many items, the results in order.

Not :mod:`multiprocessing`'s: a pool of it runs the user's script anew in each process, which then needs a ``__main__``
guard. Nor threads: what Python does around the tokenizer holds the interpreter's lock, 25 of 107 µs for a pair
of 80 tokens, so that four of them would take turns at it all the time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from ppa_fast.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
_CODE = "import sys; sys.path[:] = {path!r}; from ppa_fast.data.workers import serve; serve({descriptor})"


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers(Generic[Item, Result]):
    """Applies ``function``, which is pickled once, in at most ``processes`` processes of one thread each.

    A process starts when it is needed and ends with the context, or when this process ends, however that is.
    """

    def __init__(self, function: Callable[[Item], Result], processes: int) -> None:
        self._function, self._processes = function, processes
        self._workers: list[Worker] = []
        self._idle: list[Worker] = []
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="worker")  # each waits for one process

    def map(self, items: Iterable[Item]) -> Iterator[Result]:
        """The results in the order of ``items``, of which at most two for each process are read ahead.

        A single item is not worth a process: the function is called here.

        Raises:
            UserError: a process was killed.
            RuntimeError: a process ended because the function raised; stderr has what.
        """
        items = iter(items)
        first = list(islice(items, 2))
        if len(first) < 2:
            yield from map(self._function, first)
            return
        waiting: deque[Future[Result]] = deque()
        for item in chain(first, items):
            waiting.append(self._threads.submit(self._apply, item))
            if len(waiting) > 2 * self._processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _apply(self, item: Item) -> Result:
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = Worker(self._function)
            self._workers.append(worker)
        result = worker(item)
        self._idle.append(worker)
        return result

    def __enter__(self) -> Workers[Item, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        for wait in (False, True):  # the second time for what a thread started meanwhile
            self._threads.shutdown(wait=wait, cancel_futures=True)
            for worker in self._workers:
                worker.kill()


class Worker:
    """A process that applies ``function``, which is pickled once, to one item after the other, as a call does."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._connection, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CODE.format(path=sys.path, descriptor=theirs.fileno())],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **ONE_THREAD},
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self._connection.send(function)

    def __call__(self, item: Any) -> Any:
        try:
            self._connection.send(item)
            return self._connection.recv()
        except (EOFError, OSError):
            status = self._process.wait()
        if status < 0:
            raise UserError(f"a worker process was killed by signal {-status} (out of memory? try fewer --workers)")
        raise RuntimeError(f"a worker process ended with status {status}")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def serve(descriptor: int) -> None:
    """A worker's life: takes the function, then one item after the other, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the process that reads the results decides
    connection = Connection(descriptor)
    received = _received(connection)
    function: Any = next(received, None)
    for item in received:
        result = function(item)
        with suppress(ConnectionError):
            connection.send(result)


def _received(connection: Connection) -> Iterator[Any]:
    with suppress(EOFError, ConnectionError):  # the process at the other end ended, or has no use for this one
        while True:
            yield connection.recv()
