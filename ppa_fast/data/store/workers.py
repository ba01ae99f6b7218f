"""Applies a function to many items in worker processes and returns the results in order.

A :mod:`multiprocessing` pool would run the user's script again in each process, which would require a ``__main__``
guard. Threads would contend for the interpreter's lock: the Python code around the tokenizer holds it for 25 of 107 µs
for a pair of 80 tokens, so four threads would saturate it.
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
_CODE = "import sys; sys.path[:] = {path!r}; from ppa_fast.data.store.workers import serve; serve({descriptor})"


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers(Generic[Item, Result]):
    """Applies ``function``, which is pickled once, in at most ``processes`` processes with one thread each.

    A process starts on demand. It ends with the context or when this process ends, even if it is killed.
    """

    def __init__(self, function: Callable[[Item], Result], processes: int) -> None:
        self._function, self._processes = function, processes
        self._workers: list[Worker] = []
        self._idle: list[Worker] = []
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="worker")  # each waits for one process

    def map(self, items: Iterable[Item]) -> Iterator[Result]:
        """Yields the results in the order of ``items``; reads ahead at most two items per process.

        A single item is processed in this process.

        Raises:
            UserError: a process was killed.
            RuntimeError: a process ended because the function raised an error, which it printed to stderr.
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
        for wait in (False, True):  # the second pass kills processes that a thread started during the first
            self._threads.shutdown(wait=wait, cancel_futures=True)
            for worker in self._workers:
                worker.kill()


class Worker:
    """A process that applies ``function``, which is pickled once, to one item per call."""

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
            raise UserError(f"a worker process was killed by signal {-status}; if memory ran out, use fewer --workers")
        raise RuntimeError(f"a worker process ended with status {status}")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def serve(descriptor: int) -> None:
    """Runs a worker: receives the function, then applies it to each received item until the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent process handles it
    connection = Connection(descriptor)
    received = _messages(connection)
    function: Any = next(received, None)
    for item in received:
        result = function(item)
        with suppress(ConnectionError):
            connection.send(result)


def _messages(connection: Connection) -> Iterator[Any]:
    with suppress(EOFError, ConnectionError):  # the parent process ended or closed the connection
        while True:
            yield connection.recv()
