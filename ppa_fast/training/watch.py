"""The ranks of a run watch over one another: when one is lost or fails, all end, soon and saying which and why.

No collective does that: NCCL's never return, gloo's raise in whichever rank is next to the lost one. So each rank keeps
one connection to rank 0, which is silent until the rank ends. Then it carries its last words, a JSON line. A connection
that closes without them is that of a rank that was killed: the kernel closes it at once after SIGKILL, a crash or the
want of memory, and TCP's keep-alive finds within half a minute that a machine is gone. Rank 0 passes on what it learns.
The kernel keeps the connection of a rank that is slow, so none is taken for lost, however long it computes, saves or is
stopped. Nothing is sent while all goes well.

A main thread may be blocked where no exception reaches it; it is a thread that listens, and ends the process.
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

CONNECT_SECONDS = 60.0  # for the ranks to connect to rank 0, once all have found one another
VERDICT_SECONDS = 3.0  # an error may be a lost peer's doing; until then the word of it arrives
PARTING_SECONDS = 5.0  # for rank 0 to say what happened, before its launcher ends it because another rank has ended
KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}  # a silent machine is gone after 30 s
KEY = "ppa_fast/watch"

FAILED, BAD_INPUT = 1, 2  # exit statuses


class LastWords(NamedTuple):
    """How a rank ended: exit status 0 in good order, 2 for bad input, 1 for anything else. ``why`` None: not said."""

    rank: int
    host: str
    status: int
    why: str | None

    def encode(self) -> bytes:
        return json.dumps(self).encode() + b"\n"

    def __str__(self) -> str:
        who = f"rank {self.rank} on {self.host}"
        if self.why is None:
            return f"{who} was lost without a word: killed, out of memory, crashed, or its machine is gone"
        return f"{self.why} ({who})" if self.status == BAD_INPUT else f"{who} failed: {self.why}"


@contextmanager
def watched() -> Iterator[None]:
    """Joins this rank to the others'; until the block ends, any rank's end but a good one is the end of all.

    An error that leaves the block is told to the other ranks. When another rank fails, this process exits, whatever its
    main thread does: with status 2 for bad input, which rank 0 alone says, else 1 and one line on stderr. A run of one
    rank has nothing to watch.
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
    """The connections of this rank: rank 0's to all others, another's to rank 0."""

    def __init__(self) -> None:
        self.rank, self.world, self.host = distributed.rank(), distributed.world_size(), socket.gethostname()
        self._peers: dict[socket.socket, LastWords] = {}  # what a connection that closes without a word stands for
        self._ending = threading.Lock()  # held by the thread that ends this rank
        self._left = False
        self._thread = threading.Thread(target=self._listen, name="watch", daemon=True)

    def connect(self) -> None:
        """Waits until every rank has connected; raises TimeoutError where one does not."""
        self._store, *_ = next(dist.rendezvous("env://"))  # kept: the process group finds its ranks by the same one
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
                    connection.close()  # not one of ours
        self._store.delete_key(KEY)  # a later run of these processes has its own

    def _add(self, connection: socket.socket, rank: int, host: str) -> None:
        connection.settimeout(PARTING_SECONDS)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, seconds in KEEP_ALIVE.items():
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
        self._peers[connection] = LastWords(rank, host, FAILED, None)

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for connection, lost in self._peers.items():
                selector.register(connection, selectors.EVENT_READ, lost)
            while selector.get_map():
                for key, _ in selector.select():
                    assert isinstance(key.fileobj, socket.socket)
                    selector.unregister(key.fileobj)
                    heard = _line(key.fileobj)
                    words = LastWords(*json.loads(heard)) if heard else key.data
                    if words.status != 0:
                        self._end(words)

    def _end(self, words: LastWords) -> None:
        """Ends this process because of another rank's end, unless it is ending already."""
        with self._ending:
            if self._left:
                return
            if self.rank == 0 or words.status != BAD_INPUT:
                ends = "" if words.status == BAD_INPUT else f"; rank {self.rank} ends with it"
                print(f"error: {words}{ends}", file=sys.stderr, flush=True)
            self._say(words)
            os._exit(words.status)

    def _say(self, words: LastWords) -> None:
        """Rank 0 tells all others. They wait until it is gone: what it has to say, it has said then."""
        for connection in self._peers:
            with suppress(OSError):  # that rank is gone itself, or rank 0's process does more than this
                if self.rank == 0:
                    connection.sendall(words.encode())
                else:
                    connection.recv(1)

    def fail(self, error: BaseException) -> None:
        """Tells the other ranks that this one ends by ``error``, unless another rank's end is behind it."""
        why, status = input_error(error), BAD_INPUT
        if why is None:
            why, status = f"{type(error).__name__}: {error}", FAILED
            if isinstance(error, Exception):
                time.sleep(VERDICT_SECONDS)
        self._tell(LastWords(self.rank, self.host, status, why))
        if status == BAD_INPUT and self.rank != 0 and self._thread.is_alive():
            self._thread.join(PARTING_SECONDS)  # rank 0 says it for all

    def leave(self) -> None:
        """Ends the watch in good order."""
        self._tell(LastWords(self.rank, self.host, 0, None))
        for connection in self._peers:
            with suppress(OSError):  # that rank has left
                connection.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join()
        for connection in self._peers:
            connection.close()

    def _tell(self, words: LastWords) -> None:
        with self._ending:
            self._left = True
            for connection in self._peers:
                with suppress(OSError):  # that rank has left
                    connection.sendall(words.encode())


def _line(connection: socket.socket) -> bytes:
    """The next line from a connection; empty where it closes, breaks or falls silent before the line's end."""
    heard = b""
    with suppress(OSError):
        while part := connection.recv(1):  # no more than the line: what follows it is read later
            heard += part
            if part == b"\n":
                return heard
    return b""
