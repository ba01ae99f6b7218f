"""Killed at any instant: nothing that was saved is lost, and the run ends as if it had never been killed."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from tests.conftest import pseudo_text, write_config
from tests.training.attempts import attempt
from tests.training.harness import metrics, tensors

pytestmark = pytest.mark.slow

STEPS = 90
PLACES = [  # in what order a file appears is what makes it whole or not
    r"os.rename \S+ \S+/settings.yaml",
    r"os.rename \S+ \S+/model$",
    r"os.rename \S+ \S+/step-\d+$",  # the first checkpoint is written, not yet there
    r"open \S+/.latest.tmp",  # it is there, not yet named: the one of step 0 is before this
    r"os.rename \S+ \S+/latest",
    r"os.rename \S+ \S+/best",
    r"open \S+state.json",
    r"os.rename \S+/step-\d+ ",  # an old one is removed
]


@pytest.fixture(scope="module")
def attempts(tiny, tmp_path_factory):
    """A run without an end before its own, then one killed at each of PLACES, at 14 random changes of a file and at 6
    random instants, and let go on at last: two ranks, ZeRO-1 in bf16, a save at every step, half of them the best."""
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


def test_every_kill_met_a_run_and_the_last_attempt_ended_it(attempts):
    _, (straight, *killed, last) = attempts
    assert straight["statuses"] == last["statuses"] == [0, 0], last["errors"]
    assert [each["statuses"] for each in killed] == [[-9, -9]] * (len(PLACES) + 20), killed


def test_no_kill_loses_what_was_saved(attempts):
    """(That ``latest`` names a whole checkpoint is asserted after each.)"""
    _, (_, *killed, last) = attempts
    latest = [each["latest"] or "" for each in [*killed, last]]
    assert latest == sorted(latest)
    assert latest[3] == ""  # until then nothing was
    assert len(set(latest)) > 10  # and then they went on
    assert latest[-1] == f"step-{STEPS:08d}"


def test_the_run_ends_bit_for_bit_as_if_it_had_not_been_killed(attempts):
    folder, _ = attempts
    straight, killed = folder / "straight", folder / "killed"
    assert [line["step"] for line in metrics(killed)] == list(range(1, STEPS + 1))
    assert metrics(killed) == metrics(straight)
    for name in ("query", "exp_avg", "exp_avg_sq", "momentum", "queue"):
        one, other = tensors(killed, STEPS, name), tensors(straight, STEPS, name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


def test_the_folder_is_that_of_a_run_that_was_not_killed(attempts):
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
