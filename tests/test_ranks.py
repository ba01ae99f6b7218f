"""The environment of a launcher is complete, or the error names what is missing."""

from __future__ import annotations

import pytest

from ppa_fast.errors import UserError
from ppa_fast.ranks import VARIABLES, check_ranks

COMPLETE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch):
    def set_to(**values: str) -> None:
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_to


def test_alone_or_complete(environment) -> None:
    environment()
    check_ranks()
    environment(MASTER_PORT="29500")  # some shells export it
    check_ranks()
    environment(**COMPLETE)
    check_ranks()


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"RANK": "0"}, "found RANK, expected also WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; start the ranks"),
        ({**COMPLETE, "MASTER_ADDR": None}, "found RANK, .*, expected also MASTER_ADDR; start the ranks"),
        ({"WORLD_SIZE": "2"}, "found WORLD_SIZE, expected also RANK,"),
        ({**COMPLETE, "RANK": "one"}, "RANK: found 'one', expected a number"),
        ({**COMPLETE, "RANK": "2"}, "RANK: found 2, expected less than WORLD_SIZE, 2"),
    ],
)
def test_what_is_wrong_is_named(environment, found: dict[str, str | None], message: str) -> None:
    environment(**{name: value for name, value in found.items() if value is not None})
    with pytest.raises(UserError, match=rf"^environment: {message}"):
        check_ranks()
