"""Runs the tests of the operations on the SIMT harness: ``python -m tests.csrc.simt [pytest arguments]``.

Every CUDA kernel is compiled from its own source and runs on the CPU, thread by thread, under AddressSanitizer and
UndefinedBehaviorSanitizer.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
LIBRARY = ROOT / "build" / "native" / "simt" / "_C_simt.so"


def build() -> None:
    """Builds the library of the harness incrementally. Raises CalledProcessError."""
    subprocess.run([sys.executable, "setup.py", "-q", "build_simt"], cwd=ROOT, check=True)


def run(arguments: list[str], order: str = "forward", trace: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs pytest on the harness.

    ``order``: the order in which threads run, see simt.h; ``trace``: the file that receives the names of the kernels.
    """
    preload = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    env = {
        **os.environ,
        "PPA_FAST_TEST_SIMT": str(LIBRARY),
        "PPA_SIMT_ORDER": order,
        "LD_PRELOAD": " ".join(preload),
        # Leaks are not detected, because Python and torch keep memory to the end; reads and writes are checked.
        "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0:detect_stack_use_after_return=0:handle_segv=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }
    if trace is not None:
        env["PPA_SIMT_TRACE"] = str(trace)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, text=True)
