"""Builds, checks and measures the operations and the step on this machine's GPU, in stages (``make gpu``).

    python benchmarks/gpu.py [--stages A,B,…] [--budget SECONDS] [--out DIR]
    python benchmarks/gpu.py --merge DIR [DIR …]

It installs nothing. Each stage has a time limit and runs in a process of its own. If a stage fails or exceeds its
limit, its measurements are kept, and the next stage runs. Stages that do not fit into the budget are not run. DIR
receives results.json, which is always current, and log.txt. The results are also merged with those of earlier calls in
benchmarks/results/DEVICE.json, DEVICE.svg and, for the step, DEVICE-MODEL.svg (see README.md there). ``--merge`` does
only this, for calls on other machines. The exit status is 0 if all stages succeeded, 1 if a stage did not, and 2
without a GPU. ``--device cpu`` rehearses the stages on tiny shapes; its results stay in DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Result = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
RESULTS, BUILD = ROOT / "benchmarks" / "results", ROOT / "build" / "gpu"
OURS = ["--kernel-name", "kns=3ppa4cuda"]  # the mangled namespace ppa::cuda
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")
LINES, LOGGED = 100, 2**20  # lines of the summary; bytes of a stage in log.txt
# The sanitizers slow kernels down tens of times, so they run some tests with small shapes.
WIDE_AND_NARROW = "shapes_and_types and bfloat16 and (257-300-128 or 64-257-768) or positions_enqueue and bfloat16"
RACECHECKED = f"{WIDE_AND_NARROW} or losses_and_gradients and 8191 and dtype1 or real_vocabularies and 119547"
MEMCHECKED = f"{RACECHECKED} or wrap_within_a_tile or unaligned or keys_are_rounded and bfloat16 or long_and_short"
MEMCHECKED += " or real_vocabularies and (119547 or 250002)"


@dataclass(frozen=True)
class Place:
    """Where a stage runs and which files it writes; ``device`` is "cuda", or "cpu" for a rehearsal."""

    device: str
    folder: Path

    @property
    def rows(self) -> Path:
        return self.folder / "rows.json"

    @property
    def outcomes(self) -> Path:
        return self.folder / "outcomes.jsonl"

    @property
    def sanitizer(self) -> Path:
        return self.folder / "sanitizer.txt"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"


@dataclass(frozen=True)
class Stage:
    """``seconds``: its limit; ``unavailable``: returns why the stage cannot run on a device, or ""."""

    seconds: int
    command: Callable[[Place], list[str]]
    environment: dict[str, str] = field(default_factory=dict)
    unavailable: Callable[[str], str] = lambda device: ""


# --- commands --------------------------------------------------------------------------------------------------------


def build(place: Place) -> list[str]:
    return [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]


def smoke(place: Place) -> list[str]:
    return [sys.executable, "benchmarks/smoke.py", "--device", place.device, "--json", str(place.rows)]


def kernels(*options: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        size = ["--quick", "--seconds", "0.1"] if place.device == "cpu" else [*options]
        script = [sys.executable, "benchmarks/kernels.py", "--device", place.device]
        return [*script, *size, "--json", str(place.rows)]

    return command


def step(seconds: int, model: str, rows: str, *options: str) -> Stage:
    """Measures rows of ``step.py``. The model and the pairs are kept in build/gpu for the next stages."""

    def command(place: Place) -> list[str]:
        size = ["--model", model, "--folder", f"build/gpu/{model}", *options]
        size = ["--quick", "--micro-batch", "16,4", "--profile", "1"] if place.device == "cpu" else size
        script = [sys.executable, "benchmarks/step.py", "--device", place.device, "--rows", rows]
        return [*script, *size, "--json", str(place.rows)]

    return Stage(seconds, command, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}, lambda _: absent(DATA))


def selected(selection: str, *places: str, workers: int = 0) -> Callable[[Place], list[str]]:
    """Runs the tests that need a GPU and match ``selection`` (pytest's -k). A rehearsal only collects them."""

    def command(place: Place) -> list[str]:
        options = ["-q", "-p", "no:cacheprovider", "-p", "benchmarks.outcomes", "--outcomes", str(place.outcomes)]
        options += ["--collect-only"] if place.device == "cpu" else []
        options += ["-n", str(workers)] if workers and find_spec("xdist") and place.device == "cuda" else []
        return [sys.executable, "-m", "pytest", *options, "-m", "gpu", "-k", selection, *places]

    return command


def sanitized(tool: str, selection: str) -> Callable[[Place], list[str]]:
    """Runs tests under a tool of compute-sanitizer. A rehearsal only collects them."""

    def command(place: Place) -> list[str]:
        inner = selected(selection, "tests/ops")(place)
        if place.device == "cpu":
            return inner
        # The bindings check API errors; torch makes calls that are allowed to fail.
        options = ["--tool", tool, "--error-exitcode", "86", "--report-api-errors", "no"]
        return [str(sanitizer()), *options, "--log-file", str(place.sanitizer), *OURS, *inner]

    return command


# --- what they need --------------------------------------------------------------------------------------------------

DATA = ("langcodes", "tokenizers")
TRAINING = ("deepspeed", *DATA)


def absent(names: Sequence[str]) -> str:
    missing = [name for name in names if not find_spec(name)]
    return f"not installed: {', '.join(missing)}" if missing else ""


def sanitizer() -> str | None:
    places = [os.environ["PATH"], str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin")]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(places))


def unsanitizable(device: str) -> str:
    if device == "cpu" or sanitizer():
        return ""
    return "compute-sanitizer is not on the PATH nor in CUDA_HOME"


def unbuildable(device: str) -> str:
    return "a rehearsal builds nothing" if device == "cpu" else ""


TRAINER = "fused EMA,DeepSpeed"
NO_WAITS = ("tests/training/test_no_sync.py", "tests/model/test_packed.py", "tests/data/loading/test_batching.py")
SMALL = {"PPA_FAST_TEST_SMALL": "1"}

STAGES: dict[str, Stage] = {
    # Sorted by importance: the first five fit into one call, the next five into another.
    "build": Stage(45, build, {"PPA_FAST_CUDA": "1"}, unbuildable),
    "smoke": Stage(30, smoke),
    "kernels": Stage(55, kernels("--no-compile", "--seconds", "2")),
    "step": step(100, "mbert-base", TRAINER, "--micro-batch", "256,64", "--profile", "3"),
    "tests": Stage(70, selected("not hypothesis and not opcheck", "tests/ops", workers=8)),
    "compiled": step(60, "mbert-base", "fused EMA,compiled"),
    "plain": step(100, "mbert-base", "strongest plain", "--rounds", "3"),
    "naive": step(45, "mbert-base", "naive", "--rounds", "2"),
    "memcheck": Stage(55, sanitized("memcheck", MEMCHECKED), SMALL, unsanitizable),
    "no-sync": Stage(40, selected("(synchronise or flash) and not compiled", *NO_WAITS, "tests/ops/test_assemble.py")),
    "xlmr": step(100, "xlmr-base", TRAINER),
    "racecheck": Stage(60, sanitized("racecheck", RACECHECKED), SMALL, unsanitizable),
    "parallelism": Stage(
        120, selected("", "tests/training/test_parallelism_invariance.py"), {}, lambda _: absent(TRAINING)
    ),
    "compiled-tests": Stage(120, selected("compiled", "tests/model/test_packed.py")),
    "inductor": Stage(120, kernels("--seconds", "1")),
    "hypothesis": Stage(60, selected("hypothesis or opcheck", "tests/ops", workers=8)),
}
DEFAULT = ("build", "smoke", "kernels", "step", "tests")
BUDGET = sum(STAGES[name].seconds for name in DEFAULT)


# --- running ---------------------------------------------------------------------------------------------------------


def run(stage: Stage, place: Place, seconds: float, update: Callable[[Result], None]) -> Result:
    """Runs a stage, and passes its measurements to ``update`` repeatedly. Returns the final ones."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = stage.command(place)
    said = shlex.join(["python" if word == sys.executable else word for word in command])
    result: Result = {"state": "running", "seconds": 0.0, "command": said.replace(f"{place.folder}/", "")}
    begin = time.monotonic()
    with place.log.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **stage.environment, "PYTHONPATH": path},
            start_new_session=True,
        )
        try:
            while process.poll() is None and time.monotonic() < begin + seconds:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(min(0.5, max(0.0, begin + seconds - time.monotonic())))
                result["seconds"] = round(time.monotonic() - begin, 1)
                update(result | measured(place))
        finally:
            stopped = process.poll() is None
            if stopped:
                os.killpg(process.pid, signal.SIGKILL)  # and its child processes
                process.wait()
    result |= measured(place)
    state = "stopped" if stopped else "ok" if process.returncode == 0 and succeeded(result) else "failed"
    last = next((line for line in reversed(tail(place.log, 4000).splitlines()) if line.strip()), "no output")
    reasons = {"ok": "", "stopped": f"after {seconds:.0f} s", "failed": f"exit status {process.returncode}: {last}"}
    return result | {"state": state, "reason": reasons[state]}


def measured(place: Place) -> Result:
    """Returns the measurements of a stage so far."""
    found: Result = {"rows": json.loads(place.rows.read_text(encoding="utf-8")) if place.rows.exists() else []}
    if place.outcomes.exists():
        lines = [json.loads(line) for line in place.outcomes.read_text(encoding="utf-8").split("\n")[:-1]]
        ended = {line["test"]: line["outcome"] for line in lines if "test" in line}  # the last outcome of a test counts
        found["tests"] = {"passed": 0, "failed": 0, "skipped": 0, **Counter(ended.values())}
        found["tests"]["collected"] = next((line["collected"] for line in lines if "collected" in line), None)
        found["failures"] = [test for test, outcome in ended.items() if outcome == "failed"]
    if place.sanitizer.exists():
        summaries = SUMMARY.findall(place.sanitizer.read_text(encoding="utf-8", errors="replace"))
        found["found"] = sum(map(int, summaries)) if summaries else None
    return found


def succeeded(result: Result) -> bool:
    """Whether the tests of a stage passed and its sanitizer found no errors, if it has any."""
    tested = result.get("tests")
    return (not tested or bool(tested["passed"]) or "--collect-only" in result["command"]) and result.get(
        "found", 0
    ) == 0


def tail(path: Path, count: int) -> str:
    return path.read_bytes()[-count:].decode("utf-8", errors="replace")


def call(names: Sequence[str], device: str, budget: float, out: Path, about: Result) -> Result:
    """Runs stages, and updates ``out``/results.json and log.txt. Returns the results of this call."""
    begin, results = time.monotonic(), {**about, "stages": {}}
    earlier = read(out / "results.json")
    if earlier.get("device") != about["device"]:
        earlier = {"stages": {}}

    def update(name: str, stage: Result) -> None:
        results["stages"][name] = stage | about
        write(out / "results.json", merged(earlier, results))

    for name in names:
        stage, left = STAGES[name], budget - (time.monotonic() - begin)
        if reason := "the budget is spent" if left < 1 else stage.unavailable(device):
            update(name, {"state": "not run", "reason": reason, "seconds": 0.0, "rows": []})
        else:
            with tempfile.TemporaryDirectory(prefix="ppa_fast_gpu") as folder:
                place = Place(device, Path(folder))
                update(name, run(stage, place, min(stage.seconds, left), lambda found, n=name: update(n, found)))
                with (out / "log.txt").open("a", encoding="utf-8") as log:
                    log.write(f"===== {name}: {results['stages'][name]['command']}\n{tail(place.log, LOGGED)}\n")
        print(line_of(name, results["stages"][name]), flush=True)
    return results


# --- results ---------------------------------------------------------------------------------------------------------


def read(path: Path) -> Result:
    found: Result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"stages": {}}
    return found


def write(path: Path, results: Result) -> None:
    from ppa_fast.files import write_text

    write_text(path, json.dumps(results, indent=1) + "\n")


def merged(old: Result, new: Result) -> Result:
    """Merges two results. A stage of the newer call replaces the older one if it ran; newer rows replace older ones."""
    stages = dict(old["stages"])
    for name, stage in new["stages"].items():
        if name in stages and stage["state"] == "not run":
            continue
        rows = {key(row): row for row in [*stages.get(name, {"rows": []})["rows"], *stage["rows"]]}
        stages[name] = stage | {"rows": list(rows.values())}
    return {**old, **new, "stages": {name: stages[name] for name in [*STAGES, *stages] if name in stages}}


def key(row: Result) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("model", "name", "op", "shape", "dtype"))


def publish(results: Result, folder: Path) -> Path:
    """Merges results into those of the device in a folder, and draws the pictures again."""
    import report
    import step_report

    slug = re.sub(r"[^a-z0-9]+", "-", results["device"].lower()).strip("-")
    path = folder / f"{slug}.json"
    folder.mkdir(parents=True, exist_ok=True)
    write(path, everything := merged(read(path), results))
    if rows := everything["stages"].get("inductor", everything["stages"].get("kernels", {"rows": []}))["rows"]:
        (folder / f"{slug}.svg").write_text(report.picture(rows, report.heading(rows[0])), encoding="utf-8")
    for model, rows in steps(everything).items():
        (folder / f"{slug}-{model}.svg").write_text(step_report.picture(rows), encoding="utf-8")
    return path


def steps(results: Result) -> dict[str, list[Result]]:
    """Returns the rows of step.py by model, each once, with ratios between the stages."""
    from step_report import compared

    rows: dict[str, dict[str, Result]] = {}
    for name in reversed(STAGES):  # a row in several stages comes from the most important stage
        for row in results["stages"].get(name, {"rows": []})["rows"]:
            if row.get("step_ms"):
                rows.setdefault(row["model"], {})[row["name"]] = row
    return {model: compared(list(found.values())) for model, found in rows.items()}


# --- the summary -----------------------------------------------------------------------------------------------------


def line_of(name: str, stage: Result) -> str:
    said = f"{name}: {stage['state']}" + (f" ({stage['reason']})" if stage["reason"] else "")
    said += f", {stage['seconds']:.0f} s" if stage["seconds"] else ""
    if tested := stage.get("tests"):
        said += ", tests " + ", ".join(f"{count} {what}" for what, count in tested.items() if count is not None)
    if "found" in stage:
        said += f", found {stage['found']}"
    return said[:200]


def summary(results: Result) -> list[str]:
    """Returns a text of at most LINES lines."""
    import profiling
    import report
    import step_report

    stages = results["stages"]
    lines = [f"{results['device']}, torch {results['torch']}, commit {results['commit']}"]
    lines += [line_of(name, stage) for name, stage in stages.items()]
    for name, stage in stages.items():
        lines += [f"failed in {name}: {test}" for test in stage.get("failures", [])[:8]]
    checked = [row for stage in stages.values() for row in stage["rows"] if "right" in row]
    if checked:
        wrong = [f"{row['op']} {row['shape']} {row['dtype']}" for row in checked if not row["right"]]
        lines.append(f"smoke: {len(checked) - len(wrong)} of {len(checked)} calls are right")
        lines += [f"wrong: {call}" for call in wrong[:8]]
    for stage in stages.values():
        if rows := [row for row in stage["rows"] if "floor_ms" in row]:
            lines += [
                "",
                report.ceilings(rows[0]),
                *report.table(rows).splitlines(),
                *report.targets(rows).splitlines(),
            ]
    for rows in steps(results).values():
        lines += ["", *step_report.heading(rows[0]).splitlines(), *step_report.table(rows).splitlines()]
        lines += step_report.targets(rows).splitlines()
    profiles = [row for rows in steps(results).values() for row in rows if row["profile"]]
    for row in profiles[:1]:
        lines += ["", *profiling.text(row["name"], row["profile"]).splitlines()]
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], f"and {len(lines) - LINES + 1} lines more: log.txt"]


# --- main ------------------------------------------------------------------------------------------------------------


def missing(device: str) -> str:
    """Returns why nothing can run here, or ""."""
    try:
        import torch
    except ImportError:
        return f"{sys.executable} has no torch (make gpu PYTHON=...)"
    if device == "cpu" or torch.cuda.is_available():
        return ""
    return f"there is no CUDA device (torch {torch.__version__})"


def facts(device: str) -> Result:
    """Returns facts about this machine for the results; sets the GPU architecture for the build."""
    import torch
    from measuring import commit

    about: Result = {"device": "a rehearsal on a CPU", "torch": torch.__version__, "cuda": torch.version.cuda}
    if device == "cuda":
        about["device"] = torch.cuda.get_device_name()
        os.environ["TORCH_CUDA_ARCH_LIST"] = "{}.{}".format(*torch.cuda.get_device_capability())
    return about | {"commit": commit(ROOT)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build, check and measure on a GPU: see the head of this file.")
    parser.add_argument("--stages", default=",".join(DEFAULT), metavar="A,B", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS", help="of all (default %(default)s)")
    parser.add_argument("--out", type=Path, default=BUILD / "out", metavar="DIR", help="default build/gpu/out")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="DIR", help="only publish what calls wrote there")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal")
    options = parser.parse_args(argv)
    names = options.stages.split(",")
    if unknown := [name for name in names if name not in STAGES]:
        parser.error(f"--stages: found {', '.join(unknown)}, expected some of {', '.join(STAGES)}")
    sys.path.insert(0, str(ROOT))
    if options.merge:
        for folder in options.merge:
            print(publish(read(folder / "results.json"), RESULTS))
        return 0
    if reason := missing(options.device):
        print(f"make gpu: {reason}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the running stage exits too
    options.out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    results = call(names, options.device, options.budget, options.out, facts(options.device))
    if options.device == "cuda":
        publish(results, RESULTS)
    print("\n".join(["", *summary(results), f"{time.monotonic() - begin:.0f} s; {options.out / 'results.json'}"]))
    return 0 if all(stage["state"] == "ok" for stage in results["stages"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
