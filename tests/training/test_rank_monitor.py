"""If a rank fails or is lost, the others exit soon, with a non-zero status and an error line with the reason."""

from __future__ import annotations

import re
import signal
import socket
import threading

import pytest

from ppa_fast.training.rank_monitor import RankExit, Watch, watched
from tests.conftest import write_config
from tests.training.retries import attempt

LIMIT = 60.0  # seconds for a complete attempt: its start, some steps and its end

# Faults by rank, and the exit of each rank: a status, and a pattern of its error line, if it prints one.
LOST = r"^error: rank {} on \S+ was lost: it was killed, .*; rank {} exits too$"
RAISED = r"^error: rank 1 on \S+ failed: RuntimeError: no such luck; rank {} exits too$"
ENDS = {
    "rank 1 of 2 is killed": ([None, ("killed", 5)], [(1, LOST.format(1, 0)), (-9, None)]),
    "rank 0 of 2 is killed": ([("killed", 5), None], [(-9, None), (1, LOST.format(0, 1))]),
    "rank 2 of 3 is killed": (
        [None, None, ("killed", 4)],
        [(1, LOST.format(2, 0)), (1, LOST.format(2, 1)), (-9, None)],
    ),
    "rank 0 of 3 is killed": (
        [("killed", 4), None, None],
        [(-9, None), (1, LOST.format(0, 1)), (1, LOST.format(0, 2))],
    ),
    "rank 1 crashes": ([None, ("crashes", 3)], [(1, LOST.format(1, 0)), (-signal.SIGSEGV, None)]),
    "rank 1 raises": ([None, ("raises", 3), None], [(1, RAISED.format(0)), (1, None), (1, RAISED.format(2))]),
    "rank 1 raises, the others hang": (
        [("waits", 3), ("raises", 3), ("waits", 3)],
        [(1, RAISED.format(0)), (1, None), (1, RAISED.format(2))],
    ),
    "rank 1 is killed, rank 0 hangs": ([("waits", 3), ("killed", 3)], [(1, LOST.format(1, 0)), (-9, None)]),
    "bad input in rank 1": (
        [None, ("bad_input", 3), None],
        [(2, r"^error: data: row 7: not a row \(rank 1 on \S+\)$"), (2, None), (2, None)],
    ),
    "bad input in rank 0": ([("bad_input", 3), None], [(2, "^error: data: row 7: not a row$"), (2, None)]),
    "rank 1 is stopped for 8 s": ([None, ("stopped", 8)], [(0, None), (0, None)]),
    "rank 0 is stopped for 8 s": ([("stopped", 8), None], [(0, None), (0, None)]),
}


@pytest.fixture(scope="module")
def ended(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("watch")
    attempts = []
    for name, (faults, _) in ENDS.items():
        config = write_config(folder / f"ds-{len(faults)}.json", 12, 12 // len(faults))
        job = {"model": str(tiny.model), "data": str(tiny.store), "deepspeed_config": str(config), "steps": 6}
        job |= {"queue_size": 40, "output": str(folder / name.replace(" ", "-"))}
        attempts.append({"job": job, "world": len(faults), "faults": faults})
    return dict(zip(ENDS, attempt(attempts, folder / "attempts"), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDS)
def test_every_rank_exits_with_a_reason(ended, name, figure):
    figure("lost, failed or stopped ranks")
    result, (_, ends) = ended[name], ENDS[name]
    assert result["statuses"] == [status for status, _ in ends], result["errors"]
    for (_, pattern), errors in zip(ends, result["errors"], strict=True):
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert len(lines) == (pattern is not None), errors
        if pattern is not None:
            assert re.search(pattern, lines[0])
            assert "Traceback" not in errors  # for example the traceback of a collective, which is not the cause
    assert result["seconds"] < LIMIT


@pytest.mark.slow
def test_the_rank_that_failed_shows_its_traceback(ended):
    assert "RuntimeError: no such luck" in ended["rank 1 raises"]["errors"][1]


# One process.


def test_a_single_rank_has_no_monitor(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(Watch, "__init__", lambda self: pytest.fail("a watch was made"))
    before = threading.active_count()
    with watched():
        assert threading.active_count() == before


def test_an_error_message_is_encoded_as_one_line():
    words = RankExit(3, "node-7", 1, "RuntimeError: a\nb")
    sent = words.encode()
    assert sent.count(b"\n") == 1  # a message is one line
    assert str(RankExit(3, "node-7", 2, "data: no such store")) == "data: no such store (rank 3 on node-7)"
    assert str(words).startswith("rank 3 on node-7 failed: RuntimeError: a")


def test_a_connection_without_the_token_is_rejected(monkeypatch):
    """Connections without the token of the run, or with invalid messages, are closed, and the ranks can still
    connect."""
    from ppa_fast.training import rank_monitor

    class Store(dict):
        set = dict.__setitem__
        delete_key = dict.__delitem__

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(rank_monitor, "CONNECT_SECONDS", 10.0)
    store, met = Store(), threading.Event()
    monkeypatch.setattr(Store, "set", lambda self, key, value: (dict.__setitem__(self, key, value), met.set()))
    monkeypatch.setattr(rank_monitor.dist, "rendezvous", lambda url: iter([(store, 0, 2)]))
    first = Watch()
    opened = threading.Thread(target=first.connect)
    opened.start()
    met.wait(10)
    port, token, _ = rank_monitor.json.loads(store[rank_monitor.KEY])
    strangers = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(3)]
    strangers[0].sendall(b"GET / HTTP/1.1\r\n")
    strangers[1].sendall(b'["guess", 1, "there"]\n')
    strangers[2].close()
    with socket.create_connection(("127.0.0.1", port), 10) as rank:
        rank.sendall(rank_monitor.json.dumps([token, 1, "here"]).encode() + b"\n")
        opened.join(10)
        assert not opened.is_alive()
        assert [strangers[i].recv(1) for i in range(2)] == [b"", b""]
        assert not store  # nothing of this run blocks a later one
        first.leave()
        assert RankExit(*rank_monitor.json.loads(rank.recv(1000))).status == 0
