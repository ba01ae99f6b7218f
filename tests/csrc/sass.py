r"""Machine instructions of the loop in which ``infonce_parts_kernel`` multiplies the tiles of the ring.

``python -m tests.csrc.sass`` prints a Markdown table of the last build; it needs cuobjdump and nvdisasm on the PATH.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter

from tests.csrc.resources import LOGS, demangled

OBJECT = LOGS / "infonce_parts.cu.o"
ARCHITECTURE = re.compile(r"code for (sm_\w+)")
FUNCTION = re.compile(r"Function : (\w+)")
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(\w+)([^;]*);")
TILE = re.compile(r"infonce_parts_kernel<ppa::bfloat16, (\d+), (\d+), (\d+), (\d+)>")
COUNTED = ("HMMA", "LDSM", "LDGSTS")  # tensor cores, ldmatrix, cp.async


def loops(listing: list[tuple[int, str, str]]) -> list[tuple[int, int]]:
    """Returns the first and last address of every loop, from the (address, operation, operands) of a kernel."""
    found = []
    for address, operation, operands in listing:
        target = re.search(r"0x([0-9a-f]+)", operands) if operation == "BRA" else None
        if target and int(target[1], 16) < address:
            found.append((int(target[1], 16), address))
    return found


def main_loop(listing: list[tuple[int, str, str]], inner_trips: int) -> Counter[str]:
    """Returns the maximum count of each operation in one iteration of the longest loop that multiplies. An inner loop
    that also multiplies counts ``inner_trips`` times."""

    def inside(loop: tuple[int, int]) -> Counter[str]:
        return Counter(operation for address, operation, _ in listing if loop[0] <= address <= loop[1])

    multiplying = [loop for loop in loops(listing) if inside(loop)["HMMA"]]
    longest = max(multiplying, key=lambda loop: loop[1] - loop[0])
    counts = inside(longest)
    for loop in multiplying:
        if loop != longest:
            counts += Counter({operation: n * (inner_trips - 1) for operation, n in inside(loop).items()})
    return counts


def kernels(sass: str) -> dict[tuple[str, str], list[tuple[int, str, str]]]:
    """Returns (architecture, mangled kernel) → its instructions, from the output of ``cuobjdump -sass``."""
    found: dict[tuple[str, str], list[tuple[int, str, str]]] = {}
    architecture, listing = "", []
    for line in sass.splitlines():
        if match := ARCHITECTURE.search(line):
            architecture = match[1]
        elif match := FUNCTION.search(line):
            listing = found.setdefault((architecture, match[1]), [])
        elif match := INSTRUCTION.search(line):
            listing.append((int(match[1], 16), match[2], match[3]))
    return found


def table(sass: str) -> list[str]:
    """Returns the rows of the Markdown table."""
    rows = [
        "| columns | queries × keys, stages | | instructions | HMMA | LDSM | LDGSTS |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for (architecture, mangled), listing in kernels(sass).items():
        if tile := TILE.search(demangled([mangled])[0]):
            counts = main_loop(listing, inner_trips=int(tile[1]) // 64)
            numbers = [counts.total(), *(counts[operation] for operation in COUNTED)]
            shape = f"{tile[1]} | {tile[2]} × {tile[3]}, {tile[4]} | {architecture}"
            rows.append(f"| {shape} | {' | '.join(map(str, numbers))} |")
    return rows


if __name__ == "__main__":
    done = subprocess.run(["cuobjdump", "-sass", str(OBJECT)], capture_output=True, text=True, check=True)
    print("\n".join(table(done.stdout)))
