from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import SafetensorError

from ppa_fast.errors import UserError
from ppa_fast.tasks.trainer import train


def failing(folder: Path, error: Exception) -> Any:
    """A Trainer whose training raises ``error``."""

    def fail(resume_from_checkpoint: str | None) -> None:
        raise error

    return SimpleNamespace(
        args=SimpleNamespace(output_dir=str(folder)), remove_callback=lambda callback: None, train=fail
    )


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
    ],
    ids=["system", "safetensors", "torch"],
)
def test_a_full_disk_names_the_folder_of_the_checkpoints(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}: cannot be written: no space is left on the device"):
        train(failing(tmp_path, error), None)


def test_another_error_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^a fault$"):
        train(failing(tmp_path, RuntimeError("a fault")), None)
