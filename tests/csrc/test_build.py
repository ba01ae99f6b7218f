"""What setup.py builds with and without a compiler, torch and CUDA."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from ast import literal_eval
from zipfile import ZipFile

import pytest

from ppa_fast.ops import library
from tests.csrc.simt import ROOT

CUDA = library.LIBRARIES["cuda"]
needs_cuda_library = pytest.mark.skipif(not CUDA.exists(), reason="_C_cuda is not built here")


def build(tmp_path, **environment) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path / "out")]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_a_build_without_a_compiler_prints_a_note_and_succeeds(tmp_path):
    done = build(tmp_path, PATH=str(tmp_path), CXX="")
    assert done.returncode == 0, done.stderr
    assert "not built: no C++ compiler" in done.stdout
    assert not list((tmp_path / "out").rglob("*.so"))


PROGRAMS = {
    "a broken compiler": "echo no C++ 20 >&2; exit 1",
    # It writes empty objects, so that the hooks and the order of a build are tested in seconds.
    "a compiler": 'while [ $# -gt 0 ]; do [ "$1" = -o ] && : > "$2"; [ "$1" = -MF ] && echo x: > "$2"; shift; done',
}


@pytest.fixture
def sources(tmp_path):
    """A copy of what a build needs, and a folder of programs with the compilers of PROGRAMS."""
    copy = tmp_path / "sources"
    for folder in ("csrc", "ppa_fast"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    for name, text in PROGRAMS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "g++").write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name / "g++").chmod(0o755)
    return copy


def requested(sources, **environment) -> list[str]:
    """What an isolated build of a wheel installs besides pyproject.toml's requirements."""
    script = "import sys; sys.path.insert(0, '.'); import setup; print(setup.get_requires_for_build_wheel())"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=sources, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return literal_eval(done.stdout.splitlines()[-1])


def test_an_isolated_build_gets_a_torch_if_there_is_a_compiler_and_none_is_installed(sources, tmp_path):
    compiler = str(tmp_path / "a compiler")
    assert requested(sources, PATH=compiler, CXX="") == []  # this Python has torch
    setup, places = (sources / "setup.py").read_text(), 'PLACES = [*sys.path, sysconfig.get_path("purelib")]'
    assert places in setup
    (sources / "setup.py").write_text(setup.replace(places, "PLACES = ['site']"))
    assert requested(sources, PATH=compiler, CXX="") == ["torch>=2.11"]
    (sources / "site" / "torch").mkdir(parents=True)
    (sources / "site" / "torch" / "__init__.py").touch()
    (sources / "site" / "torch" / "version.py").write_text("__version__ = '2.10.1+cpu'\n")
    assert requested(sources, PATH=compiler, CXX="") == ["torch>=2.11"]
    assert requested(sources, PATH=str(tmp_path), CXX="") == []  # without a compiler, it would be of no use


def test_a_wheel_has_the_libraries(sources, tmp_path):
    pytest.importorskip("wheel")
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(tmp_path)]
    path = f"{tmp_path / 'a compiler'}{os.pathsep}{os.defpath}"
    environment = os.environ | {"PATH": path, "CXX": "", "PPA_FAST_CUDA": "0"}
    done = subprocess.run(command, cwd=sources, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = {name.split(".")[0] for name in ZipFile(wheel).namelist() if name.endswith(".so")}
    assert names >= {"ppa_fast/_C"}
    assert "ppa_fast/_packer" in names or "_packer is not built" in done.stdout


def test_a_failed_compilation_ends_with_what_to_do(sources, tmp_path):
    pytest.importorskip("ninja")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path / "out")]
    path = f"{tmp_path / 'a broken compiler'}{os.pathsep}{os.defpath}"
    environment = os.environ | {"PATH": path, "CXX": "", "PPA_FAST_CUDA": "0"}
    done = subprocess.run(command, cwd=sources, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ppa-fast: the native operations did not compile")
    assert "CXX=none skips all libraries" in last


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PPA_FAST_CUDA": "yes"}, "PPA_FAST_CUDA: found 'yes', expected 0, 1 or auto"),
        ({"PPA_FAST_CUDA": "1", "CXX": "", "PATH": "/nowhere"}, "PPA_FAST_CUDA=1, but there is no C++ compiler"),
        ({"PPA_FAST_CUDA": "1", "CXX": "none"}, "PPA_FAST_CUDA=1, but there is no C++ compiler"),
        ({"PPA_FAST_CUDA": "1", "CXX": sys.executable, "PATH": "/nowhere", "CUDA_HOME": ""}, "but there is no nvcc"),
        ({"PPA_FAST_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "hopper"}, "TORCH_CUDA_ARCH_LIST: found 'hopper'"),
    ],
)
def test_an_impossible_request_is_an_error(tmp_path, environment, message):
    if "hopper" in environment.values() and not CUDA.exists():
        pytest.skip("no nvcc")
    done = build(tmp_path, **environment)
    assert done.returncode != 0
    assert message in done.stderr + done.stdout


@needs_cuda_library
def test_the_cuda_library_loads_without_cuda_and_finds_torchs_stream_if_present(tmp_path):
    """A CUDA build of torch loads libtorch_cuda.so privately. A stub of that name replaces it here."""
    stub = tmp_path / "libtorch_cuda.so"
    source = "extern int aoti_torch_get_current_cuda_stream(int d, void** s) { *s = 0; return d; }"
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(stub), "-Wl,-soname,libtorch_cuda.so"]
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    subprocess.run(command, input=source, text=True, check=True)
    check = f"""
import ctypes, torch
if torch.version.cuda is None:
    before = ctypes.CDLL({str(CUDA)!r}).ppa_finds_torch_stream()
    ctypes.CDLL({str(stub)!r}, mode=ctypes.RTLD_LOCAL)
    print(before, ctypes.CDLL({str(CUDA)!r}).ppa_finds_torch_stream())
else:
    print(0, ctypes.CDLL({str(CUDA)!r}).ppa_finds_torch_stream())
torch.ops.load_library({str(CUDA)!r})
"""
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "1"]


@pytest.mark.parametrize("path", [path for path in library.LIBRARIES.values() if path.exists()], ids=lambda p: p.name)
def test_the_libraries_use_only_torchs_stable_interface(path):
    """They use no C++ symbol of c10, ATen or libtorch_cuda, so that they load with other versions of torch."""
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    listed = subprocess.run(["nm", "-D", "--undefined-only", str(path)], capture_output=True, text=True, check=True)
    names = [line.split()[-1] for line in listed.stdout.splitlines()]
    assert any(name.startswith("aoti_torch_") for name in names)
    foreign = [n for n in names if "c10" in n or "N2at" in n or "torch5" in n or n.startswith("cuda")]
    assert foreign == []
