"""Fine-tuning as a user runs it: every task learns, every recipe runs, a killed run goes on, bad requests are named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

from ppa_fast import cli
from ppa_fast.errors import UserError
from ppa_fast.evaluation import evaluate
from ppa_fast.finetune import runner, trainer
from ppa_fast.finetune.classify import Classify
from ppa_fast.finetune.runner import finetune
from ppa_fast.model.initialise import init_model
from tests.conftest import Tiny
from tests.finetune import toy

# Twice as many epochs as most vocabularies need: with half of them, two of six had learned two of three classes only.
LEARN: dict[str, dict[str, Any]] = {
    "nli": {"learning_rate": 5e-3, "epochs": 16},
    "qa": {"learning_rate": 3e-3, "epochs": 6, "metric": "squad"},
    "classify": {"learning_rate": 3e-3, "epochs": 12},
}
# Above chance by more than 3 standard deviations of 60 rows: a third of three classes, a sixth of six words.
GOOD = {"nli": ("accuracy", 0.55), "qa": ("exact_match", 35.0), "classify": ("accuracy", 0.55)}
QUICK: dict[str, Any] = {"learning_rate": 1e-3, "epochs": 2, "batch": 16}


def run(model: Path, folder: Path, task: str, rows: int = 240, out: str = "out", **options: Any) -> dict[str, Any]:
    """Fine-tunes on toy data in three languages, with an English dev set and test sets in each language."""
    generate = getattr(toy, task)
    folder.mkdir(exist_ok=True)
    train, held_out = generate(folder, "train", rows, seed=0), generate(folder, "dev", 60, seed=1)
    sets = {"dev": toy.specs(held_out, "en"), "test": toy.specs(held_out)}
    return finetune(task, str(model), toy.specs(train), folder / out, **{"batch": 16, **sets, **options})


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("task", LEARN)
def test_every_task_learns_switched_and_not(tiny: Tiny, tmp_path: Path, task: str, share: float) -> None:
    result = run(tiny.model, tmp_path, task, code_switch=share, **LEARN[task])
    metric, good = GOOD[task]
    assert result["languages"]["en"][metric]["mean"] > good
    if share:  # what the encoder never read in another language, it learns from switched examples
        assert result["languages"]["de"][metric]["mean"] > good
    losses = [loss for _, loss in result["runs"][0]["loss"]]
    tenth = len(losses) // 10
    assert fmean(losses[-tenth:]) < 0.8 * fmean(losses[:tenth])
    out = tmp_path / "out"
    assert json.loads((out / "result.json").read_text())["languages"] == result["languages"]
    assert not (out / "seed-0" / "checkpoints").exists()

    # The folder that is left scores the same through `evaluate`, by the same official functions.
    scored = {"metric": "squad"} if task == "qa" else {}
    again = evaluate(task, model=str(out / "seed-0" / "model"), gold=[f"de:{tmp_path / 'dev.de'}"], **scored)
    assert again["languages"]["de"][metric] == pytest.approx(result["languages"]["de"][metric]["mean"])


def test_the_epoch_that_is_best_on_the_dev_set_is_kept(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev_scores = iter([0.1, 0.9, 0.5])
    weights: list[float] = []

    def score(self: Classify, model: Any, examples: Any, language: str) -> dict[str, float]:
        weights.append(model.classifier.weight.abs().sum().item())
        return {"accuracy": next(dev_scores, 0.0), "macro_f1": 0.0}

    monkeypatch.setattr(Classify, "score", score)
    result = run(tiny.model, tmp_path, "classify", rows=48, **{**QUICK, "epochs": 3})
    assert [entry["epoch"] for entry in result["runs"][0]["dev"]] == [1, 2, 3]
    kept = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "seed-0" / "model")
    assert kept.classifier.weight.abs().sum().item() == weights[1] != weights[2]
    assert weights[3] == weights[1]  # the test sets are scored with it too


@pytest.mark.parametrize(
    ("options", "owns"),
    [
        ({"recipe": "translate-train", "language": "de"}, {"de"}),
        ({"recipe": "translate-train-all", "code_switch": 0.5}, {"en", "de", "fr"}),
    ],
)
def test_recipes(tiny: Tiny, tmp_path: Path, options: dict[str, Any], owns: set[str]) -> None:
    dump = tmp_path / "switched.jsonl"
    result = run(tiny.model, tmp_path, "nli", rows=40, dump_switched=dump, **QUICK, **options)
    lines = [json.loads(line) for line in dump.read_text().splitlines()]
    assert {line["own"] for line in lines} == owns
    assert len(lines) == 2 * 40 * len(owns)
    assert result["recipe"] == options["recipe"]
    assert result["runs"][0]["loss"][-1][0] == 2 * -(-40 * len(owns) // 16)  # every copy is read


def test_a_killed_run_goes_on_and_ends_alike(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at the second of four epochs, with dropout: the rest is bit for bit the uninterrupted run."""
    options = {**QUICK, "epochs": 4, "code_switch": 0.5}
    whole = run(tiny.model, tmp_path, "classify", rows=48, out="whole", **options)

    evaluate_epoch = trainer.SeedTrainer.evaluate
    calls = []

    def die(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self.state.global_step)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate_epoch(self, *args, **kwargs)

    monkeypatch.setattr(trainer.SeedTrainer, "evaluate", die)
    with pytest.raises(KeyboardInterrupt):
        run(tiny.model, tmp_path, "classify", rows=48, **options)
    assert calls == [3, 6]
    cut = run(tiny.model, tmp_path, "classify", rows=48, **options)
    assert calls[2:] == [6, 9, 12]  # the first epoch is not run again
    assert cut["runs"] == whole["runs"]


def test_seeds_that_are_done_are_not_run_again(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tiny.model, tmp_path, "classify", rows=32, **QUICK)
    ran = []
    run_seed = runner.run_seed

    def counted(job: Any, seed: int, folder: Path) -> dict[str, Any]:
        ran.append(seed)
        return run_seed(job, seed, folder)

    monkeypatch.setattr(runner, "run_seed", counted)
    both = run(tiny.model, tmp_path, "classify", rows=32, seeds=2, **QUICK)
    assert ran == [1]
    assert both["runs"][0]["test"] == first["runs"][0]["test"]
    assert both["runs"][0]["loss"] != both["runs"][1]["loss"]
    assert len(both["mean"]["accuracy"]["seeds"]) == 2


def test_a_folder_of_other_settings_or_files_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny.model, tmp_path, "classify", rows=32, **QUICK)
    with pytest.raises(UserError, match=r"begun with learning_rate 0\.001, now 0\.002; expected a new folder"):
        run(tiny.model, tmp_path, "classify", rows=32, **{**QUICK, "learning_rate": 0.002})
    with pytest.raises(UserError, match=r"begun before .*train\.de, .*train\.en, .*train\.fr changed; expected"):
        run(tiny.model, tmp_path, "classify", rows=36, **QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dev": ["de:{de}"]}, "--dev de: zero-shot selects its model in English"),
        ({"seeds": 0}, "--seeds 0: expected at least 1"),
        ({"first_seed": -1}, "--first-seed -1: expected at least 0"),
        ({"epochs": 0}, "--epochs 0: expected at least 1"),
        ({"max_rejected": float("nan")}, "--max-rejected nan: expected a share between 0 and 1"),
        ({"dump_switched": "nowhere/switched.jsonl"}, "--dump-switched nowhere/switched.jsonl: expected a re"),
        ({"max_tokens": 3}, "--max-tokens 3: expected at least 16"),
        ({"learning_rate": 0.0}, r"--learning-rate 0\.0: expected a positive number"),
        ({"batch": 16, "micro_batch": 5}, "--batch 16: expected a multiple of 1 ranks x micro-batch 5"),
        ({"deepspeed": "ds_configs/finetune.json"}, "expected its launcher: deepspeed --no_python"),
        ({"test": ["en:{en}", "eng:{en}"]}, "eng is given twice"),
        ({"test": ["en:{broken}"]}, r"broken\.tsv:2: .*\n.*an evaluation set must have no bad row"),
        ({"test": ["en:{unknown}"]}, "label 'sports', expected one of geography, health, travel"),
    ],
)
def test_bad_requests_are_named(tiny: Tiny, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    broken, unknown = tmp_path / "broken.tsv", tmp_path / "unknown.tsv"
    broken.write_text("category\ttext\nhealth\n")
    unknown.write_text("category\ttext\nsports\tpumil\n")
    names = {"de": tmp_path / "dev.de", "en": tmp_path / "dev.en", "broken": broken, "unknown": unknown}
    filled = {
        key: [spec.format(**names) for spec in value] if isinstance(value, list) else value
        for key, value in options.items()
    }
    with pytest.raises(UserError, match=message):
        run(tiny.model, tmp_path, "classify", rows=32, **filled)
    assert not (tmp_path / "out").exists()


def test_an_xlm_roberta_with_a_wordpiece_tokenizer(tiny: Tiny, tmp_path: Path) -> None:
    """It has one segment; its tokenizer numbers two. The folder that is left knows it too."""
    model = tmp_path / "model"
    init_model(model, str(tiny.tokenizer), family="xlm-roberta", layers=1, hidden=32, heads=2, max_positions=64, seed=1)
    result = run(model, tmp_path, "qa", rows=32, metric="squad", **QUICK)
    tuned = str(tmp_path / "out" / "seed-0" / "model")
    again = evaluate("qa", model=tuned, gold=[f"en:{tmp_path / 'dev.en'}"], metric="squad")
    assert again["f1"] == pytest.approx(result["languages"]["en"]["f1"]["mean"])


def test_a_loss_that_is_not_finite_stops_the_run(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the loss is (nan|inf); expected a lower --learning-rate"):
        run(tiny.model, tmp_path, "classify", rows=64, **{**QUICK, "learning_rate": 1e30})


def test_command_line(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, held_out = toy.classify(tmp_path, "train", 32, seed=0), toy.classify(tmp_path, "dev", 60, seed=1)
    arguments = ["finetune", "classify", "--model", str(tiny.model), "--out", str(tmp_path / "out"), "--epochs", "1"]
    files = ["--train", *toy.specs(train), "--dev", *toy.specs(held_out, "en"), "--test", *toy.specs(held_out, "de")]
    assert cli.main([*arguments, *files, "--code-switch", "0.5"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "| language | accuracy | macro_f1 |"
    assert (tmp_path / "out" / "table.md").read_text().startswith("| language | accuracy | macro_f1 |")
    assert cli.main([*arguments, *files, "--code-switch", "2"]) == 2
    assert "--code-switch 2.0: expected a share between 0 and 1" in capsys.readouterr().err


def launch(command: list[str], **environment: str) -> None:
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, timeout=600)


@pytest.mark.slow
def test_a_step_is_the_same_however_it_is_cut(tiny: Tiny, tmp_path: Path) -> None:
    """One rank, one rank in four micro-batches, two ranks, one rank under DeepSpeed: equal losses without dropout."""
    model = tmp_path / "model"
    init_model(model, str(tiny.tokenizer), layers=2, hidden=32, heads=2, max_positions=64, dropout=0.0, seed=1)
    train = toy.nli(tmp_path, "train", 52, seed=0)
    command = ["finetune", "nli", "--model", str(model), "--train", *toy.specs(train), "--code-switch", "0.5"]
    command += ["--epochs", "2", "--batch", "16", "--learning-rate", "1e-3"]
    main = [sys.executable, "-c", "import sys; from ppa_fast.cli import main; sys.exit(main())"]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29541"}
    config = Path(__file__).parents[2] / "ds_configs" / "finetune.json"

    launch([*main, *command, "--out", str(tmp_path / "one")])
    launch([*main, *command, "--micro-batch", "4", "--out", str(tmp_path / "micro")])
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    launch([*ranks, *main, *command, "--out", str(tmp_path / "ranks")])
    launch([*main, *command, "--deepspeed", str(config), "--out", str(tmp_path / "deepspeed")], **alone)

    losses = {}
    for name in ("one", "micro", "ranks", "deepspeed"):
        result = json.loads((tmp_path / name / "result.json").read_text())
        losses[name] = [loss for _, loss in result["runs"][0]["loss"]]
    assert len(losses["one"]) == 8
    for name in ("micro", "ranks", "deepspeed"):
        assert losses[name] == pytest.approx(losses["one"], abs=2e-5), name


@pytest.mark.slow
@pytest.mark.skipif("PPA_FAST_TEST_DATA" not in os.environ, reason="PPA_FAST_TEST_DATA is not set")
@pytest.mark.parametrize("share", ["0", "0.5"])
def test_real_files_of_every_task(tiny: Tiny, tmp_path: Path, share: str) -> None:
    """The published forms go through, at the size of a toy: 200 rows, one epoch."""
    source = Path(os.environ["PPA_FAST_TEST_DATA"])

    def head(path: Path, name: str) -> Path:
        lines = path.read_text(encoding="utf-8").split("\n")[:201]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return tmp_path / name

    def articles(code: str) -> Path:
        data = json.loads((source / "qa" / f"xquad.{code}.json").read_text(encoding="utf-8"))
        (tmp_path / f"qa.{code}").write_text(json.dumps({"data": data["data"][:2]}), encoding="utf-8")
        return tmp_path / f"qa.{code}"

    files = {
        "nli": {code: head(source / "nli" / f"multinli.{code}.tsv", f"nli.{code}") for code in ("en", "ur", "zh")},
        "qa": {code: articles(code) for code in ("en", "ar", "zh")},
        "classify": {
            code: head(source / "topic" / folder / "train.tsv", f"classify.{code}")
            for code, folder in {"en": "eng_Latn", "el": "ell_Grek", "th": "tha_Thai"}.items()
        },
    }
    for task, each in files.items():
        specs = [f"{code}:{path}" for code, path in each.items()]
        out = tmp_path / f"out-{task}"
        options = ["--epochs", "1", "--code-switch", share, "--out", str(out)]
        command = ["finetune", task, "--model", str(tiny.model), "--train", *specs, "--test", *specs, *options]
        assert cli.main(command) == 0
        result = json.loads((out / "result.json").read_text())
        assert result["rejected"] == 0
        assert list(result["languages"]) == list(each)
        shutil.rmtree(out)
