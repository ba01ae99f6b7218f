"""``ppa-fast doctor``: reports installed packages, built libraries and the backend of each device."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution, version

import torch
import torch.distributed as dist

from ppa_fast.data.loading import packing
from ppa_fast.ops import library
from ppa_fast.version import __version__

PACKAGES = ("deepspeed", "transformers", "tokenizers", "numpy", "pyarrow")


def report() -> list[tuple[str, str]]:
    """Returns (subject, finding) in the order of printing; a missing component is a finding, not an error."""
    return [
        ("ppa-fast", f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"),
        ("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}, {torch.get_num_threads()} CPU threads"),
        *((name, _version(name)) for name in PACKAGES),
        ("collectives", ", ".join(f"{name} {'yes' if there() else 'no'}" for name, there in COLLECTIVES.items())),
        ("C++ compiler", _line(os.environ.get("CXX") or "g++", "--version")),
        ("nvcc", _line("nvcc", "--version", containing="release")),
        ("NVIDIA driver", _line("nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader")),
        ("operations on cpu", _operations("cpu")),
        ("operations on cuda", _operations("cuda")),
        ("CUDA library", _cuda_library()),
        ("packer", f"NumPy: {packing.WHY_NOT_NATIVE}" if packing.WHY_NOT_NATIVE else "native"),
        ("next", _next_step()),
    ]


COLLECTIVES: dict[str, Callable[[], bool]] = {
    "gloo": lambda: dist.is_available() and dist.is_gloo_available(),
    "nccl": lambda: dist.is_available() and dist.is_nccl_available(),
}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _line(*command: str, containing: str = "") -> str:
    """Returns the first line of a command's output that contains ``containing``."""
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not on the PATH"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip() and containing in line]
    return lines[0] if lines else f"{command[0]} printed nothing"


def _operations(device: str) -> str:
    reason = library.why_not_native(device)
    return f"PyTorch reference: {reason}" if reason else f"native ({library.LIBRARIES[device].name})"


def _cuda_library() -> str:
    path = library.LIBRARIES["cuda"]
    if not path.exists():
        return "not built; building it needs nvcc"
    built = library.architectures(path)
    if built.startswith("unknown"):
        return built
    stream = "found" if ctypes.CDLL(str(path)).ppa_finds_torch_stream() else "not found: this torch has no CUDA"
    return f"{path.name} for {built}; torch's CUDA stream {stream}"


def _next_step() -> str:
    """Returns the next step: build the native operations for the available devices, then start a first run."""
    if os.environ.get("PPA_FAST_BACKEND") == "reference":
        return "unset PPA_FAST_BACKEND, which forces the PyTorch reference"
    cuda = torch.cuda.is_available() and library.why_not_native("cuda")
    if not cuda and not library.why_not_native("cpu") and not packing.WHY_NOT_NATIVE:
        return "everything is built: run make demo or ppa-fast --help"
    needed = [os.environ.get("CXX") or "g++"] + ["nvcc"] * bool(cuda)
    missing = [program for program in needed if shutil.which(program) is None]
    them = "them" if len(missing) > 1 else "it"
    install = f"install {' and '.join(missing)} and put {them} on the PATH, then " if missing else ""
    return install + _build_command()


def _build_command() -> str:
    """Returns the command that builds the native operations: in this checkout, or by installing the package again."""
    if (library.PACKAGE.parent / "setup.py").exists():
        return "python setup.py build_ext --inplace"
    try:
        origin = json.loads(distribution("ppa-fast").read_text("direct_url.json") or "{}").get("url", "ppa-fast")
    except PackageNotFoundError:
        origin = "ppa-fast"
    return f"pip install --force-reinstall --no-deps --no-cache-dir {shlex.quote(origin)}"


def main() -> None:
    """Prints the report, one line for each finding."""
    rows = report()
    width = max(len(what) for what, _ in rows)
    for what, finding in rows:
        print(f"{what:<{width}}  {finding}")
