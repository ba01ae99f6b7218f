"""Runs straight from text: as from a store, killed and gone on, on two ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ppa_fast.data.prepare import prepare
from ppa_fast.data.spool import read_journal
from ppa_fast.errors import UserError
from ppa_fast.settings import Settings
from ppa_fast.training.plan import make_plan
from tests.conftest import write_config
from tests.training.attempts import attempt
from tests.training.harness import metrics, run_here, run_ranks, tensors

FILES = ("query", "exp_avg", "exp_avg_sq", "momentum", "queue")


def job(tiny, folder: Path, output: str, **options) -> dict:
    """150 pairs a pass, in steps of 16."""
    config = write_config(folder / "ds.json", 16, 4)
    base = {"model": str(tiny.model), "data": tiny.pairs[:1], "output": str(folder / output), "log_every": 1}
    base |= {"deepspeed_config": str(config), "steps": 12, "queue_size": 40, "pooling": "mean", "max_tokens": 30}
    return {**base, "save_every": 5, "keep": 9, **options}


def same_end(one: Path, other: Path, step: int) -> None:
    assert metrics(one) == metrics(other)
    for name in FILES:
        mine, theirs = tensors(one, step, name), tensors(other, step, name)
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs), name


def test_one_shard_trains_as_a_store_does(tiny, tmp_path):
    prepare(tiny.pairs[:1], str(tiny.tokenizer), tmp_path / "store", max_tokens=30)
    run_here(job(tiny, tmp_path, "store-run", data=str(tmp_path / "store")))
    run_here(job(tiny, tmp_path, "text-run"))
    same_end(tmp_path / "text-run", tmp_path / "store-run", 12)
    assert [path.name for path in (tmp_path / "text-run" / "stream").iterdir()] == ["shards.jsonl"]


def test_shards_stopped_and_gone_on_and_two_ranks(tiny, tmp_path):
    """Shards smaller than three steps, of two language pairs; stopped within one, with no journal left once."""
    common = {"data": tiny.pairs, "stream_shard": 40, "schedule": "constant"}
    for name, steps in (("straight", 12), ("cut", 7), ("lost", 7)):
        run_here(job(tiny, tmp_path, name, steps=steps, **common))
    (tmp_path / "lost" / "stream" / "shards.jsonl").unlink()
    for name in ("cut", "lost"):
        run_here(job(tiny, tmp_path, name, **common))
        same_end(tmp_path / name, tmp_path / "straight", 12)
    assert len(read_journal(tmp_path / "cut" / "stream")) >= 12 * 16 // 40
    run_ranks([job(tiny, tmp_path, "two", **common)], 2, tmp_path)
    for mine, theirs in zip(metrics(tmp_path / "two"), metrics(tmp_path / "straight"), strict=True):
        # Dropout is drawn for each micro-batch, whichever rank has it: nothing but the order of sums differs.
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


@pytest.mark.slow
def test_killed_and_gone_on_bit_for_bit(tiny, tmp_path):
    common = {"stream_shard": 40, "save_every": 1, "data": tiny.pairs}
    plan = [{"job": job(tiny, tmp_path, "straight", **common), "world": 2}]
    places = [r"os.rename \S+ \S+/step-00000003$", r"os.rename \S+ \S+/latest", r"os.rename \S+ \S+/step-00000009$"]
    kills = [{"faults": [["kill_all_before", place], None]} for place in places]
    plan += [{"job": job(tiny, tmp_path, "killed", **common), "world": 2, **kill} for kill in [*kills, {}]]
    straight, *killed, last = attempt(plan, tmp_path / "attempts")
    assert straight["statuses"] == last["statuses"] == [0, 0], last["errors"]
    assert [each["statuses"] for each in killed] == [[-9, -9]] * 3
    same_end(tmp_path / "killed", tmp_path / "straight", 12)


def test_what_text_cannot_do(tiny, tmp_path):
    def refused(message: str, **options) -> None:
        with pytest.raises(UserError, match=message):
            make_plan(Settings(**job(tiny, tmp_path, "run", **options)), 1)

    refused(r"^steps: not given, and how many pairs a text has is not known", steps=None)
    refused(r"^steps: not given", steps=None, epochs=2)
    refused(r"^sampling_alpha: text is read as it is; expected stores", sampling_alpha=0.5)
    refused(r"^data: found the text .* and the store", data=[*tiny.pairs, str(tiny.store)])
    refused(
        r"^data: .* tokens, together 129 with special tokens; .* has 64 positions: expected --max-tokens 30",
        max_tokens=63,
    )
    assert not (tmp_path / "run").exists()


def test_other_text_is_no_continuation(tiny, tmp_path):
    run_here(job(tiny, tmp_path, "run", steps=1))
    for other, message in (
        ({"data": tiny.pairs}, "not the stores or the text"),
        ({"stream_shard": 9}, "not the stores or the text"),
        ({"max_tokens": 29}, "not the stores or the text"),
        ({"data": str(tiny.store)}, "not the stores or the text"),
    ):
        with pytest.raises(UserError, match=message):
            make_plan(Settings(**job(tiny, tmp_path, "run", **other)), 1)
    state = json.loads((tmp_path / "run/checkpoints/step-00000001/state.json").read_text())
    assert state["settings"]["data"] == tiny.pairs[:1]


def test_text_that_breaks_ends_the_run_with_a_sentence(tiny, tmp_path):
    (tmp_path / "a").write_text("kalo\n" * 40)
    (tmp_path / "b").write_text("mine\n" * 39)
    broken = {"data": [f"en-de:{tmp_path}/a,{tmp_path}/b"], "stream_shard": 20}
    with pytest.raises(UserError, match="files of unequal length"):
        run_here(job(tiny, tmp_path, "run", **broken))
