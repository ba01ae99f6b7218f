"""``align``: its choices, its result, and that it resumes after a kill in any stage."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM

import ppa_fast
from ppa_fast import workflow
from ppa_fast.data.reading.corpus import read_eval_pairs
from ppa_fast.data.store.store import read_manifest
from ppa_fast.errors import UserError
from ppa_fast.model.sentence_transformer import SentenceModules
from ppa_fast.settings import AlignSettings, Settings
from ppa_fast.training import measure
from tests.conftest import pseudo_text
from tests.workflow_attempts import attempt

STEPS = 6
KILLS = {
    "hold out": r"os.rename \S+ \S+/dev/en-fr.fr",
    "prepare": r"os.rename \S+ \S+/store/manifest.json",
    "train": r"os.rename \S+ \S+/checkpoints/step-00000004",
    "export": r"os.rename \S+ \S+/tokenizer_config.json",
}


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("text")
    for code, lines in pseudo_text(0, 150).items():
        (folder / f"train.{code}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [f"en-{code}:{folder}/train.en,{folder}/train.{code}" for code in ("de", "fr")]


@pytest.fixture(scope="module")
def aligned(tiny, text, tmp_path_factory):
    """The folders of a call that was not interrupted, and of one that was killed in each stage; the results."""
    folder = tmp_path_factory.mktemp("aligned")

    def arguments(out: str) -> list[str]:
        return ["align", str(tiny.model), "--pairs", *text, "--steps", str(STEPS), "--out", str(folder / out)]

    plan = [{"arguments": arguments("straight"), "before": None}]
    plan += [{"arguments": arguments("killed"), "before": before} for before in (*KILLS.values(), None)]
    return folder / "straight", folder / "killed", attempt(plan, folder)


def exported(folder: Path) -> dict[str, bytes]:
    """The files of the encoder, by their path."""
    own = {"align.json", "deepspeed.json", "report.html", "dev", "store", "run"}
    files = [path for path in folder.rglob("*") if path.is_file()]
    paths = {path.relative_to(folder): path for path in files}
    return {str(name): path.read_bytes() for name, path in paths.items() if name.parts[0] not in own}


@pytest.mark.slow
def test_a_kill_in_each_stage_leads_to_the_same_export_bit_for_bit(aligned):
    straight, killed, results = aligned
    assert [result["status"] for result in results] == [0, *[-9] * len(KILLS), 0], results
    assert {"model.safetensors", "config.json", "modules.json", "README.md"} <= exported(straight).keys()
    assert exported(killed) == exported(straight)
    for name in ("chosen", "train"):  # apart from the speed and the folder
        one, other = (json.loads((folder / "align.json").read_text())[name] for folder in (straight, killed))
        assert {k for k in one if one[k] != other[k]} <= {"pairs_per_s", "data", "output", "eval_pairs"} | {
            "deepspeed_config"
        }


@pytest.mark.slow
def test_the_log_has_the_choices_the_estimate_and_the_separate_commands(aligned):
    said = aligned[2][0]["said"]
    assert "held out for evaluation: en-de 15, en-fr 15 pairs" in said
    assert f"chosen: recipe paper (the model has an MLM head); fp32; {STEPS} steps of 16 pairs" in said
    assert "estimate: training takes about" in said
    for verb in ("prepare", "train", "export", "report"):
        assert f"\n  ppa-fast {verb} " in said
    resumed = aligned[2][-1]["said"]
    assert "estimate" not in resumed  # what was chosen is kept


@pytest.mark.slow
def test_training_shares_no_sentence_with_the_held_out_pairs(aligned, text):
    straight = aligned[0]
    held_out = {name: read_eval_pairs(f"{name}:{straight}/dev/{name}") for name in ("en-de", "en-fr")}
    assert held_out["en-de"][1] == held_out["en-fr"][1]  # the text has the same English sentences in both
    sentences = {s for _, *sides in held_out.values() for side in sides for s in side}
    kept = 0
    for spec in text:
        _, a, b = read_eval_pairs(spec)
        kept += sum(one not in sentences and other not in sentences for one, other in zip(a, b, strict=True))
    assert read_manifest(straight / "store")["pairs"] == kept < 2 * 150


@pytest.mark.slow
def test_the_python_function_returns_scores_paths_and_the_encoder(aligned, tiny, text):
    straight = aligned[0]
    result = ppa_fast.align(str(tiny.model), text, straight, steps=STEPS)  # finished: nothing is done again
    assert (result.folder, result.run, result.report) == (straight, straight / "run", straight / "report.html")
    assert result.before["step"] == 0 < result.after["step"] <= STEPS
    assert {name: scores["n"] for name, scores in result.after["pairs"].items()} == {"en-de": 15, "en-fr": 15}
    page = result.report.read_text(encoding="utf-8")
    assert f"SentenceTransformer({json.dumps(str(straight))})" in page
    for scores in (result.before, result.after):
        mean = sum(each["a_to_b"] + each["b_to_a"] for each in scores["pairs"].values()) / 4
        assert scores["mean"] == pytest.approx(mean)
        assert f"{100 * mean:.1f} %" in page
    vectors = result.encoder.encode(["ka lo", "mi"])
    assert vectors.shape == (2, 32)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    sentence_transformers = pytest.importorskip("sentence_transformers")
    other = sentence_transformers.SentenceTransformer(str(straight), device="cpu").encode(["ka lo", "mi"])
    other = torch.nn.functional.normalize(torch.from_numpy(other), dim=1)
    torch.testing.assert_close(vectors, other, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_transformers_loads_the_folder(aligned):
    for auto in (AutoModel, AutoModelForMaskedLM):
        _, info = auto.from_pretrained(aligned[0], output_loading_info=True)
        assert not info["missing_keys"]


@pytest.mark.slow
def test_a_folder_of_other_arguments_or_of_something_else_is_an_error(aligned, tiny, text, tmp_path):
    with pytest.raises(UserError, match=r"steps: found 7, but .* was made with 6; expected another --out"):
        ppa_fast.align(str(tiny.model), text, aligned[0], steps=7)
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        ppa_fast.align(str(tiny.model), text, tmp_path)


class Launched(Exception):
    """Training would start."""


@pytest.fixture
def chosen(monkeypatch, text, tiny, tmp_path):
    """Runs ``align`` up to training, at 100 pairs/s; returns the content of ``align.json``."""

    def start(*_):
        raise Launched

    monkeypatch.setattr(workflow, "launch", start)
    monkeypatch.setattr(workflow, "measure", lambda settings, config, ranks: measure.Measured(4, 100.0))

    def run(**options):
        options = {"model": str(tiny.model), "pairs": text, "out": tmp_path / "out", **options}
        with pytest.raises(Launched):
            ppa_fast.align(**options)
        return json.loads((tmp_path / "out" / "align.json").read_text(encoding="utf-8"))

    return run


def test_steps_follow_from_the_size_of_the_text(chosen):
    found = chosen()
    pairs = 2 * (150 - 15)
    assert found["train"]["steps"] == -(-10 * pairs // 16)  # a small text is read ten times
    assert found["chosen"]["batch"] == 16  # at least 16 steps a pass
    assert found["train"]["queue_size"] == 16
    assert found["train"]["momentum"] == pytest.approx(0.94, abs=0.005)


def test_minutes_limit_the_steps(chosen):
    assert chosen(minutes=0.05)["train"]["steps"] == int(3 * 100 / 16)


def test_few_steps_get_a_smaller_batch(chosen, monkeypatch, tmp_path):
    monkeypatch.setattr(workflow, "STEPS_OF_A_PASS", 1)
    found = chosen(minutes=0.4)  # 2,400 pairs at 100 pairs/s
    assert (found["chosen"]["batch"], found["train"]["steps"]) == (64, 37)
    assert json.loads((tmp_path / "out" / "deepspeed.json").read_text())["train_batch_size"] == 64


def test_given_settings_of_train_replace_the_chosen_ones(chosen, tmp_path):
    (tmp_path / "ds.json").write_text('{"train_batch_size": 24}')
    (tmp_path / "train.yaml").write_text(
        f"learning_rate: 1e-3\nqueue_size: 99\nepochs: 2\ndeepspeed_config: {tmp_path}/ds.json\nrecipe: retrieval\n"
    )
    found = chosen(train_settings=tmp_path / "train.yaml", recipe="paper", pooling="mean")
    expected = {"recipe": "paper", "pooling": "mean", "learning_rate": "1e-3", "queue_size": 99, "steps": 23}
    assert expected.items() <= found["train"].items()
    assert json.loads((tmp_path / "out" / "deepspeed.json").read_text())["train_batch_size"] == 24


def test_a_given_deepspeed_file_is_checked_before_training(text, tiny, tmp_path):
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 1}}')
    (tmp_path / "train.yaml").write_text(f"deepspeed_config: {tmp_path}/ds.json\n")
    with pytest.raises(UserError, match=r"ds\.json: train_batch_size: not given"):
        ppa_fast.align(str(tiny.model), text, tmp_path / "out", train_settings=tmp_path / "train.yaml")


def test_what_no_stage_has_used_may_still_change(chosen, tiny, text, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="absent: no such file"):
        ppa_fast.align(str(tiny.model), text, out, dev=[f"en-de:{tmp_path}/absent"])
    (tmp_path / "train.yaml").write_text("queue_sise: 3\n")
    with pytest.raises(UserError, match="found unknown names queue_sise"):
        ppa_fast.align(str(tiny.model), text, out, train_settings=tmp_path / "train.yaml")  # after holding out
    with pytest.raises(UserError, match=r"pairs: found .* was made with"):
        ppa_fast.align(str(tiny.model), text[:1], out)
    assert chosen(steps=5)["train"]["steps"] == 5
    with pytest.raises(UserError, match=r"steps: found 6, but .* was made with 5; expected another --out"):
        ppa_fast.align(str(tiny.model), text, out, steps=6)


def test_a_sentence_encoder_gets_the_retrieval_recipe(chosen, tiny, tmp_path):
    model = tmp_path / "encoder"
    AutoModel.from_pretrained(tiny.model).save_pretrained(model)
    for file in tiny.tokenizer.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    assert workflow._recipe(str(model)) == ("retrieval", "the model has no MLM head")
    SentenceModules().write(model, 32, "mean", 24)
    found = chosen(model=str(model))
    assert found["train"]["recipe"] == "retrieval"
    assert found["chosen"]["reason"] == "the model is a sentence encoder"
    assert "queue_size" not in found["train"]
    assert read_manifest(tmp_path / "out" / "store")["max_tokens"] == 22


def test_precision_and_batch_suit_the_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(workflow, "uses_cuda", lambda: True)
    for bf16, ranks, pairs in ((True, 1, 10**6), (False, 1, 10**6), (True, 3, 10**6), (True, 1, 100)):
        monkeypatch.setattr(workflow, "place", lambda _, n=ranks: SimpleNamespace(ranks=n, config="gpu1.json"))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, found=bf16: found)
        found, config = workflow._config(None, pairs, tmp_path)
        assert found == ranks
        assert ("bf16" in config) == bf16
        batch, micro_batch = config["train_batch_size"], config["train_micro_batch_size_per_gpu"]
        assert batch % (ranks * micro_batch) == 0
        assert batch == {(1, 10**6): 256, (3, 10**6): 192, (1, 100): 4}[ranks, pairs]


@pytest.mark.parametrize(("gib", "expected"), [(24, 64), (8, 16)])
def test_a_cpu_with_much_memory_has_larger_micro_batches(monkeypatch, tmp_path, gib, expected):
    monkeypatch.setattr(workflow, "uses_cuda", lambda: False)
    monkeypatch.setattr(workflow, "place", lambda _: SimpleNamespace(ranks=1, config="cpu.json"))
    monkeypatch.setattr(workflow.psutil, "virtual_memory", lambda: SimpleNamespace(total=gib << 30))
    for pairs, micro_batch in ((10**6, expected), (100, 2)):
        assert workflow._config(None, pairs, tmp_path)[1]["train_micro_batch_size_per_gpu"] == micro_batch


def test_stopped_training_is_an_interruption_and_failed_training_an_error(monkeypatch, tmp_path):
    train = {"model": "m", "output": str(tmp_path), "steps": 3, "deepspeed_config": "ds.json"}
    monkeypatch.setattr(workflow, "launch", lambda *_: 0)  # without the last checkpoint
    with pytest.raises(KeyboardInterrupt):
        workflow._train(train)
    monkeypatch.setattr(workflow, "launch", lambda *_: 1)
    with pytest.raises(UserError, match=r"exit status 1; .* lower train_micro_batch_size_per_gpu in ds.json"):
        workflow._train(train)


@pytest.mark.parametrize(
    ("of_rank", "tried"),
    [(32, [32, 16, 8, 4]), (45, [45, 15, 5]), (24, [24, 12, 6, 3])],
    ids=["even", "odd", "divides"],
)
def test_the_micro_batch_is_reduced_until_it_fits(monkeypatch, tmp_path, of_rank, tried):
    """It divides the pairs of a rank. From 9 pairs on, the device runs out of memory; a pair needs 0.1 of it."""
    found = []

    def steps(settings):
        written = json.loads(Path(settings.deepspeed_config).read_text())
        micro_batch = written["train_micro_batch_size_per_gpu"]
        assert written["train_batch_size"] == min(max(64, micro_batch), of_rank)
        found.append(micro_batch)
        if micro_batch > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 50.0, 0.1 * micro_batch

    monkeypatch.setattr(measure, "_steps", steps)
    config = {"train_batch_size": 2 * of_rank, "train_micro_batch_size_per_gpu": of_rank}
    chosen = measure.measure(Settings(deepspeed_config=str(tmp_path / "ds.json")), config, 2)
    assert chosen == measure.Measured(tried[-1], 50.0)
    assert found == tried


def test_settings_name_at_most_one_limit():
    with pytest.raises(UserError, match="steps and minutes: found both"):
        AlignSettings("m", ["en-de:a,b"], "o", steps=3, minutes=2)
