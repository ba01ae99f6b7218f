"""What ``make gpu`` does: builds, tests, sanitizes and measures the operations and the step on this machine's GPU.

    python benchmarks/gpu.py

Installs nothing. Writes benchmarks/results/DEVICE.json, DEVICE.svg and, of the step, DEVICE-MODEL.svg (README.md
there); logs are in build/gpu. A part that fails does not stop the next ones; the exit status is 1 then, and 2 where
there is no GPU.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
RESULTS, LOGS = ROOT / "benchmarks" / "results", ROOT / "build" / "gpu"
# Under the sanitizers a kernel takes tens of times as long: small shapes, no property tests, and none that launches
# nothing or checks torch; torch's own kernels are left alone.
SANITIZED = ["tests/ops", "-m", "gpu and not hypothesis", "-k", "not arguments and not registered and not 32_bits"]
OURS = ["--kernel-name", "kns=3ppa4cuda"]  # namespace ppa::cuda, as it is mangled
MODELS = ("mbert-base", "xlmr-base")  # whose step is measured
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")


def missing() -> str:
    """Why nothing can be done here, or ""."""
    try:
        import torch
    except ImportError:
        return f"{sys.executable} has no torch (make gpu PYTHON=...)"
    return "" if torch.cuda.is_available() else f"there is no CUDA device (torch {torch.__version__})"


def call(name: str, command: list[str], seconds: int, **environment: str) -> tuple[bool, float]:
    """Runs a command, its output in a log; says and returns how it ended, and after how many seconds."""
    print(f"{name}: {' '.join(command)}", flush=True)
    begin, log = time.monotonic(), LOGS / f"{name}.log"
    how: dict[str, Any] = {"cwd": ROOT, "env": {**os.environ, "PYTHONPATH": str(ROOT), **environment}}
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, **how)
        try:
            status = str(process.wait(seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # what it started, too
            status = f"none: stopped after {seconds} s"
    passed = round(time.monotonic() - begin, 1)
    if status != "0":
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:]
        print("\n".join([*tail, f"{name}: exit status {status}; {log.relative_to(ROOT)}"]), flush=True)
    print(f"{name}: {passed} s", flush=True)
    return status == "0", passed


def build(architecture: str) -> dict[str, Any]:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    ok, seconds = call("build", command, 300, PPA_FAST_CUDA="1", TORCH_CUDA_ARCH_LIST=architecture)
    return {"ok": ok, "seconds": seconds, "architecture": architecture}


def trains() -> bool:
    """Whether what training needs is installed; says so if not."""
    absent = [name for name in ("deepspeed", "langcodes", "tokenizers") if not find_spec(name)]
    if absent:
        print(f"training and its step are left out: no {', '.join(absent)}", flush=True)
    return not absent


def test() -> dict[str, Any]:
    """All tests that need a GPU; those of the data and of training where they can be run there."""
    places = ["tests/ops", "tests/model/test_packed.py"]
    places += ["tests/data/test_batch.py"] if find_spec("langcodes") else []
    places += ["tests/training"] if trains() else []
    ok, seconds, counts = pytest("tests", [], ["-m", "gpu", *places], 300)
    return {"ok": ok, "seconds": seconds, **counts}


def pytest(
    name: str, under: list[str], selection: list[str], seconds: int, **environment: str
) -> tuple[bool, float, dict[str, int]]:
    """Runs tests under a program; whether all passed (and there were some), after how many seconds, and counts."""
    report = LOGS / f"{name}.xml"
    report.unlink(missing_ok=True)
    options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    ok, passed = call(name, [*under, sys.executable, "-m", "pytest", *options, *selection], seconds, **environment)
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    if report.exists():
        for suite in ElementTree.parse(report).iter("testsuite"):
            counts = {key: count + int(suite.get(key, 0)) for key, count in counts.items()}
    return ok and counts["tests"] > counts["skipped"], passed, counts


def sanitize(tool: str) -> dict[str, Any] | None:
    """What a tool of compute-sanitizer found in our kernels; None where there is no compute-sanitizer."""
    places = [os.environ["PATH"], str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin")]
    program = shutil.which("compute-sanitizer", path=os.pathsep.join(places))
    if program is None:
        print(f"{tool}: compute-sanitizer is not on the PATH nor in CUDA_HOME: left out", flush=True)
        return None
    log = LOGS / f"{tool}.txt"
    log.unlink(missing_ok=True)
    # What the API returns is for the bindings to check; torch tries calls that may fail.
    options = ["--tool", tool, "--error-exitcode", "86", "--report-api-errors", "no", "--log-file", str(log), *OURS]
    ok, seconds, counts = pytest(tool, [program, *options], SANITIZED, 150, PPA_FAST_TEST_SMALL="1")
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    summaries = [int(found) for found in SUMMARY.findall(text)]
    found = sum(summaries) if summaries else None
    print(text[-4000:] if found else f"{tool}: {'no summary' if found is None else 'nothing found'}", flush=True)
    return {"ok": ok and found == 0, "found": found, "seconds": seconds, **counts}


def benchmark(
    name: str, script: str, options: list[str], picture: Path, seconds: int
) -> tuple[bool, list[dict[str, Any]]]:
    """Runs one of the benchmarks; whether all of it could be measured, and its rows."""
    rows = LOGS / f"{name}.json"
    rows.unlink(missing_ok=True)
    command = [sys.executable, f"benchmarks/{script}", "--device", "cuda", *options, "--json", str(rows)]
    ok, _ = call(name, [*command, "--picture", str(picture)], seconds)
    print((LOGS / f"{name}.log").read_text(encoding="utf-8"), flush=True)
    return ok, json.loads(rows.read_text(encoding="utf-8")) if rows.exists() else []


def main() -> int:
    if reason := missing():
        print(f"make gpu: {reason}", file=sys.stderr)
        return 2
    import torch
    from measuring import commit

    LOGS.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    device, begin = torch.cuda.get_device_name(), time.monotonic()
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    result: dict[str, Any] = {"device": device, "commit": commit(ROOT)}
    result |= {"torch": torch.__version__, "cuda": torch.version.cuda}
    print(f"{device}, torch {torch.__version__}, commit {result['commit']}", flush=True)
    result |= {"build": None, "tests": None, "sanitizer": {}, "rows": [], "steps": []}
    path = RESULTS / f"{slug}.json"

    def write() -> None:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    result["build"] = build("{}.{}".format(*torch.cuda.get_device_capability()))
    result["tests"] = test()
    write()  # what is there if the time is up before the end
    measured = {}
    measured["kernels"], result["rows"] = benchmark(
        "kernels", "kernels.py", ["--seconds", "2"], RESULTS / f"{slug}.svg", 300
    )
    write()
    for model in MODELS if trains() else []:
        options, drawn = ["--model", model, "--rounds", "3"], RESULTS / f"{slug}-{model}.svg"
        measured[model], rows = benchmark(f"step-{model}", "step.py", options, drawn, 300)
        result["steps"] += rows
        write()
    for tool in ("memcheck", "racecheck"):
        result["sanitizer"][tool] = sanitize(tool)
        write()

    steps = {"build": result["build"], "tests": result["tests"], **result["sanitizer"]}
    print(f"{time.monotonic() - begin:.0f} s; {path.relative_to(ROOT)}")
    for name, step in steps.items():
        print(f"{name}: {step or 'left out'}")
    for name, ok in measured.items():
        print(f"{name}: {'ok' if ok else 'failed'}")
    return 0 if all(measured.values()) and all(step is None or step["ok"] for step in steps.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
