from __future__ import annotations

import shutil

import torch

from ppa_fast import doctor
from ppa_fast.ops import library


def test_versions_and_backends_are_reported(capsys):
    doctor.main()
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    found = {what.strip(): finding.strip() for what, finding in lines.items()}
    assert torch.__version__ in found["torch"]
    assert found["operations on cpu"] == (
        "native (_C.so)"
        if library.backend("cpu") == "native"
        else f"PyTorch reference: {library.why_not_native('cpu')}"
    )
    assert "gloo yes" in found["collectives"]
    assert {"deepspeed", "packer", "CUDA library", "NVIDIA driver"} <= found.keys()


def test_missing_tools_are_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setitem(library.LIBRARIES, "cuda", tmp_path / "_C_cuda.so")
    assert shutil.which("nvcc") is None
    found = dict(doctor.report())
    assert found["nvcc"] == "nvcc is not on the PATH"
    assert found["C++ compiler"] == "no-such-compiler is not on the PATH"
    assert found["CUDA library"] == "not built; building it needs nvcc"
    assert doctor._version("no-such-package") == "not installed"


def test_an_unreadable_cuda_library_is_reported(monkeypatch, tmp_path):
    (tmp_path / "_C_cuda.so").write_bytes(b"no library")
    monkeypatch.setitem(library.LIBRARIES, "cuda", tmp_path / "_C_cuda.so")
    assert dict(doctor.report())["CUDA library"].startswith("unknown (")


class Installed:
    """Metadata of an installed package."""

    origin: str | None = '{"url": "file:///sources/ppa-fast"}'

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.origin


def test_the_next_step_is_reported(monkeypatch, tmp_path):
    monkeypatch.delenv("PPA_FAST_BACKEND", raising=False)
    monkeypatch.setattr(doctor.packing, "WHY_NOT_NATIVE", "")
    monkeypatch.setattr(library, "why_not_native", lambda device: None)
    assert dict(doctor.report())["next"] == "everything is built: run make demo or ppa-fast --help"

    monkeypatch.setattr(library, "why_not_native", lambda device: "not built")
    monkeypatch.setenv("CXX", "no-such-compiler")
    build = "python setup.py build_ext --inplace"
    assert doctor._next_step() == f"install no-such-compiler and put it on the PATH, then {build}"
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._next_step() == f"install no-such-compiler and nvcc and put them on the PATH, then {build}"

    monkeypatch.setattr(library, "PACKAGE", tmp_path / "site-packages" / "ppa_fast")
    monkeypatch.setattr(doctor, "distribution", lambda name: Installed())
    again = "pip install --force-reinstall --no-deps --no-cache-dir"
    assert doctor._next_step().endswith(f"then {again} file:///sources/ppa-fast")
    monkeypatch.setattr(Installed, "origin", None)  # from an index
    assert doctor._next_step().endswith(f"then {again} ppa-fast")

    monkeypatch.setenv("PPA_FAST_BACKEND", "reference")
    assert doctor._next_step().startswith("unset PPA_FAST_BACKEND")
