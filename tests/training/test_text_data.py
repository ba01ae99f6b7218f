"""Runs on text, which is first prepared into RUN/store: equal to runs on a store, stopped and resumed, on two ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ppa_fast.data.store.prepare import prepare
from ppa_fast.data.store.store import StoreWriter
from ppa_fast.errors import UserError
from ppa_fast.settings import Settings
from ppa_fast.training import preflight
from tests.conftest import write_config
from tests.training.harness import metrics, run_here, run_ranks, tensors

FILES = ("query", "exp_avg", "exp_avg_sq", "momentum", "queue")


def job(tiny, folder: Path, output: str, **options) -> dict:
    """150 pairs per epoch, in steps of 16."""
    config = write_config(folder / "ds.json", 16, 4)
    base = {"model": str(tiny.model), "data": tiny.pairs[:1], "output": str(folder / output), "log_every": 1}
    base |= {"deepspeed_config": str(config), "steps": 12, "queue_size": 40, "pooling": "mean", "max_tokens": 30}
    return {**base, "save_every": 5, "keep": 9, **options}


def same_end(one: Path, other: Path, step: int) -> None:
    assert metrics(one) == metrics(other)
    for name in FILES:
        mine, theirs = tensors(one, step, name), tensors(other, step, name)
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs), name


def test_a_run_on_text_equals_a_run_on_its_store(tiny, tmp_path):
    prepare(tiny.pairs, str(tiny.tokenizer), tmp_path / "store", max_tokens=30)
    run_here(job(tiny, tmp_path, "store-run", data=str(tmp_path / "store")))
    run_here(job(tiny, tmp_path, "text-run", data=tiny.pairs))
    same_end(tmp_path / "text-run", tmp_path / "store-run", 12)
    assert (tmp_path / "text-run" / "store" / "manifest.json").is_file()


def test_a_run_is_resumed_from_its_own_store(tiny, tmp_path, monkeypatch):
    """This works even if the text was deleted."""
    run_here(job(tiny, tmp_path, "straight"))
    steps = {"schedule": "constant"}
    for name, count in (("straight", 12), ("cut", 7)):
        run_here(job(tiny, tmp_path, f"{name}-constant", steps=count, **steps))
    monkeypatch.setattr("ppa_fast.training.preflight.prepare", None)
    run_here(job(tiny, tmp_path, "cut-constant", **steps))
    same_end(tmp_path / "cut-constant", tmp_path / "straight-constant", 12)


def test_an_unfinished_store_is_resumed(tiny, tmp_path, monkeypatch):
    run_here(job(tiny, tmp_path, "straight"))
    with monkeypatch.context() as cut:
        cut.setattr(StoreWriter, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_here(job(tiny, tmp_path, "cut"))
    assert not (tmp_path / "cut" / "store" / "manifest.json").exists()
    run_here(job(tiny, tmp_path, "cut"))
    same_end(tmp_path / "cut", tmp_path / "straight", 12)


def test_two_ranks_share_the_store_that_rank_0_prepares(tiny, tmp_path):
    run_here(job(tiny, tmp_path, "one"))
    run_ranks([job(tiny, tmp_path, "two")], 2, tmp_path)
    for mine, theirs in zip(metrics(tmp_path / "two"), metrics(tmp_path / "one"), strict=True):
        # Dropout depends on the micro-batch, not on the rank, so only the order of additions differs.
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def test_errors_are_reported_before_the_text_is_prepared(tiny, tmp_path):
    def refused(message: str, **options) -> None:
        with pytest.raises(UserError, match=message):
            preflight.check(Settings(**job(tiny, tmp_path, "run", **options)), 1)

    refused(r"^data: found the text .* and the store", data=[*tiny.pairs, str(tiny.store)])
    refused(r"^queue_size: found 8, expected at least the global batch", queue_size=8)
    refused(r"^freeze_layers: found 3", freeze_layers=3)
    refused(
        r"^data: .* tokens, together 129 with special tokens; .* has 64 positions: expected --max-tokens 30",
        max_tokens=63,
    )
    assert not (tmp_path / "run").exists()
    (tmp_path / "run" / "stream").mkdir(parents=True)
    refused(r"^output: .* trained straight from text, which this version cannot resume; expected a new folder")
    assert not (tmp_path / "run" / "store").exists()


def test_other_text_does_not_resume_a_run(tiny, tmp_path):
    run_here(job(tiny, tmp_path, "run", steps=1))
    for other in ({"data": tiny.pairs}, {"max_tokens": 29}):
        with pytest.raises(
            UserError,
            match=r"^data: .*store was prepared from other text, or with --max-tokens \d+; expected this text",
        ):
            preflight.check(Settings(**job(tiny, tmp_path, "run", **other)), 1)
    with pytest.raises(UserError, match="not the stores that the run"):
        preflight.check(Settings(**job(tiny, tmp_path, "run", data=str(tiny.store))), 1)


def test_unusable_text_stops_the_run_with_an_error(tiny, tmp_path):
    (tmp_path / "a").write_text("kalo\n" * 40)
    (tmp_path / "b").write_text("mine\n" * 39)
    with pytest.raises(UserError, match="files of unequal length"):
        run_here(job(tiny, tmp_path, "run", data=[f"en-de:{tmp_path}/a,{tmp_path}/b"]))
