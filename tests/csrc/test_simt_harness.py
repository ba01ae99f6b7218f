"""The SIMT harness runs correct kernels correctly and detects deliberate faults in the kernels of selftest.cu."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
FLAGS = ["-std=c++20", "-g1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
SIMT = Path(__file__).parent / "simt"
FLAGS += ["-O1", "-DPPA_SIMT", f"-I{CSRC / 'include'}", f"-I{CSRC}", f"-I{SIMT.parent}"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
ORDERS = ["forward", "reverse", "shuffle:1"]

# Deliberate faults that show in the results, or in the message before the harness aborts.
WRONG_RESULT = ["barrier", "warp_barrier", "reuse", "copies"]
ABORTS = {
    "overrun_global": "AddressSanitizer: heap-buffer-overflow",
    "overrun_dynamic_shared": "AddressSanitizer: heap-buffer-overflow",
    "overrun_static_shared": "",  # the compiler knows the array size, so either sanitizer may report first
    "divergent_barrier": "deadlock",
    "divergent_shuffle": "deadlock",
    "exited_lane": "deadlock",
    "wrong_mask": "thread (16, 0, 0): __all_sync by a lane that its mask lacks",
    "misaligned": "ldmatrix_x4: the shared address is not aligned to 16 bytes",
    "not_shared": "cp_async_16: the 16 bytes do not lie in shared memory",
    "trap": "thread (5, 0, 0): __trap",
}
FAULTLESS = ["sums", "exchange", "products", "in_flight", "atomics", "poison", "built_ins", "limits"]

# The kernels run in a library that Python loads, as the operations do. The second thread has another stack.
RUNNER = """
import ctypes, sys, threading
library = ctypes.CDLL(sys.argv[1])
def run():
    for name in sys.argv[3:]:
        print(name, library.selftest(name.encode(), sys.argv[2] == "faulty"), flush=True)
run()
if sys.argv[2] == "right":
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
"""


def build(library: Path, flags: Sequence[str]) -> Path:
    sources = [str(SIMT / name) for name in ("selftest.cu", "simt.cpp")]
    subprocess.run(["g++", *FLAGS, *flags, "-x", "c++", *sources, "-o", str(library)], check=True)
    return library


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library with sanitizers."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    folder = tmp_path_factory.mktemp("simt")
    trial = ["g++", *SANITIZERS, "-x", "c++", "-", "-o", str(folder / "trial")]
    if subprocess.run(trial, input="int main() {}", text=True, capture_output=True).returncode != 0:
        pytest.skip("g++ has no sanitizers")
    return build(folder / "checked.so", SANITIZERS)


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library with the context switch for processors other than x86-64, without sanitizers."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    return build(tmp_path_factory.mktemp("portable") / "portable.so", ["-DPPA_SIMT_UCONTEXT"])


def run(
    library: Path,
    cases: Sequence[str],
    *,
    faulty: bool = False,
    order: str = "forward",
    trace: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    preload = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    env = {"PPA_SIMT_ORDER": order, "ASAN_OPTIONS": "detect_leaks=0", "PATH": os.environ["PATH"]}
    if library.name != "portable.so":
        env["LD_PRELOAD"] = " ".join(preload)
    if trace is not None:
        env["PPA_SIMT_TRACE"] = str(trace)
    command = [sys.executable, "-I", "-S", "-c", RUNNER, str(library), "faulty" if faulty else "right", *cases]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def wrong_results(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """Returns the number of wrong results of each case."""
    assert done.returncode == 0, done.stderr
    return {name: int(count) for name, count in (line.rsplit(maxsplit=1) for line in done.stdout.splitlines())}


@pytest.mark.parametrize("order", [*ORDERS, "shuffle:2"])
def test_correct_kernels_give_correct_results(checked: Path, order: str) -> None:
    cases = [*FAULTLESS, *WRONG_RESULT, *ABORTS]
    done = run(checked, cases, order=order)
    assert wrong_results(done) == dict.fromkeys(cases, 0), done.stderr


@pytest.mark.parametrize("order", ORDERS)
def test_correct_kernels_give_correct_results_with_the_portable_switch(portable: Path, order: str) -> None:
    cases = [*FAULTLESS, *WRONG_RESULT, *ABORTS]
    done = run(portable, cases, order=order)
    assert wrong_results(done) == dict.fromkeys(cases, 0), done.stderr


@pytest.mark.parametrize("case", WRONG_RESULT)
def test_a_missing_synchronisation_changes_the_results(checked: Path, case: str) -> None:
    counts = {order: wrong_results(run(checked, [case], faulty=True, order=order))[case] for order in ORDERS}
    assert any(count > 0 for count in counts.values()), counts


@pytest.mark.parametrize("case", ABORTS)
def test_a_fault_aborts_with_its_reason(checked: Path, case: str) -> None:
    done = run(checked, [case], faulty=True)
    assert done.returncode != 0
    assert case not in done.stdout
    assert ABORTS[case] in done.stderr
    if case.startswith("overrun"):
        assert "AddressSanitizer" in done.stderr or "runtime error" in done.stderr
        assert "selftest.cu" in done.stderr
    else:
        assert f"ppa simt: kernel ppa::selftest::{case}_kernel, block (0, 0, 0)" in done.stderr


def test_a_deadlock_names_the_threads_and_where_they_wait(checked: Path) -> None:
    message = run(checked, ["divergent_shuffle"], faulty=True).stderr
    assert "thread (0, 0, 0) and 31 more: at __syncthreads, " in message
    assert "thread (32, 0, 0) and 30 more: at __shfl_xor_sync, " in message
    assert "thread (33, 0, 0): at __syncthreads, " in message
    message = run(checked, ["exited_lane"], faulty=True).stderr
    assert "thread (0, 0, 0) and 55 more: exited" in message


def test_threads_run_in_the_requested_order(checked: Path) -> None:
    def order(name: str) -> list[int]:
        return [int(word) for word in run(checked, ["order"], order=name).stdout.splitlines()[0].split()]

    in_order = list(range(768))
    assert order("forward") == in_order
    assert order("reverse") == in_order[::-1]
    shuffled = order("shuffle:1")
    assert sorted(shuffled) == in_order
    assert shuffled != in_order
    assert order("shuffle:1") == shuffled
    assert order("shuffle:2") != shuffled


@pytest.mark.parametrize("order", ["sideways", "shuffle:", "shuffle:x"])
def test_an_unknown_order_is_an_error(checked: Path, order: str) -> None:
    done = run(checked, ["poison"], order=order)
    assert wrong_results(done)["poison"] > 0
    assert "PPA_SIMT_ORDER must be forward, reverse or shuffle:<seed>" in done.stderr


def test_the_trace_names_each_kernel_once(checked: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trace.write_text("before\n")
    assert run(checked, ["sums", "exchange", "sums"], trace=trace).returncode == 0
    names = ["before", "ppa::selftest::sum_kernel", "ppa::selftest::exchange_kernel"]
    assert trace.read_text().splitlines() == names


def test_a_stripped_library_is_an_error(checked: Path, tmp_path: Path) -> None:
    """Without symbols the harness cannot find static shared memory, and would not fill it with ones."""
    if shutil.which("strip") is None:
        pytest.skip("strip is not installed")
    stripped = tmp_path / "stripped.so"
    subprocess.run(["strip", "-o", str(stripped), str(checked)], check=True)
    done = run(stripped, ["sums"])
    assert done.returncode != 0
    assert "no symbol table" in done.stderr
