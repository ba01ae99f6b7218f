r"""The resources that ptxas reports for every kernel: registers, static shared memory, spills.

``python -m tests.csrc.resources`` writes the table that the tests compare the build with. Review the differences before
you commit it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import astuple, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / "build" / "native" / "cuda"
TABLE = Path(__file__).with_name("resources.tsv")
HEADER = "kernel\tarchitecture\tregisters\tshared_bytes\tstack_bytes\tspilled_bytes"

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


@dataclass(frozen=True)
class Resources:
    """Resources of one kernel on one architecture: registers per thread, bytes of static shared memory, of stack, of
    spills."""

    registers: int
    shared: int
    stack: int
    spilled: int


def demangled(names: list[str]) -> list[str]:
    """Returns readable names, without parameters."""
    lines = subprocess.run(["c++filt", "-p", *names], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line.removeprefix("void ") for line in lines]


def parse(log: str) -> dict[tuple[str, str], Resources]:
    """Returns (mangled kernel, architecture) → resources, from the output of ``ptxas -v``."""
    found, entry, frame = {}, None, (0, 0)
    for line in log.splitlines():
        if match := ENTRY.search(line):
            entry = (match[1], match[2])
        elif entry and (match := FRAME.search(line)):
            frame = (int(match[1]), int(match[2]) + int(match[3]))
        elif entry and (match := USED.search(line)):
            found[entry] = Resources(int(match[1]), int(match[2] or 0), *frame)
            entry = None
    return found


def built() -> dict[tuple[str, str], Resources]:
    """Returns (kernel, architecture) → resources of the last build."""
    found: dict[tuple[str, str], Resources] = {}
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):  # a log may belong to a deleted source
        log = LOGS / f"{source.name}.o.log"
        found |= parse(log.read_text())
    names = demangled([mangled for mangled, _ in found])
    return {(name, arch): use for name, ((_, arch), use) in zip(names, found.items(), strict=True)}


def table() -> dict[tuple[str, str], Resources]:
    """Returns the checked-in table."""
    rows = [line.split("\t") for line in TABLE.read_text().splitlines()[1:]]
    return {(name, arch): Resources(*map(int, numbers)) for name, arch, *numbers in rows}


def available() -> bool:
    return shutil.which("nvcc") is not None and any(LOGS.glob("*.cu.o.log"))


if __name__ == "__main__":
    rows = ["\t".join([*key, *map(str, astuple(use))]) for key, use in sorted(built().items())]
    TABLE.write_text("\n".join([HEADER, *rows, ""]))
    print(f"{len(rows)} rows in {TABLE}")
