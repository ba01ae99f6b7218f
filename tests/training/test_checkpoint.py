"""Checkpoints that cannot be written or read: one error that names the file, and always a way on."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

import ppa_fast.training.checkpoint
from ppa_fast.errors import UserError
from ppa_fast.files import remove_folder, write_text
from ppa_fast.settings import Settings
from ppa_fast.training.checkpoint import KEYS, Checkpoints, check, read_state, read_tensors
from ppa_fast.training.metrics import JsonLines, read_lines
from ppa_fast.training.plan import make_plan
from tests.conftest import write_config
from tests.training.attempts import attempt
from tests.training.harness import metrics, run_here

STATE = dict.fromkeys(KEYS - {"files"}, 0)
CONTENT = {"query": {"w": torch.arange(4.0)}, "queue": {"keys": torch.ones(2, 3), "groups": torch.zeros(2)}}
FILES = ("query.safetensors", "queue.safetensors", "state.json")


@pytest.fixture
def saved(tmp_path) -> Checkpoints:
    """Steps 4 and 8, the first the best."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.rewind(0)
    for step in (4, 8):
        checkpoints.save(step, {**STATE, "step": step}, CONTENT, best=step == 4)
    return checkpoints


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


# Writing.


def test_a_checkpoint_lists_its_files(saved):
    path = saved.resume_point()
    assert path == saved.path(8)
    state = read_state(path)
    assert state["step"] == 8
    assert state["files"] == {name: (path / name).stat().st_size for name in FILES[:2]}
    assert torch.equal(read_tensors(path, "query")["w"], CONTENT["query"]["w"])
    assert saved.named("best") == saved.path(4)


@pytest.mark.parametrize(
    ("target", "number"),
    [("save_file", 0), ("save_file", 1), ("sync", 0), ("sync", 1), ("sync", 2), ("rename", 0)],
)
def test_a_save_that_fails_names_the_file_and_leaves_the_one_before_it(saved, monkeypatch, target, number):
    """Whichever of its steps fails; the last is to sync the names of the folders."""
    owner = Path if target == "rename" else ppa_fast.training.checkpoint
    original, calls = getattr(owner, target), itertools.count()

    def fail(*arguments):
        if next(calls) == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments)

    monkeypatch.setattr(owner, target, fail)
    with pytest.raises(UserError, match=rf"^{saved.folder}/\S+: cannot be written: No space left on device$"):
        saved.save(12, {**STATE, "step": 12}, CONTENT, best=True)
    monkeypatch.undo()
    assert not [name for name in names(saved) if name.startswith(".")]
    assert saved.resume_point() == saved.path(8)
    # And the run goes on.
    saved.rewind(8)
    assert "step-00000012" not in names(saved)
    saved.save(12, {**STATE, "step": 12}, CONTENT)
    assert saved.resume_point() == saved.path(12)


def test_a_small_file_is_as_before_where_its_new_text_cannot_be_written(tmp_path, monkeypatch):
    file = tmp_path / "latest"
    write_text(file, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=rf"^{file}: cannot be written: No space left on device$"):
        write_text(file, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]
    assert file.read_text() == "old"


def test_a_folder_is_never_removed_in_part(tmp_path, monkeypatch):
    folder = tmp_path / "step-00000001"
    for name in FILES:
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    monkeypatch.setattr("ppa_fast.files.shutil.rmtree", lambda path, ignore_errors: None)  # killed at once
    remove_folder(folder)
    assert not folder.exists()
    monkeypatch.undo()
    remove_folder(folder)  # what was left goes too, and there is nothing else to do
    assert not any(tmp_path.iterdir())


def test_a_log_on_a_full_disk_names_itself_and_goes_on_later(tmp_path):
    """/dev/full takes no byte."""
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path, -1)
    log.write({"step": 1})
    log._file.close()
    with (
        open("/dev/full", "ab", buffering=0) as log._file,
        pytest.raises(UserError, match=rf"^{path}: cannot be written: No space left on device$"),
    ):
        log.write({"step": 2})
    log = JsonLines(path, 1)
    log.write({"step": 2})
    log.sync()
    assert read_lines(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("line", ['{"step": 2', "[1]", "7", '{"loss": 1}', "\0\0\0"])
def test_a_damaged_line_of_a_log_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    with pytest.raises(UserError, match=rf"^{path}:2: found .*, expected a JSON object with a step"):
        JsonLines(path, 3)
    assert path.read_text().count("\n") == 3


# Going on.


def test_a_checkpoint_that_somebody_removed_is_not_missed(saved):
    """While a run goes on it needs none of its earlier checkpoints."""
    shutil.rmtree(saved.path(4))
    saved.save(12, {**STATE, "step": 12}, CONTENT)
    saved.prune(1)
    assert names(saved) == ["best", "latest", "step-00000012"]
    saved.rewind(12)
    assert saved.named("best") is None
    shutil.rmtree(saved.folder)
    saved.save(16, {**STATE, "step": 16}, CONTENT)
    assert saved.resume_point() == saved.path(16)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = {
    "absent": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": _truncate,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "garbage": lambda path: path.write_bytes(b"\xff" * path.stat().st_size),
    "a folder": _folder,  # what cannot be opened; root may open any file
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_named_with_the_one_that_is_whole(saved, name, damage):
    file = saved.path(8) / name
    DAMAGES[damage](file)
    with pytest.raises(UserError) as caught:
        saved.resume_point()
    message = str(caught.value)
    assert re.match(rf"{file}: (cannot be read: |found [\d,]+ bytes, expected )", message)
    advice = f"step-00000004 is whole; to go on from it: echo step-00000004 > {saved.folder}/latest"
    assert message.endswith("; " + advice)
    # Which is what to do.
    (saved.folder / "latest").write_text("step-00000004\n")
    assert saved.resume_point() == saved.path(4)
    saved.rewind(4)
    assert names(saved) == ["best", "latest", "step-00000004"]


@pytest.mark.parametrize("content", ["", "[]", "null", '{"step": 8}', "{", "\udcff"])
def test_a_state_that_is_none(saved, content):
    (saved.path(8) / "state.json").write_text(content, errors="surrogateescape")
    with pytest.raises(UserError, match=r"state\.json: cannot be read: .*; step-00000004 is whole"):
        saved.resume_point()


def test_nothing_is_whole(saved):
    for step in (4, 8):
        (saved.path(step) / "query.safetensors").unlink()
    with pytest.raises(UserError, match="no other checkpoint here is whole: put a copy in its place, or begin anew"):
        saved.resume_point()


def test_a_latest_that_names_nothing_tells_what_is_whole(saved):
    shutil.rmtree(saved.path(8))
    with pytest.raises(UserError, match=r"latest: names step-00000008, which is not there; .*step-00000004 is whole"):
        saved.resume_point()


def test_a_latest_that_somebody_removed_is_an_error(saved):
    (saved.folder / "latest").unlink()
    with pytest.raises(UserError, match=r"found step-00000008, but no file latest that names it; step-00000008 is who"):
        saved.resume_point()
    assert saved.path(8).is_dir()


def test_a_first_save_that_was_killed_before_latest_moved_is_no_checkpoint(saved):
    (saved.folder / "latest").write_text("")
    assert saved.resume_point() is None
    saved.rewind(0)
    assert names(saved) == ["latest"]


def test_a_run_that_has_not_begun(tmp_path):
    assert Checkpoints(tmp_path / "absent").resume_point() is None


def test_a_run_finds_the_damage_before_it_starts(tiny, tmp_path):
    config = write_config(tmp_path / "ds.json", 16, 8)
    job = {"model": str(tiny.model), "data": str(tiny.store), "deepspeed_config": str(config), "queue_size": 40}
    job |= {"output": str(tmp_path / "run"), "steps": 2, "save_every": 1, "log_every": 1}
    run_here(job)
    check(tmp_path / "run" / "checkpoints" / "step-00000002")
    _truncate(tmp_path / "run" / "checkpoints" / "step-00000002" / "momentum.safetensors")
    with pytest.raises(UserError, match=r"momentum\.safetensors: .*; step-00000001 is whole") as caught:
        make_plan(Settings(**job), 1)
    os.system(str(caught.value).partition("to go on from it: ")[2])
    assert run_here(job)["step"] == 2
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]


# Two ranks: rank 0 cannot write, rank 1 waits for it.


@pytest.mark.slow
def test_a_save_that_fails_ends_both_ranks_and_a_later_call_goes_on(tiny, tmp_path):
    config = write_config(tmp_path / "ds.json", 16, 8, 1, bf16=True)
    job = {"model": str(tiny.model), "data": str(tiny.store), "deepspeed_config": str(config), "queue_size": 40}
    job |= {"output": str(tmp_path / "run"), "steps": 2, "save_every": 2, "log_every": 1, "schedule": "constant"}
    longer = {**job, "steps": 6}
    full, closed, alone, further = ["file_size", 50_000], ["no_permission", "checkpoints"], ["file_size", 50_000], None
    results = attempt(
        [
            {"job": job, "world": 2},
            {"job": longer, "world": 2, "faults": [full, None]},
            {"job": longer, "world": 2, "faults": [closed, None]},
            {"job": longer, "world": 1, "faults": [alone]},
            {"job": longer, "world": 2, "faults": [further, None]},
        ],
        tmp_path / "attempts",
    )
    assert [each["statuses"] for each in results] == [[0, 0], [2, 2], [2, 2], [2], [0, 0]], results
    assert [each["latest"] for each in results] == [*["step-00000002"] * 4, "step-00000006"]
    for result, reason in zip(results[1:4], ["File too large", "Permission denied", "File too large"], strict=True):
        errors = [line for each in result["errors"] for line in each.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, errors
        assert re.match(rf"error: {tmp_path}/run/checkpoints/\S+: cannot be written: .*{reason}", errors[0])
        assert not any("Traceback" in each for each in result["errors"])
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, 7))
    assert not [p for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.startswith(".")]
    assert json.loads((tmp_path / "run/checkpoints/step-00000006/state.json").read_text())["applied"] == 6
