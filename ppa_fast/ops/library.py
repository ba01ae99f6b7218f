"""Registers the operations and selects their backends.

Every operation is a torch operator ``ppa_fast::name`` with a schema and a fake kernel in Python, a plain PyTorch
reference for any device, and native kernels for CPU and CUDA in two libraries. torch's dispatcher prefers the native
kernels if they are built. The import never fails: without the libraries, or with ``PPA_FAST_BACKEND=reference``, the
reference runs.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ppa_fast.errors import UserError

PACKAGE = Path(__file__).resolve().parent.parent
LIBRARIES = {"cpu": PACKAGE / "_C.so", "cuda": PACKAGE / "_C_cuda.so"}


@dataclass(frozen=True)
class Operation:
    """One operator. A call runs the native kernel for the tensors' device if available, else ``reference``."""

    name: str
    schema: str
    reference: Callable[..., Any]
    fake: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        if _namespace == "reference":
            return self.reference(*arguments)
        if torch.cuda.is_initialized():
            why_not_native("cuda")
        return getattr(getattr(torch.ops, _namespace), self.name)(*arguments)


OPERATIONS: dict[str, Operation] = {}
_namespace = "ppa_fast"
_library = torch.library.Library("ppa_fast", "DEF")


def operation(schema: str, reference: Callable[..., Any], fake: Callable[..., Any]) -> Operation:
    """Registers ``ppa_fast::schema`` with its reference and its fake kernel (shapes and dtypes only)."""
    new = OPERATIONS[schema.split("(")[0]] = Operation(schema.split("(")[0], schema, reference, fake)
    declare(_library, new)
    _library.impl(new.name, reference, "CompositeExplicitAutograd")
    return new


def declare(library: torch.library.Library, op: Operation) -> None:
    """Defines an operation's schema and fake kernel in a library, without real kernels."""
    library.define(op.schema)
    torch.library.register_fake(f"{library.ns}::{op.name}", op.fake, lib=library)


@contextmanager
def using(namespace: str) -> Iterator[None]:
    """Uses the operations of another namespace: "reference", or one whose kernels a test has loaded."""
    global _namespace
    before, _namespace = _namespace, namespace
    try:
        yield
    finally:
        _namespace = before


def _requested_backend() -> str:
    wanted = os.environ.get("PPA_FAST_BACKEND", "native")
    if wanted not in ("native", "reference"):
        raise UserError(f"PPA_FAST_BACKEND: found {wanted!r}, expected native or reference")
    return wanted


@cache
def why_not_native(device: str) -> str:
    """Loads the native kernels of a device type ("cpu", "cuda"). Returns "" on success, otherwise the reason."""
    if _requested_backend() == "reference":
        return "PPA_FAST_BACKEND=reference"
    path = LIBRARIES.get(device)
    if path is None:
        return f"no native kernels for {device}"
    if device == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    if not path.exists():
        return f"{path.name} is not built"
    if device == "cuda" and (unserved := _unsupported_device(architectures(path))):
        return f"{path.name} is built for {architectures(path)}, not for {unserved}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:  # built for another system, or an incomplete file
        return f"{path.name} cannot be loaded: {error}"
    return ""


def architectures(path: Path) -> str:
    """The code in a CUDA library, such as ``sm_80 sm_90 compute_90``: machine code (sm) and PTX (compute)."""
    try:
        describe = ctypes.CDLL(str(path)).ppa_architectures
    except (OSError, AttributeError) as error:
        return f"unknown ({error})"
    describe.restype = ctypes.c_char_p
    text: bytes = describe()
    return text.decode()


def serves(built: str, major: int, minor: int) -> bool:
    """Whether a library with this code runs on compute capability major.minor. It needs machine code of the same major
    and the same or a lower minor version, or PTX of the same or a lower capability."""
    for entry in built.split():
        kind, _, number = entry.partition("_")
        if not number.isdigit():
            continue
        has = divmod(int(number), 10)
        if (kind == "sm" and has[0] == major and has[1] <= minor) or (kind == "compute" and has <= (major, minor)):
            return True
    return False


def _unsupported_device(built: str) -> str:
    """The first CUDA device that the library does not support, or ""."""
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        if not serves(built, major, minor):
            return f"{torch.cuda.get_device_name(index)} (sm_{major}{minor})"
    return ""


def backend(device: str) -> str:
    """The backend for tensors of this device type: "native" or "reference"."""
    return "reference" if _namespace == "reference" or why_not_native(device) else "native"


why_not_native("cpu")  # CUDA's library is loaded on first use, because querying the devices initializes CUDA
