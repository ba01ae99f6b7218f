"""New folders appear complete or not at all, and a failed write names the file and the reason."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from ppa_fast.errors import UserError, input_error
from ppa_fast.files import new_folder, write_errors

FULL = "no space is left on the device; free some space and run the same command again"
FULL_DISKS = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    Exception("No space left on device (os error 28)"),  # tokenizers
    RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0"),  # torch.save
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
]


@pytest.mark.parametrize("error", FULL_DISKS, ids=str)
def test_a_full_disk_is_called_so_whatever_library_writes(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(UserError) as caught, write_errors(tmp_path / "file"):
        raise error
    assert str(caught.value) == f"{tmp_path}/file: cannot be written: {FULL}"
    assert input_error(error) == f"the output cannot be written: {FULL}"


def test_other_errors_are_as_they_were(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^a fault$"), write_errors(tmp_path):
        raise RuntimeError("a fault")
    assert input_error(RuntimeError("a fault")) is None
    assert input_error(OSError("no number")) is None


@pytest.mark.parametrize("kind", ["new", "empty", "link", "link to nothing", "in new folders"])
def test_a_new_folder(tmp_path: Path, kind: str) -> None:
    out, place = tmp_path / "out", tmp_path / "out"
    if kind == "empty":
        out.mkdir()
    elif kind.startswith("link"):
        place = tmp_path / "elsewhere"
        out.symlink_to(place)
        if kind == "link":
            place.mkdir()
    elif kind == "in new folders":
        out = place = tmp_path / "a" / "b" / "out"
    with new_folder(out) as folder:
        (folder / "file").write_text("x")
        assert not (place / "file").exists()
    assert [path.name for path in place.iterdir()] == ["file"]
    assert out.is_symlink() == kind.startswith("link")
    assert [path.name for path in place.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("function", "answer", "reason"),
    [("os.path.ismount", True, "is a mount point"), ("os.access", False, r"is in /\S+, which is read-only")],
)
def test_a_folder_that_cannot_be_replaced_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, answer: bool, reason: str
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(function, lambda *arguments: answer)
    message = rf"^{tmp_path}/out: {reason}, so .*; expected a folder in it: {tmp_path}/out/NAME$"
    with pytest.raises(UserError, match=message), new_folder(tmp_path / "out"):
        pytest.fail("the work began")


def test_a_new_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}/out: cannot be written: {FULL}"), new_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"file/out: cannot be written: Not a directory"),
        new_folder(tmp_path / "file/out"),
    ):
        pass
