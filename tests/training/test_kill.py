"""A run that is killed at any time loses no saved checkpoint, and its result equals that of an uninterrupted run."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from tests.conftest import pseudo_text, write_config
from tests.training.harness import metrics, tensors
from tests.training.retries import attempt

pytestmark = pytest.mark.slow

STEPS = 90
PLACES = [  # the order of these events determines whether a file is complete
    r"os.rename \S+ \S+/settings.yaml",
    r"os.rename \S+ \S+/model$",
    r"os.rename \S+ \S+/step-\d+$",  # the first checkpoint is written, but not yet renamed
    r"open \S+/.latest.tmp",  # it is renamed, but `latest` does not name it yet; the checkpoint of step 0 comes before
    r"os.rename \S+ \S+/latest",
    r"os.rename \S+ \S+/best",
    r"open \S+state.json",
    r"os.rename \S+/step-\d+ ",  # an old checkpoint is removed
]


@pytest.fixture(scope="module")
def attempts(tiny, tmp_path_factory):
    """An uninterrupted run, and a run that is killed at each of PLACES, at 14 random file changes and at 6 random
    times, then completes. Two ranks, ZeRO-1 in bf16, a save at every step, half of the checkpoints the best."""
    folder = tmp_path_factory.mktemp("killed")
    for code, lines in pseudo_text(0, 170).items():
        (folder / f"dev.{code}").write_text("\n".join(lines[150:]) + "\n", encoding="utf-8")
    config = write_config(folder / "ds.json", 16, 8, 1, bf16=True)
    job = {"model": str(tiny.model), "data": str(tiny.store), "deepspeed_config": str(config), "steps": STEPS}
    job |= {"queue_size": 40, "pooling": "mean", "log_every": 1, "save_every": 1, "eval_every": 3}
    job |= {"eval_pairs": [f"en-de:{folder}/dev.en,{folder}/dev.de"], "learning_rate": 1e-3}
    draw = random.Random(20)
    kills = [{"faults": [["kill_all_before", place], None]} for place in PLACES]
    moments = [{"faults": [["kill_all_at_file_event", draw.randint(1, 200)], None]} for _ in range(14)]
    moments += [{"kill_after": draw.uniform(0, 0.5)} for _ in range(6)]
    draw.shuffle(moments)
    plan = [{"job": {**job, "output": str(folder / "straight")}, "world": 2}]
    plan += [{"job": {**job, "output": str(folder / "killed")}, "world": 2, **kill} for kill in [*kills, *moments, {}]]
    return folder, attempt(plan, folder / "attempts")


def test_every_kill_hit_a_running_attempt_and_the_last_one_completed(attempts, figure):
    figure("kills of a run of two ranks", len(PLACES) + 20)
    _, (straight, *killed, last) = attempts
    assert straight["statuses"] == last["statuses"] == [0, 0], last["errors"]
    assert [each["statuses"] for each in killed] == [[-9, -9]] * (len(PLACES) + 20), killed


def test_no_kill_loses_a_saved_checkpoint(attempts):
    """Each attempt also asserts that ``latest`` names an intact checkpoint."""
    _, (_, *killed, last) = attempts
    latest = [each["latest"] or "" for each in [*killed, last]]
    assert latest == sorted(latest)
    assert latest[3] == ""  # before that, nothing was saved
    assert len(set(latest)) > 10  # and later attempts made progress
    assert latest[-1] == f"step-{STEPS:08d}"


def test_the_result_equals_an_uninterrupted_run_bit_for_bit(attempts):
    folder, _ = attempts
    straight, killed = folder / "straight", folder / "killed"
    assert [line["step"] for line in metrics(killed)] == list(range(1, STEPS + 1))
    assert metrics(killed) == metrics(straight)
    for name in ("query", "exp_avg", "exp_avg_sq", "momentum", "queue"):
        one, other = tensors(killed, STEPS, name), tensors(straight, STEPS, name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


def test_the_folder_equals_that_of_an_uninterrupted_run(attempts):
    folder, _ = attempts
    straight, killed = folder / "straight", folder / "killed"
    files = [{path.relative_to(run) for path in run.rglob("*")} for run in (straight, killed)]
    assert files[0] == files[1]
    same = [Path("evaluations.jsonl"), Path("checkpoints/best"), *(f for f in files[0] if f.parent == Path("model"))]
    for file in same:
        assert (killed / file).read_bytes() == (straight / file).read_bytes(), file
    states = [json.loads((run / f"checkpoints/step-{STEPS:08d}/state.json").read_text()) for run in (straight, killed)]
    for state in states:
        state["settings"].pop("output")
    assert states[0] == states[1]
