"""Ends all ranks of a run when one rank fails or is lost, with a message that names the rank and the reason.

Collectives do not do this: NCCL's never return, and gloo's raise in the neighbour of the lost rank. Therefore each rank
keeps one TCP connection to rank 0. A rank that exits sends a :class:`RankExit` as a JSON line, and rank 0 forwards it.
A connection that closes without this line belongs to a lost rank: after SIGKILL, a crash or an out-of-memory kill the
kernel closes it immediately, and TCP keep-alive detects an unreachable machine within half a minute. The kernel keeps
the connection of a slow rank open, so a rank that computes, saves or is suspended for long is not reported as lost.
Nothing is sent during normal operation.

The main thread may be blocked where no exception can reach it, so a separate thread listens and ends the process.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch.distributed as dist

from ppa_fast.errors import input_error
from ppa_fast.training import distributed

CONNECT_SECONDS = 60.0  # timeout for connecting to rank 0 after the rendezvous
# Delay before reporting an error: if a lost rank caused it, the report of that loss arrives first.
VERDICT_SECONDS = 3.0
PARTING_SECONDS = 5.0  # time for rank 0 to report, before its launcher ends it because another rank has exited
KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}  # an unresponsive machine is lost after 30 s
KEY = "ppa_fast/watch"

FAILED, BAD_INPUT = 1, 2  # exit statuses


class RankExit(NamedTuple):
    """How a rank exited: status 0 for success, 2 for bad input, 1 for any other error. ``why``: None if unknown."""

    rank: int
    host: str
    status: int
    why: str | None

    def encode(self) -> bytes:
        return json.dumps(self).encode() + b"\n"

    def __str__(self) -> str:
        who = f"rank {self.rank} on {self.host}"
        if self.why is None:
            return f"{who} was lost: it was killed, ran out of memory or crashed, or its machine is unreachable"
        return f"{self.why} ({who})" if self.status == BAD_INPUT else f"{who} failed: {self.why}"


@contextmanager
def watched() -> Iterator[None]:
    """Monitors the ranks while the block runs: if one rank fails or is lost, all exit.

    An error that leaves the block is sent to the other ranks. When another rank fails, this process exits, even if its
    main thread is blocked: with status 2 for bad input, which only rank 0 prints, otherwise with status 1 and one line
    on stderr. Does nothing in a run of one rank.
    """
    if distributed.world_size() == 1:
        yield
        return
    watch = Watch()
    try:
        watch.connect()
        yield
    except BaseException as error:
        watch.fail(error)
        raise
    watch.leave()


class Watch:
    """The connections of this rank: from rank 0 to all other ranks, from any other rank to rank 0."""

    def __init__(self) -> None:
        self.rank, self.world, self.host = distributed.rank(), distributed.world_size(), socket.gethostname()
        self._peers: dict[socket.socket, RankExit] = {}  # reported if the connection closes without a message
        self._ending = threading.Lock()  # held by the thread that ends this rank
        self._left = False
        self._thread = threading.Thread(target=self._listen, name="watch", daemon=True)

    def connect(self) -> None:
        """Waits until every rank has connected.

        Raises TimeoutError if a rank does not, and UserError if the port is in use.
        """
        with distributed.port_errors():
            self._store, *_ = next(dist.rendezvous("env://"))  # kept open: the process group uses the same store
        if self.rank == 0:
            self._accept()
        else:
            port, token, host = json.loads(self._store.get(KEY))
            connection = socket.create_connection((os.environ["MASTER_ADDR"], port), CONNECT_SECONDS)
            connection.sendall(json.dumps([token, self.rank, self.host]).encode() + b"\n")
            self._add(connection, 0, host)
        self._thread.start()

    def _accept(self) -> None:
        token = secrets.token_hex()
        two = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if two else socket.AF_INET
        with socket.create_server(("", 0), family=family, dualstack_ipv6=two, backlog=self.world) as server:
            self._store.set(KEY, json.dumps([server.getsockname()[1], token, self.host]))
            server.settimeout(CONNECT_SECONDS)
            while len(self._peers) < self.world - 1:
                connection, _ = server.accept()
                connection.settimeout(CONNECT_SECONDS)
                try:
                    found, rank, host = json.loads(_line(connection))
                except (ValueError, TypeError):
                    found = None
                if found == token:
                    self._add(connection, rank, host)
                else:
                    connection.close()  # not a rank of this run
        self._store.delete_key(KEY)  # a later run in these processes sets a new one

    def _add(self, connection: socket.socket, rank: int, host: str) -> None:
        connection.settimeout(PARTING_SECONDS)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, seconds in KEEP_ALIVE.items():
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
        self._peers[connection] = RankExit(rank, host, FAILED, None)

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for connection, lost in self._peers.items():
                selector.register(connection, selectors.EVENT_READ, lost)
            while selector.get_map():
                for key, _ in selector.select():
                    assert isinstance(key.fileobj, socket.socket)
                    selector.unregister(key.fileobj)
                    line = _line(key.fileobj)
                    report = RankExit(*json.loads(line)) if line else key.data
                    if report.status != 0:
                        self._end(report)

    def _end(self, report: RankExit) -> None:
        """Ends this process because another rank failed, unless it is ending already."""
        with self._ending:
            if self._left:
                return
            if self.rank == 0 or report.status != BAD_INPUT:
                also = "" if report.status == BAD_INPUT else f"; rank {self.rank} exits too"
                print(f"error: {report}{also}", file=sys.stderr, flush=True)
            self._forward(report)
            os._exit(report.status)

    def _forward(self, report: RankExit) -> None:
        """Rank 0 sends the report to the others, which wait until rank 0 has exited and its output is complete."""
        for connection in self._peers:
            with suppress(OSError):  # that rank has exited, or rank 0 does not exit in time
                if self.rank == 0:
                    connection.sendall(report.encode())
                else:
                    connection.recv(1)

    def fail(self, error: BaseException) -> None:
        """Reports ``error`` to the other ranks, unless a report of the rank that caused it arrives first."""
        why, status = input_error(error), BAD_INPUT
        if why is None:
            why, status = f"{type(error).__name__}: {error}", FAILED
            if isinstance(error, Exception):
                time.sleep(VERDICT_SECONDS)
        self._report(RankExit(self.rank, self.host, status, why))
        if status == BAD_INPUT and self.rank != 0 and self._thread.is_alive():
            self._thread.join(PARTING_SECONDS)  # rank 0 prints the message for all ranks

    def leave(self) -> None:
        """Reports success and closes the connections."""
        self._report(RankExit(self.rank, self.host, 0, None))
        for connection in self._peers:
            with suppress(OSError):  # that rank has exited
                connection.shutdown(socket.SHUT_RDWR)  # wakes the listening thread
        self._thread.join()
        for connection in self._peers:
            connection.close()

    def _report(self, report: RankExit) -> None:
        with self._ending:
            self._left = True
            for connection in self._peers:
                with suppress(OSError):  # that rank has exited
                    connection.sendall(report.encode())


def _line(connection: socket.socket) -> bytes:
    """The next line from a connection; empty if it closes, fails or times out before the end of the line."""
    line = b""
    with suppress(OSError):
        while part := connection.recv(1):  # byte by byte, because data after the line is read later
            line += part
            if part == b"\n":
                return line
    return b""
