"""Fine-tuning through its public interface: every task learns, every recipe runs, a killed run resumes, invalid
requests are named."""

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
from ppa_fast.model.initialise import init_model
from ppa_fast.tasks import evaluate, finetuning, seed_trainer
from ppa_fast.tasks.classification import TextClassificationTask
from ppa_fast.tasks.finetuning import finetune
from tests.conftest import Tiny
from tests.tasks import toy

# Twice as many epochs as most vocabularies need. With half of them, two of six runs learned only two of three classes.
LEARN: dict[str, dict[str, Any]] = {
    "nli": {"learning_rate": 5e-3, "epochs": 16},
    "qa": {"learning_rate": 3e-3, "epochs": 6, "metric": "squad"},
    "classify": {"learning_rate": 3e-3, "epochs": 12},
    "tagging": {"learning_rate": 3e-3, "epochs": 6},
}
# Chance is a third for three classes and a sixth for six words; the limits are more than 3 standard deviations above.
GOOD = {task: ("exact_match", 35.0) if task == "qa" else ("accuracy", 0.55) for task in LEARN}
QUICK: dict[str, Any] = {"learning_rate": 1e-3, "epochs": 2, "batch": 16}


def run(model: Path, folder: Path, task: str, rows: int = 240, out: str = "out", **options: Any) -> dict[str, Any]:
    """Fine-tunes on toy data in three languages, with an English dev set and test sets in each language."""
    generate = getattr(toy, task)
    folder.mkdir(exist_ok=True)
    train, held_out = generate(folder, "train", rows, seed=0), generate(folder, "dev", 60, seed=1)
    sets = {"dev": toy.specs(held_out, "en"), "test": toy.specs(held_out)}
    specs = {"train": toy.specs(train), **sets}
    return finetune(task, str(model), out=folder / out, **{"batch": 16, **specs, **options})


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("task", LEARN)
def test_every_task_learns_with_and_without_code_switching(tiny: Tiny, tmp_path: Path, task: str, share: float) -> None:
    result = run(tiny.model, tmp_path, task, code_switch=share, **LEARN[task])
    metric, good = GOOD[task]
    assert result["languages"]["en"][metric]["mean"] > good
    if share:  # the encoder has seen other languages only in code-switched examples
        assert result["languages"]["de"][metric]["mean"] > good
    losses = [loss for _, loss in result["runs"][0]["loss"]]
    tenth = len(losses) // 10
    assert fmean(losses[-tenth:]) < 0.8 * fmean(losses[:tenth])
    out = tmp_path / "out"
    assert json.loads((out / "result.json").read_text())["languages"] == result["languages"]
    assert not (out / "seed-0" / "checkpoints").exists()

    # `evaluate` gives the same scores for the output folder, with the same official functions.
    scored = {"metric": "squad"} if task == "qa" else {}
    again = evaluate(task, model=str(out / "seed-0" / "model"), gold=[f"de:{tmp_path / 'dev.de'}"], **scored)
    assert again["languages"]["de"][metric] == pytest.approx(result["languages"]["de"][metric]["mean"])


def test_the_best_epoch_on_the_dev_set_is_kept(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dev_scores = iter([0.1, 0.9, 0.5])
    weights: list[float] = []

    def score(self: TextClassificationTask, model: Any, examples: Any, language: str) -> dict[str, float]:
        weights.append(model.classifier.weight.abs().sum().item())
        return {"accuracy": next(dev_scores, 0.0), "macro_f1": 0.0}

    monkeypatch.setattr(TextClassificationTask, "score", score)
    result = run(tiny.model, tmp_path, "classify", rows=48, **{**QUICK, "epochs": 3})
    assert [entry["epoch"] for entry in result["runs"][0]["dev"]] == [1, 2, 3]
    kept = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "seed-0" / "model")
    assert kept.classifier.weight.abs().sum().item() == weights[1] != weights[2]
    assert weights[3] == weights[1]  # the test scores come from it too


@pytest.mark.parametrize(
    ("options", "owns"),
    [
        ({"recipe": "translate-train", "language": "de"}, {"de"}),
        ({"recipe": "translate-train-all", "code_switch": 0.5}, {"en", "de", "fr"}),
    ],
)
def test_every_recipe_runs(tiny: Tiny, tmp_path: Path, options: dict[str, Any], owns: set[str]) -> None:
    dump = tmp_path / "switched.jsonl"
    result = run(tiny.model, tmp_path, "nli", rows=40, dump_switched=dump, **QUICK, **options)
    lines = [json.loads(line) for line in dump.read_text().splitlines()]
    assert {line["own"] for line in lines} == owns
    assert len(lines) == 2 * 40 * len(owns)
    assert result["recipe"] == options["recipe"]
    assert result["runs"][0]["loss"][-1][0] == 2 * -(-40 * len(owns) // 16)  # every copy is read


def test_a_killed_run_resumes_bit_for_bit(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run has dropout, and is killed at the second of four epochs."""
    options = {**QUICK, "epochs": 4, "code_switch": 0.5}
    whole = run(tiny.model, tmp_path, "classify", rows=48, out="whole", **options)

    evaluate_epoch = seed_trainer.SeedTrainer.evaluate
    calls = []

    def die(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self.state.global_step)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate_epoch(self, *args, **kwargs)

    monkeypatch.setattr(seed_trainer.SeedTrainer, "evaluate", die)
    with pytest.raises(KeyboardInterrupt):
        run(tiny.model, tmp_path, "classify", rows=48, **options)
    assert calls == [3, 6]
    cut = run(tiny.model, tmp_path, "classify", rows=48, **options)
    assert calls[2:] == [6, 9, 12]  # the first epoch is not run again
    assert cut["runs"] == whole["runs"]


def test_complete_seeds_are_not_repeated(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tiny.model, tmp_path, "classify", rows=32, **QUICK)
    ran = []
    run_seed = finetuning.run_seed

    def counted(job: Any, seed: int, folder: Path) -> dict[str, Any]:
        ran.append(seed)
        return run_seed(job, seed, folder)

    monkeypatch.setattr(finetuning, "run_seed", counted)
    both = run(tiny.model, tmp_path, "classify", rows=32, seeds=2, **QUICK)
    assert ran == [1]
    assert both["runs"][0]["test"] == first["runs"][0]["test"]
    assert both["runs"][0]["loss"] != both["runs"][1]["loss"]
    assert len(both["mean"]["accuracy"]["seeds"]) == 2


def test_a_folder_of_other_settings_or_files_is_an_error(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny.model, tmp_path, "classify", rows=32, **QUICK)
    with pytest.raises(UserError, match=r"learning_rate: found 0\.001, expected 0\.002; choose a new folder"):
        run(tiny.model, tmp_path, "classify", rows=32, **{**QUICK, "learning_rate": 0.002})
    with pytest.raises(UserError, match=r"started before .*train\.de, .*train\.en, .*train\.fr changed; choose"):
        run(tiny.model, tmp_path, "classify", rows=36, **QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dev": ["de:{de}"]}, "--dev: found de, expected only en:FILE"),
        ({"seeds": 0}, "seeds: found 0, expected at least 1"),
        ({"first_seed": -1}, "first_seed: found -1, expected at least 0"),
        ({"epochs": 0}, "epochs: found 0, expected at least 1"),
        ({"recipe": "few-shot"}, "recipe: found 'few-shot', expected one of zero-shot"),
        ({"code_switch": 2}, r"code_switch: found 2\.0, expected 0 to 1"),
        ({"train": []}, r"train: found \[\], expected at least one"),
        ({"max_rejected": float("nan")}, "max_rejected: found nan, expected a number"),
        ({"dump_switched": "nowhere/switched.jsonl"}, "--dump-switched nowhere/switched.jsonl: expected a re"),
        ({"max_tokens": 3}, "max_tokens: found 3, expected at least 16"),
        ({"learning_rate": 0.0}, r"learning_rate: found 0\.0, expected more than 0"),
        ({"batch": 16, "micro_batch": 5}, "--batch: found 16, expected a multiple of 1 ranks x micro-batch 5"),
        ({"deepspeed": "ds_configs/finetune.json"}, "found no RANK; start with deepspeed --no_python"),
        ({"test": ["en:{en}", "eng:{en}"]}, "eng is given twice"),
        ({"test": ["en:{broken}"]}, r"broken\.tsv:2: .*\nfound 1 unusable rows, expected none in an evaluation set"),
        ({"test": ["en:{unknown}"]}, "label 'sports', expected one of geography, health, travel"),
    ],
)
def test_an_invalid_request_is_named(tiny: Tiny, tmp_path: Path, options: dict[str, Any], message: str) -> None:
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


def test_an_xlm_roberta_with_a_wordpiece_tokenizer_is_fine_tuned(tiny: Tiny, tmp_path: Path) -> None:
    """The model has one segment, but its tokenizer numbers two. The saved folder handles this too."""
    model = tmp_path / "model"
    init_model(model, str(tiny.tokenizer), family="xlm-roberta", layers=1, hidden=32, heads=2, max_positions=64, seed=1)
    result = run(model, tmp_path, "qa", rows=32, metric="squad", **QUICK)
    tuned = str(tmp_path / "out" / "seed-0" / "model")
    again = evaluate("qa", model=tuned, gold=[f"en:{tmp_path / 'dev.en'}"], metric="squad")
    assert again["f1"] == pytest.approx(result["languages"]["en"]["f1"]["mean"])


def test_a_non_finite_loss_stops_the_run(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss: found (nan|inf) at step .*; lower --learning-rate"):
        run(tiny.model, tmp_path, "classify", rows=64, **{**QUICK, "learning_rate": 1e30})


def test_the_command_line_runs_fine_tuning(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, held_out = toy.classify(tmp_path, "train", 32, seed=0), toy.classify(tmp_path, "dev", 60, seed=1)
    arguments = ["finetune", "classify", "--model", str(tiny.model), "--out", str(tmp_path / "out"), "--epochs", "1"]
    files = ["--train", *toy.specs(train), "--dev", *toy.specs(held_out, "en"), "--test", *toy.specs(held_out, "de")]
    assert cli.main([*arguments, *files, "--code-switch", "0.5"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "| language | accuracy | macro_f1 | n |"
    assert (tmp_path / "out" / "table.md").read_text().startswith("| language | accuracy | macro_f1 |")
    assert cli.main([*arguments, *files, "--code-switch", "2"]) == 2
    assert "code_switch: found 2.0, expected 0 to 1" in capsys.readouterr().err


def launch(command: list[str], **environment: str) -> None:
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, timeout=600)


@pytest.mark.slow
def test_a_step_does_not_depend_on_ranks_and_micro_batches(tiny: Tiny, tmp_path: Path) -> None:
    """One rank, one rank with four micro-batches, two ranks, and one rank under DeepSpeed give equal losses without
    dropout."""
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
def test_real_files_of_every_task_are_trained_and_scored(tiny: Tiny, tmp_path: Path, share: str) -> None:
    """The published file formats at toy size: 200 rows, one epoch."""
    source = Path(os.environ["PPA_FAST_TEST_DATA"])

    def head(path: Path, name: str) -> Path:
        lines = path.read_text(encoding="utf-8").split("\n")[:201]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return tmp_path / name

    def articles(code: str) -> Path:
        data = json.loads((source / "qa" / f"xquad.{code}.json").read_text(encoding="utf-8"))
        (tmp_path / f"qa.{code}").write_text(json.dumps({"data": data["data"][:2]}), encoding="utf-8")
        return tmp_path / f"qa.{code}"

    def sentences(code: str) -> Path:
        text = (source / "tagging" / f"pud.{code}.tsv").read_text(encoding="utf-8")
        (tmp_path / f"tagging.{code}").write_text("\n\n".join(text.split("\n\n")[:200]) + "\n", encoding="utf-8")
        return tmp_path / f"tagging.{code}"

    files = {
        "nli": {code: head(source / "nli" / f"multinli.{code}.tsv", f"nli.{code}") for code in ("en", "ur", "zh")},
        "qa": {code: articles(code) for code in ("en", "ar", "zh")},
        "classify": {
            code: head(source / "topic" / folder / "train.tsv", f"classify.{code}")
            for code, folder in {"en": "eng_Latn", "el": "ell_Grek", "th": "tha_Thai"}.items()
        },
        "tagging": {code: sentences(code) for code in ("en", "ar", "de", "es", "fr", "hi", "th", "tr", "zh")},
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
