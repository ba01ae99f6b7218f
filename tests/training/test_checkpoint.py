"""Checkpoints that cannot be written or read: one error that names the file, and a remedy."""

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
from safetensors import SafetensorError

import ppa_fast.training.checkpoint
from ppa_fast.errors import UserError
from ppa_fast.files import remove_folder, write_text
from ppa_fast.settings import Settings
from ppa_fast.training import preflight
from ppa_fast.training.checkpoint import KEYS, Checkpoints, checksum, read_state, read_tensors
from ppa_fast.training.json_lines import JsonLines, read_lines
from tests.conftest import write_config
from tests.training.harness import metrics, run_here, tensors
from tests.training.retries import attempt

FULL = "no space is left on the device; free some space and run the same command again"
STATE = dict.fromkeys(KEYS - {"files"}, 0)
CONTENT = {"query": {"w": torch.arange(4.0)}, "queue": {"keys": torch.ones(2, 3), "groups": torch.zeros(2)}}
FILES = ("query.safetensors", "queue.safetensors", "state.json")


@pytest.fixture
def saved(tmp_path) -> Checkpoints:
    """Steps 4 and 8; the first is the best."""
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
def test_a_failed_save_names_the_file_and_keeps_the_previous_checkpoint(saved, monkeypatch, target, number):
    """Each operation of a save can fail; the last one syncs the folder."""
    owner = Path if target == "rename" else ppa_fast.training.checkpoint
    original, calls = getattr(owner, target), itertools.count()

    def fail(*arguments):
        if next(calls) == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments)

    monkeypatch.setattr(owner, target, fail)
    with pytest.raises(
        UserError,
        match=rf"^{saved.folder}/\S+: cannot be written: {FULL}$",
    ):
        saved.save(12, {**STATE, "step": 12}, CONTENT, best=True)
    monkeypatch.undo()
    assert not [name for name in names(saved) if name.startswith(".")]
    assert saved.resume_point() == saved.path(8)
    # The run can continue.
    saved.rewind(8)
    assert "step-00000012" not in names(saved)
    saved.save(12, {**STATE, "step": 12}, CONTENT)
    assert saved.resume_point() == saved.path(12)


def test_a_small_file_is_unchanged_if_its_new_text_cannot_be_written(tmp_path, monkeypatch):
    file = tmp_path / "latest"
    write_text(file, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        UserError,
        match=rf"^{file}: cannot be written: {FULL}$",
    ):
        write_text(file, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]
    assert file.read_text() == "old"


def test_a_folder_is_never_removed_partially(tmp_path, monkeypatch):
    folder = tmp_path / "step-00000001"
    for name in FILES:
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    monkeypatch.setattr("ppa_fast.files.shutil.rmtree", lambda path, ignore_errors: None)  # killed immediately
    remove_folder(folder)
    assert not folder.exists()
    monkeypatch.undo()
    remove_folder(folder)  # the remainder is removed too, and no other work is left
    assert not any(tmp_path.iterdir())


def test_a_log_on_a_full_disk_is_named_and_continues_later(tmp_path):
    """/dev/full accepts no byte."""
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path, -1)
    log.write({"step": 1})
    log._file.close()
    with (
        open("/dev/full", "ab", buffering=0) as log._file,
        pytest.raises(
            UserError,
            match=rf"^{path}: cannot be written: {FULL}$",
        ),
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


# Resuming.


def test_a_removed_earlier_checkpoint_is_not_needed(saved):
    """A running run needs none of its earlier checkpoints."""
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
    "a folder": _folder,  # unreadable files; root can open any file
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(saved, name, damage, caplog, figure):
    figure("damaged checkpoints")
    file = saved.path(8) / name
    DAMAGES[damage](file)
    assert saved.resume_point() == saved.path(4)
    (message,) = caplog.messages
    warnings: list[str] = []
    assert saved.resume_point(warnings.append) == saved.path(4)
    assert warnings == caplog.messages == [message]  # not logged again
    assert re.match(rf"{file}: (cannot be read: |found [\d,]+ bytes, expected )", message)
    assert message.endswith("; resuming from step-00000004, the newest intact checkpoint before it")
    saved.rewind(4)
    assert names(saved) == ["best", "latest", "step-00000004"]


@pytest.mark.parametrize("name", FILES[:2])
def test_a_flipped_bit_in_a_tensor_is_found(saved, name, caplog, figure):
    """Every byte of a file, header included, one bit at a time: the size and the form of the file stay the same."""
    file = saved.path(8) / name
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for at in range(len(whole)):
        figure("damaged checkpoints")
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        caplog.clear()
        found = saved.resume_point()
        if at >= header:
            assert found == saved.path(4)
            assert caplog.messages[0].startswith(f"{file}: found other bytes than were written: its checksum differs")
        elif found == saved.path(8):  # a space of the header, which has no meaning
            assert whole[at : at + 1] == b" "
    file.write_bytes(whole)
    assert saved.resume_point() == saved.path(8)


def test_a_checkpoint_before_the_damaged_ones_is_taken_even_if_two_are_damaged(saved, caplog):
    saved.save(12, {**STATE, "step": 12}, CONTENT)
    for step in (8, 12):
        _truncate(saved.path(step) / "query.safetensors")
    assert saved.resume_point() == saved.path(4)
    assert str(saved.path(12) / "query.safetensors") in caplog.text


def test_a_checkpoint_of_an_earlier_version_has_no_checksums(saved, caplog):
    state = json.loads((saved.path(8) / "state.json").read_text())
    del state["checksums"]
    (saved.path(8) / "state.json").write_text(json.dumps(state))
    assert saved.resume_point() == saved.path(8)
    assert not caplog.messages


def test_a_tensor_that_is_read_for_an_export_is_checked(saved):
    file = saved.path(8) / "query.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)
    with pytest.raises(UserError, match=rf"^{file}: found other bytes than were written"):
        read_tensors(saved.path(8), "query")


def test_a_checksum_covers_names_types_shapes_and_elements():
    tensors = {
        "a": torch.arange(4.0),
        "b": torch.zeros((), dtype=torch.int64),
        "c": torch.ones(2, dtype=torch.bfloat16),
    }
    changes = [
        {"a": torch.arange(4.0).reshape(2, 2)},
        {"a": torch.arange(4.0).view(torch.int32)},
        {"b": torch.ones((), dtype=torch.int64)},
        {"c": -tensors["c"]},
        {"d": torch.zeros(0)},
    ]
    assert checksum(tensors) == checksum(dict(reversed(tensors.items())))
    assert len({checksum(tensors), *(checksum({**tensors, **change}) for change in changes)}) == 1 + len(changes)


def test_a_checkpoint_without_read_permission_is_not_called_damaged(saved, monkeypatch):
    open_file = Path.open

    def denied(path, *arguments, **options):
        if path.suffix == ".safetensors":
            raise PermissionError(13, "Permission denied")
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UserError, match=r"\.safetensors: cannot be read: Permission denied$"):
        saved.resume_point()


def test_the_files_of_a_checkpoint_follow_the_umask(saved):
    latest = saved.named("latest")
    assert {file.stat().st_mode for file in latest.iterdir()} == {(latest / "state.json").stat().st_mode}


@pytest.mark.parametrize("content", ["", "[]", "null", '{"step": 8}', "{", "\udcff"])
def test_an_invalid_state_file_is_an_error(saved, content, caplog):
    (saved.path(8) / "state.json").write_text(content, errors="surrogateescape")
    assert saved.resume_point() == saved.path(4)
    assert re.search(r"state\.json: cannot be read: .*; resuming from step-00000004", caplog.text)


def test_without_an_intact_checkpoint_the_error_says_so(saved):
    for step in (4, 8):
        (saved.path(step) / "query.safetensors").unlink()
    with pytest.raises(UserError, match="no intact checkpoint found; restore a backup or choose a new --output"):
        saved.resume_point()


def test_a_latest_without_its_checkpoint_names_an_intact_one(saved):
    shutil.rmtree(saved.path(8))
    message = r"latest: found step-00000008, expected the name of an existing .* folder; step-00000004 is intact"
    with pytest.raises(UserError, match=message):
        saved.resume_point()


def test_a_missing_latest_is_an_error(saved):
    (saved.folder / "latest").unlink()
    with pytest.raises(UserError, match=r"latest: no such file, but found step-00000008; step-00000008 is intact"):
        saved.resume_point()
    assert saved.path(8).is_dir()


def test_a_first_save_that_was_killed_before_latest_is_no_checkpoint(saved):
    (saved.folder / "latest").write_text("")
    assert saved.resume_point() is None
    saved.rewind(0)
    assert names(saved) == ["latest"]


def test_a_run_without_checkpoints_has_no_resume_point(tmp_path):
    assert Checkpoints(tmp_path / "absent").resume_point() is None


DISK_FAULTS = ("a disk that fills", "a flipped bit", "a truncated file")


@pytest.mark.parametrize("fault", DISK_FAULTS)
def test_a_run_survives_a_fault_of_the_disk(tiny, tmp_path, monkeypatch, figure, fault):
    """It resumes from the checkpoint before the fault, and ends bit for bit as without it."""
    figure("faults of the disk in a run")
    config = write_config(tmp_path / "ds.json", 16, 8)
    job = {"model": str(tiny.model), "data": str(tiny.store), "deepspeed_config": str(config), "queue_size": 40}
    job |= {"steps": 3, "save_every": 1, "log_every": 1, "schedule": "constant"}
    straight, output = {**job, "output": str(tmp_path / "straight")}, {**job, "output": str(tmp_path / "run")}
    file = tmp_path / "run" / "checkpoints" / "step-00000002" / "momentum.safetensors"
    if fault == "a disk that fills":
        original = ppa_fast.training.checkpoint.save_file

        def save(tensors, path):
            original(tensors, path)
            if path.parent.name == ".step-00000002.tmp" and path.name == file.name:
                os.truncate(path, 100)
                raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

        with monkeypatch.context() as patch:
            patch.setattr(ppa_fast.training.checkpoint, "save_file", save)
            with pytest.raises(
                UserError, match=rf"/\.step-00000002\.tmp/momentum\.safetensors: cannot be written: {FULL}$"
            ):
                run_here(output)
        assert sorted(path.name for path in file.parents[1].iterdir()) == ["latest", "step-00000001"]
    else:
        run_here({**output, "steps": 2})
        whole = bytearray(file.read_bytes())
        whole[-5] ^= 16
        file.write_bytes(whole if fault == "a flipped bit" else whole[:-1])
        warnings = preflight.check(Settings(**output), 1).warnings
        assert re.match(rf"{file}: .*; resuming from step-00000001, the newest intact", warnings[0])
    assert run_here(output)["step"] == 3
    run_here(straight)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "straight")
    for name in ("query", "exp_avg", "exp_avg_sq", "momentum", "queue"):
        one, other = tensors(tmp_path / "run", 3, name), tensors(tmp_path / "straight", 3, name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


# Two ranks: rank 0 cannot write, rank 1 waits for it.


@pytest.mark.slow
def test_a_failed_save_stops_both_ranks_and_a_later_call_resumes(tiny, tmp_path):
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
