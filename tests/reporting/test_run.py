import json
import math

import pytest

from ppa_fast.errors import UserError
from ppa_fast.reporting.run import differing_settings, read_run
from tests.reporting.conftest import evaluation, write_run


def test_a_real_run_is_read_completely(trained):
    run = read_run(trained.folder)
    assert (run.step, run.steps) == (4, 4)
    assert run.config["hidden_size"] == 32
    assert set(run.store["pairs"]) == {"en-de", "fr-en"}
    for name in ("loss", "loss_tlm", "loss_moco", "queue_top1", "pairs_per_s", "memory_gib", "lr", "grad_norm"):
        steps, values = run.curve(name)
        assert steps == [1, 2, 3, 4]
        assert all(map(math.isfinite, values))
    assert run.curve("mfu") == ([], [])  # null on a CPU
    assert {pair: steps for pair, (steps, _) in run.retrieval().items()} == {
        "en-ar": [0, 2, 4],
        "zh_Hant-en": [0, 2, 4],
    }
    assert [record["step"] for record in run.evaluations] == [0, 2, 4]


@pytest.mark.parametrize(("means", "step"), [((0.5, 0.7, 0.6), 2), ((0.5, 0.6, 0.7), 4), ((0.5, 0.4, 0.3), 4)])
def test_the_result_is_the_best_evaluation_or_else_the_last(tmp_path, means, step):
    """As in export: step 0 has no checkpoint."""
    records = [evaluation(number, de=mean) for number, mean in zip((0, 2, 4), means, strict=True)]
    before, after = read_run(write_run(tmp_path / "run", evaluations=records)).before_after()
    assert (before["step"], after["step"]) == (0, step)


def test_a_run_without_steps_is_read(tmp_path):
    run = read_run(write_run(tmp_path / "run", steps=None, epochs=0.5))
    assert (run.step, run.steps) == (0, 7)  # half of 100 pairs, 8 per step
    assert (run.curve("loss"), run.recent("loss"), run.retrieval(), run.before_after()) == (([], []), None, {}, None)


def test_an_incomplete_last_line_is_ignored(tmp_path):
    folder = write_run(tmp_path / "run", [{"step": 10, "loss": 2.0}])
    with (folder / "metrics.jsonl").open("a") as log:
        log.write('{"step": 20, "lo')
    assert read_run(folder).step == 10


def test_non_finite_values_are_gaps_and_excluded_from_means(tmp_path):
    losses = [5.0, None, 3.0, 1.0]
    run = read_run(write_run(tmp_path / "run", [{"step": n, "loss": loss} for n, loss in enumerate(losses, 1)]))
    steps, values = run.curve("loss")
    assert steps == [1, 2, 3, 4]
    assert [math.isnan(value) for value in values] == [False, True, False, False]
    assert (run.recent("loss"), run.median("loss")) == (3.0, 3.0)


def test_a_disabled_objective_has_no_curves(tmp_path):
    line = {"step": 1, "loss": 1.0, "loss_tlm": 1.0, "loss_moco": 0.0, "queue_top1": 0.0}
    run = read_run(write_run(tmp_path / "run", [line], moco=False))
    shown = [name for name in ("loss", "loss_tlm", "loss_moco", "queue_top1") if run.curve(name)[0]]
    assert shown == ["loss", "loss_tlm"]


def test_the_final_value_is_the_mean_of_the_last_lines(tmp_path):
    run = read_run(write_run(tmp_path / "run", [{"step": n, "loss": float(n)} for n in range(1, 21)]))
    assert run.recent("loss") == 18.0
    assert run.median("loss") == 10.5


@pytest.mark.parametrize("records", [
    [evaluation(0, de=0.1)],
    [evaluation(50, de=0.1), evaluation(100, de=0.2)],
    [evaluation(0, de=0.1), evaluation(100, de=0.1, fr=0.2)],
])  # fmt: skip
def test_before_and_after_use_step_0_and_the_same_pairs(tmp_path, records):
    assert read_run(write_run(tmp_path / "run", evaluations=records)).before_after() is None


def test_differing_settings_are_found(tmp_path):
    one = write_run(tmp_path / "a", output="a", temperature=0.05, seed=1)
    other = write_run(tmp_path / "b", output="b", temperature=0.1, seed=1, eval_every=3)
    assert differing_settings([read_run(one), read_run(other)]) == ["temperature"]


@pytest.mark.parametrize(("content", "message"), [
    (None, "not a run folder: found no settings.yaml"),
    ("- 1", "found list, expected a mapping of names to values"),
    ("a: [", "cannot be read"),
    ("model: m", "pooling: found None"),
])  # fmt: skip
def test_an_invalid_run_folder_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "settings.yaml").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_run(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_broken_line_of_a_log_is_named(tmp_path):
    folder = write_run(tmp_path / "run", [{"step": 1}])
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\nnonsense\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:2"):
        read_run(folder)
