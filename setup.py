"""Builds the native operations; pyproject.toml has the rest, and names this file as the build backend.

    ppa_fast/_C.so         the operations on the CPU      needs a C++ compiler
    ppa_fast/_C_cuda.so    the operations on CUDA         needs nvcc too
    ppa_fast/_packer.*.so  the host packer (pybind11)     one for each Python

Both operation libraries use torch's stable ABI: one build serves every torch from 2.11 on and every Python, whatever
machine it was built on. The build is ninja's: incremental, in ``build/native``. A library that cannot be built is left
out, and a line says why. The package then uses PyTorch's reference implementations.

The build needs the headers of torch. It uses an installed torch, even if pip builds in an isolated environment. (uv and
``python -m build`` hide it.) If it finds none and there is a compiler, the isolated environment gets its own torch.

    PPA_FAST_CUDA=0|1|auto   leave _C_cuda out, insist on it, or build it where nvcc is found (default)
    TORCH_CUDA_ARCH_LIST     default 8.0;9.0;10.0, those that nvcc knows; machine code for each, PTX for the last
    CXX                      default g++, else c++; CXX=none leaves all libraries out
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, ClassVar

from setuptools import Command, Distribution, build_meta, setup
from setuptools.build_meta import *  # noqa: F403  # the hooks of a build backend; those below replace two of them
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
HARNESS = ROOT / "tests" / "csrc"  # runs the CUDA sources on a CPU
BUILD = ROOT / "build" / "native"
ARCHITECTURES = "8.0;9.0;10.0"
TORCH = (2, 11)  # the oldest torch that the libraries load in
TORCH_TARGET = f"0x{TORCH[0]:02x}{TORCH[1]:02x}000000000000"
# The folders to search for packages. pip's isolated build removes site-packages from sys.path, but it can still be
# searched.
PLACES = [*sys.path, sysconfig.get_path("purelib")]

COMMON = ["-std=c++20", "-fPIC", "-g1", f"-I{CSRC / 'include'}", f"-I{CSRC}", "-Wall", "-Wextra"]
COMMON += [f"-fmacro-prefix-map={CSRC}/="]  # messages name files as they stand in the repository


def sources(folder: str) -> list[Path]:
    return [*sorted((CSRC / folder).glob("*.cpp")), *sorted((CSRC / folder).glob("*.cu"))]


def torch_includes(torch: Path) -> list[str]:
    return [f"-isystem {torch / 'include'}", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]


def package_folder(name: str) -> Path | None:
    """Where an installed package lies, without importing it (torch takes seconds)."""
    found = PathFinder.find_spec(name, PLACES)
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


def torch_folder() -> Path | None:
    """Where torch lies, if its version is one that the libraries can be built with."""
    folder = package_folder("torch")
    stated = folder / "version.py" if folder else None
    found = re.search(r"__version__ = '(\d+)\.(\d+)", stated.read_text()) if stated and stated.is_file() else None
    return folder if found and tuple(map(int, found.groups())) >= TORCH else None


def compiler() -> str | None:
    """The command of the C++ compiler, or None if there is none."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++"]
    return next((command for command in candidates if shutil.which(shlex.split(command)[0])), None)


def _torch_requirement() -> list[str]:
    return [f"torch>={TORCH[0]}.{TORCH[1]}"] if compiler() and not torch_folder() else []


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """Called by pip and ``build`` (PEP 517): the packages for an isolated build, besides those of pyproject.toml."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_torch_requirement()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """The same for an editable installation (PEP 660)."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *_torch_requirement()]


def find_nvcc() -> Path | None:
    """The nvcc of CUDA_HOME, the PATH or NVIDIA's wheels; None if there is none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [Path(home) / "bin" / "nvcc"] if home else []
    if on_path := shutil.which("nvcc"):
        places.append(Path(on_path))
    if wheels := package_folder("nvidia"):
        places += sorted(wheels.glob("*/bin/nvcc"))
    return next((place for place in places if place.is_file()), None)


def cuda_root(nvcc: Path) -> Path | None:
    """The toolkit of an nvcc, as nvcc itself names it: the one on the PATH may be a script or a link."""
    dry = subprocess.run([str(nvcc), "--dryrun", "-x", "cu", "/dev/null"], capture_output=True, text=True)
    top = [line.split("TOP=", 1)[1].strip() for line in dry.stderr.splitlines() if "TOP=" in line]
    roots = [Path(top[0]).resolve()] if top else []
    roots.append(nvcc.resolve().parent.parent)
    return next((root for root in roots if (root / "include" / "cuda_runtime.h").is_file()), None)


def architectures(nvcc: Path) -> list[str]:
    """The targets: machine code (``sm_90``) for each entry of TORCH_CUDA_ARCH_LIST, and PTX (``compute_90``) for the
    last. Without that variable: the entries of the default list that this nvcc knows."""
    given = os.environ.get("TORCH_CUDA_ARCH_LIST")
    listed = given or ARCHITECTURES
    numbers = [entry.removesuffix("+PTX").replace(".", "") for entry in listed.replace(" ", ";").split(";") if entry]
    if not numbers or not all(number.rstrip("af").isdigit() for number in numbers):
        raise SystemExit(f"TORCH_CUDA_ARCH_LIST: found {listed!r}, expected numbers such as 8.0;9.0")
    if not given:
        known = subprocess.run([str(nvcc), "--list-gpu-code"], capture_output=True, text=True).stdout.split()
        numbers = [number for number in numbers if f"sm_{number}" in known] or numbers
    return [*(f"sm_{number}" for number in numbers), f"compute_{numbers[-1]}"]


def find_ninja() -> str | None:
    """The program ninja: on the PATH, as in an isolated build, or beside this Python."""
    return shutil.which("ninja", path=os.pathsep.join([os.environ.get("PATH", ""), sysconfig.get_path("scripts")]))


class Ninja:
    """A build.ninja in the making."""

    def __init__(self, cxx: str, nvcc: Path | None, folder: Path = BUILD) -> None:
        self.folder = folder
        self.lines = ["ninja_required_version = 1.5"]
        self.targets: list[str] = []
        self._rule("cxx", f"{cxx} -MMD -MF $out.d $flags -c $in -o $out")
        self._rule("link", f"{cxx} -shared $in -o $out $flags")
        if nvcc:
            # ptxas reports registers, shared memory and spills. The tests compare this log with their table.
            command = f"{nvcc} -MD -MF $out.d $flags -c $in -o $out"
            self._rule("nvcc", f"{command} > $out.log 2>&1 || (cat $out.log >&2; false)")

    def _rule(self, name: str, command: str) -> None:
        deps = "" if name == "link" else "\n  depfile = $out.d\n  deps = gcc"
        self.lines += [f"rule {name}", f"  command = {command}{deps}", f"  description = {name} $out"]

    def objects(self, rule: str, folder: str, sources: list[Path], flags: list[str]) -> list[str]:
        outputs = [f"{folder}/{source.name}.o" for source in sources]
        for source, output in zip(sources, outputs, strict=True):
            self.lines += [f"build {output}: {rule} {_escape(source)}", f"  flags = {' '.join(flags)}"]
        return outputs

    def library(self, output: Path, objects: list[str], flags: list[str]) -> None:
        self.lines += [f"build {_escape(output)}: link {' '.join(objects)}", f"  flags = {' '.join(flags)}"]
        self.targets.append(_escape(output))

    def run(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        content = "\n".join([*self.lines, f"default {' '.join(self.targets)}", ""])
        path = self.folder / "build.ninja"
        if not path.exists() or path.read_text() != content:
            path.write_text(content)
        if subprocess.run([find_ninja() or "ninja", "-C", str(self.folder)]).returncode:
            raise SystemExit(
                "ppa-fast: the native operations did not compile; the compiler's messages are above. They need a "
                "C++20 compiler, such as g++ 11 (CXX=g++-11 selects one), and CUDA 12 or newer. PPA_FAST_CUDA=0 skips "
                "_C_cuda.so. CXX=none skips all libraries, and the PyTorch reference is used."
            )


def _escape(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


class BuildNative(build_ext):
    """``build_ext`` by ninja. The libraries stand beside ``ppa_fast/__init__.py``, in a checkout and in a wheel."""

    def run(self) -> None:
        # An absolute path, because setuptools gives one relative to its working folder, and ninja runs in another
        # folder.
        root = ROOT if self.inplace or self.editable_mode else Path(self.build_lib).resolve()
        package = root / "ppa_fast"
        wanted = os.environ.get("PPA_FAST_CUDA", "auto")
        if wanted not in ("0", "1", "auto"):
            raise SystemExit(f"PPA_FAST_CUDA: found {wanted!r}, expected 0, 1 or auto")
        cxx, torch = compiler(), torch_folder()
        needs = {
            "C++ compiler (such as g++; CXX selects one)": cxx,
            f"torch {TORCH[0]}.{TORCH[1]} or newer (pip install torch)": torch,
            "ninja (pip install ninja)": find_ninja(),
        }
        if cxx is None or torch is None or None in needs.values():
            missing = next(name for name, found in needs.items() if found is None)
            if wanted == "1":
                raise SystemExit(f"PPA_FAST_CUDA=1, but there is no {missing}")
            return print(f"ppa-fast: the native operations are not built: no {missing}")
        nvcc = find_nvcc() if wanted != "0" else None
        cuda = cuda_root(nvcc) if nvcc else None
        if wanted == "1" and not cuda:
            found = f"{nvcc} without its headers" if nvcc else "no nvcc (CUDA_HOME, PATH, the nvidia-cuda-nvcc wheels)"
            raise SystemExit(f"PPA_FAST_CUDA=1, but there is {found}")
        package.mkdir(parents=True, exist_ok=True)
        return self.build(package, cxx, torch, nvcc if cuda else None, cuda)

    def build(self, package: Path, cxx: str, torch: Path, nvcc: Path | None, cuda: Path | None) -> None:
        ninja = Ninja(cxx, nvcc)
        hidden = [*COMMON, "-O3", "-fvisibility=hidden", "-ffp-contract=off"]
        binding = [*hidden, *torch_includes(torch)]
        link = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]

        cpu = ninja.objects("cxx", "cpu_bindings", sources("bindings"), [*binding, "-DPPA_BACKEND_CPU"])
        cpu += ninja.objects("cxx", "cpu", sources("cpu"), hidden)
        ninja.library(package / "_C.so", cpu, link)

        pybind11, headers = package_folder("pybind11"), Path(sysconfig.get_path("include"))
        if pybind11 is None or not (headers / "Python.h").is_file():
            missing = "pybind11 (pip install pybind11)" if pybind11 is None else "Python.h (Debian: python3-dev)"
            print(f"ppa-fast: _packer is not built: no {missing}")
        else:
            python = [f"-isystem {headers}", f"-isystem {pybind11 / 'include'}"]
            packer = ninja.objects("cxx", "host", sources("host"), [*hidden, *python])
            ninja.library(package / f"_packer{sysconfig.get_config_var('EXT_SUFFIX')}", packer, ["-pthread"])

        if nvcc and cuda:
            device = ["-std=c++20", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xptxas=-v", "-lineinfo"]
            device += [f"-I{CSRC / 'include'}", f"-I{CSRC}"]
            codes = architectures(nvcc)
            device += [f"-gencode=arch=compute_{code.partition('_')[2]},code={code}" for code in codes]
            named = [f"-isystem {cuda / 'include'}", f"-DPPA_ARCHITECTURES='\"{' '.join(codes)}\"'"]
            gpu = ninja.objects("cxx", "cuda_bindings", sources("bindings"), [*binding, *named])
            gpu += ninja.objects("nvcc", "cuda", sources("cuda"), device)
            folder = next((f for f in ("lib64", "lib") if (cuda / f / "libcudart_static.a").exists()), "lib")
            static = [f"-L{cuda / folder}", "-lcudart_static", "-ldl", "-lrt", "-pthread"]
            ninja.library(package / "_C_cuda.so", gpu, [*link, *static])
        else:
            print(
                "ppa-fast: _C_cuda is not built: PPA_FAST_CUDA=0, or no nvcc with its headers (CUDA_HOME, PATH, the "
                "nvidia-cuda-nvcc wheels)"
            )
        ninja.run()


class BuildSimt(Command):
    """``build_simt``: the CUDA sources for the CPU, on the SIMT harness and under the sanitizers; for tests only."""

    description = "build the CUDA kernels for the SIMT harness (tests)"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = []

    def initialize_options(self) -> None:
        pass

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        torch = package_folder("torch")
        if torch is None:
            raise SystemExit("build_simt: found no torch, expected it: pip install torch")
        ninja = Ninja(compiler() or "g++", None, BUILD / "simt")
        checked = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
        flags = [*COMMON, f"-I{HARNESS}", "-O1", "-DPPA_SIMT", "-ffp-contract=off", "-Wno-unknown-pragmas", *checked]
        objects = ninja.objects("cxx", "bindings", sources("bindings"), [*flags, *torch_includes(torch)])
        objects += ninja.objects("cxx", "cuda", sources("cuda"), ["-x c++", *flags])
        objects += ninja.objects("cxx", "harness", [HARNESS / "simt" / "simt.cpp"], flags)
        link = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10", "-ldl", *checked]
        ninja.library(BUILD / "simt" / "_C_simt.so", objects, link)
        ninja.run()


class NativeDistribution(Distribution):
    """A distribution with extension modules, although none are listed, because ninja builds them."""

    def has_ext_modules(self) -> bool:
        return True


if __name__ == "__main__":  # a frontend imports this file for its hooks; setuptools' hooks then run it
    setup(cmdclass={"build_ext": BuildNative, "build_simt": BuildSimt}, distclass=NativeDistribution)
