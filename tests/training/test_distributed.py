"""Errors of the start of the process group: the port, and the folder in which DeepSpeed builds."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import deepspeed
import pytest

from ppa_fast.errors import UserError
from ppa_fast.training import distributed
from ppa_fast.training.rank_monitor import Watch, watched


@pytest.fixture
def taken_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A port on which another process listens, given to the ranks of this one."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        variables = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        yield port


def test_a_port_in_use_is_named_by_the_first_rank(taken_port: int) -> None:
    message = rf"^MASTER_PORT: port {taken_port} of this machine is in use, expected a free port; set another one"
    with pytest.raises(UserError, match=message):
        Watch().connect()
    with pytest.raises(UserError, match=message), watched():
        pytest.fail("the ranks met")


@pytest.mark.parametrize("alone", [False, True])
def test_a_port_in_use_is_named_by_a_single_rank(taken_port: int, monkeypatch: pytest.MonkeyPatch, alone: bool) -> None:
    """``alone``: without a launcher, where the free port was taken in the meantime."""
    monkeypatch.setenv("WORLD_SIZE", "1")
    if alone:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name)
        monkeypatch.setattr(distributed, "free_port", lambda: taken_port)

    def join(*_: object, **__: object) -> None:
        next(distributed.dist.rendezvous("env://"))

    monkeypatch.setattr(deepspeed, "init_distributed", join)
    with pytest.raises(UserError, match=rf"^MASTER_PORT: port {taken_port}"), distributed.started():
        pytest.fail("joined")
    assert ("RANK" in os.environ) == (not alone)


def test_a_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/home/other/.cache")

    monkeypatch.setattr(deepspeed, "init_distributed", build)
    message = (
        r"^/home/other/\.cache: Permission denied; .*set TORCH_EXTENSIONS_DIR to a folder that this user may write"
    )
    with pytest.raises(UserError, match=message), distributed.started():
        pytest.fail("joined")
