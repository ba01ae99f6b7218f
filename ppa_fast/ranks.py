"""The environment in which a launcher starts the ranks of a run."""

from __future__ import annotations

import os

from ppa_fast.errors import UserError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
HINT = "start the ranks with deepspeed or torchrun, or unset RANK and WORLD_SIZE to run alone"


def check_ranks() -> None:
    """Raises UserError if RANK or WORLD_SIZE is set, but not all of ``VARIABLES``, or if a number is impossible."""
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return
    if missing := [name for name in VARIABLES if name not in os.environ]:
        found = ", ".join(name for name in VARIABLES if name in os.environ)
        raise UserError(f"environment: found {found}, expected also {', '.join(missing)}; {HINT}")
    numbers = {name: os.environ[name] for name in VARIABLES if name != "MASTER_ADDR"}
    for name, value in numbers.items():
        if not value.isdecimal():
            raise UserError(f"environment: {name}: found {value!r}, expected a number; {HINT}")
    if int(numbers["RANK"]) >= int(numbers["WORLD_SIZE"]):
        found, ranks = numbers["RANK"], numbers["WORLD_SIZE"]
        raise UserError(f"environment: RANK: found {found}, expected less than WORLD_SIZE, {ranks}; {HINT}")
