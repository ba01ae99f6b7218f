"""Every error of a run is reported before it starts, and nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import AlbertConfig, AutoModel, AutoModelForMaskedLM, GPT2Config

from ppa_fast.data.loading.sampler import BalancedSampler, Sampler
from ppa_fast.data.store.prepare import prepare
from ppa_fast.data.store.store import Store
from ppa_fast.data.store.tokenize import load_tokenizer
from ppa_fast.data.store.wordpiece import train_wordpiece
from ppa_fast.errors import UserError
from ppa_fast.model.initialise import init_model
from ppa_fast.model.sentence_transformer import SentenceModules
from ppa_fast.settings import Settings
from ppa_fast.training import preflight
from ppa_fast.training.preflight import RunPlan, sampling_table
from ppa_fast.training.trainer import train
from tests.conftest import Tiny, write_config
from tests.model.sizes import SIZES

PAIRS = 300  # pairs of the tiny store


@pytest.fixture
def options(tiny: Tiny, tmp_path: Path) -> dict:
    config = write_config(tmp_path / "ds.json", batch=8)
    paths = {"model": tiny.model, "data": tiny.store, "output": tmp_path / "run", "deepspeed_config": config}
    return {**{name: str(path) for name, path in paths.items()}, "queue_size": 15, "momentum": 0.7}


def plan(options: dict, world_size: int = 1, **more) -> RunPlan:
    return preflight.check(Settings(**{**options, **more}), world_size)


def refused(options: dict, message: str, **more) -> str:
    output = Path({**options, **more}["output"])
    before = sorted(map(str, output.rglob("*"))) if output.is_dir() else output.exists()
    with pytest.raises(UserError, match=message) as caught:
        plan(options, **more)
    # The run itself reports the same error, and does not start.
    with pytest.raises(UserError, match=message):
        train(Settings(**{**options, **more}))
    assert (sorted(map(str, output.rglob("*"))) if output.is_dir() else output.exists()) == before
    return str(caught.value)


def test_tensorboard_that_is_not_installed_is_disabled_with_a_warning(options, tmp_path, monkeypatch):
    (tmp_path / "board.json").write_text(json.dumps({"train_batch_size": 8, "tensorboard": {"enabled": True}}))
    made = plan(options, deepspeed_config=str(tmp_path / "board.json"))
    assert made.config.values["tensorboard"]["enabled"]
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    without = plan(options, deepspeed_config=str(tmp_path / "board.json"))
    assert not without.config.values["tensorboard"]["enabled"]
    assert [w for w in without.warnings if w not in made.warnings] == [
        f"{tmp_path / 'board.json'}: tensorboard: enabled, but not installed; metrics.jsonl has the same "
        "figures. To install: pip install 'ppa-fast[tensorboard]'"
    ]


def test_the_warning_about_a_damaged_checkpoint_is_in_the_plan_and_not_logged(options, monkeypatch, caplog):
    """The launcher and every rank make the plan; rank 0 logs its warnings."""
    monkeypatch.setattr(preflight.Checkpoints, "resume_point", lambda self, warn: warn("a file is damaged"))
    assert plan(options).warnings[0] == "a file is damaged"
    assert "damaged" not in caplog.text


def test_a_valid_run_has_a_plan(options, tiny):
    good = plan(options)
    assert (good.config.batch, good.config.micro_batch, len(good.data)) == (8, 8, PAIRS)
    assert good.tokenizer.mask_token == "[MASK]"
    assert (good.resume_from, good.warnings, good.eval_pairs) == (None, [], [])
    assert not Path(options["output"]).exists()


@pytest.mark.parametrize(
    ("length", "steps"),
    [
        ({}, 38),  # ceil(300 / 8)
        ({"epochs": 2}, 75),
        ({"epochs": 1.01}, 38),  # ceil(303 / 8)
        ({"epochs": 0.5}, 19),  # ceil(150 / 8)
        ({"epochs": 1e-6}, 1),
        ({"steps": 5}, 5),
    ],
)
def test_steps_are_computed_from_epochs(options, length, steps):
    assert plan(options, **length).steps == steps


@pytest.mark.parametrize("name", ["model", "data", "output", "deepspeed_config"])
def test_required_settings_are_named(options, name):
    with pytest.raises(UserError, match=f"^{name}: not given.*--{name.replace('_', '-')}"):
        plan(options, **{name: ""})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model", r"absent: no such folder; expected a Hugging Face model folder"),
        ("data", r"absent: no such store"),
        ("deepspeed_config", r"^deepspeed_config: .*absent: No such file"),
    ],
)
def test_a_missing_file_is_named(options, tmp_path, name, message):
    refused(options, message, **{name: str(tmp_path / "absent")})


def test_an_unfinished_store_is_an_error(options, tiny, tmp_path):
    store = shutil.copytree(tiny.store, tmp_path / "killed")
    (store / "manifest.json").unlink()
    refused(options, "killed: an unfinished store, run prepare again", data=str(store))


@pytest.mark.parametrize(
    ("file", "message"),
    [("config.json", "part: cannot be loaded with AutoConfig"), ("tokenizer*", "tokenizer .*part: has no vocabulary")],
)
def test_an_incomplete_model_folder_is_an_error(options, tiny, tmp_path, file, message):
    model = shutil.copytree(tiny.model, tmp_path / "part")
    for path in model.glob(file):
        path.unlink()
    refused(options, message, model=str(model))


def test_a_model_of_an_unsupported_family_is_an_error(options, tiny, tmp_path):
    other = shutil.copytree(tiny.model, tmp_path / "gpt2")
    GPT2Config(vocab_size=200, n_embd=32, n_head=2).save_pretrained(other)
    refused(options, "gpt2: model type 'gpt2' cannot be trained; expected a text encoder", model=str(other))


def test_a_model_without_an_mlm_head_gets_a_new_one(options, tiny, tmp_path):
    headless = shutil.copytree(tiny.model, tmp_path / "headless")
    AutoModel.from_pretrained(tiny.model).save_pretrained(headless)
    (warning,) = plan(options, model=str(headless)).warnings
    assert "headless has no MLM head: TLM starts with a random one" in warning
    assert "--no-tlm" in warning
    assert plan(options, model=str(headless), tlm=False).warnings == []


def test_the_pooling_comes_from_a_sentence_transformers_folder(options, tiny, tmp_path):
    model = shutil.copytree(tiny.model, tmp_path / "sentences")
    assert plan(options, model=str(model)).settings.pooling == "cls"
    SentenceModules().write(model, 32, "mean", 20)
    assert plan(options, model=str(model)).settings.pooling == "mean"
    assert plan(options, model=str(model), pooling="cls").settings.pooling == "cls"
    modules = json.loads((model / "modules.json").read_text())
    (model / "modules.json").write_text(json.dumps([*modules, {"type": "sentence_transformers.Dense", "path": "2"}]))
    refused(options, "sentences has the module Dense, which is not trained here", model=str(model))
    assert plan(options, model=str(model), pooling="mean").settings.pooling == "mean"


def test_a_sentence_transformers_folder_has_the_retrieval_recipe_unless_one_of_its_values_is_given(
    options, tiny, tmp_path
):
    model = shutil.copytree(tiny.model, tmp_path / "sentences")
    del options["queue_size"]
    assert plan(options, model=str(model), queue_size=15).settings.recipe == "paper"
    SentenceModules().write(model, 32, "mean", 50)
    chosen = plan(options, model=str(model), temperature=0.1).settings
    assert (chosen.recipe, chosen.contrast, chosen.tlm, chosen.temperature) == ("retrieval", "symmetric", False, 0.1)
    assert plan(options, model=str(model), queue_size=15).settings.contrast == "moco"
    assert plan(options, model=str(model), recipe="paper", queue_size=15).settings.tlm


def test_a_store_of_another_tokenizer_is_an_error(options, tiny, tmp_path):
    files = [tiny.pairs[0].partition(":")[2].split(",")[0]]
    train_wordpiece(files, tmp_path / "other", vocab_size=90)
    prepare(tiny.pairs[:1], str(tmp_path / "other"), tmp_path / "store", max_tokens=30)
    message = refused(options, "which is not that of the model", data=str(tmp_path / "store"))
    assert str(tmp_path / "other") in message
    assert f"--tokenizer {tiny.model}" in message


def test_fewer_embeddings_than_tokens_are_an_error(options, tiny, tmp_path):
    model = shutil.copytree(tiny.model, tmp_path / "small")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": 150}))
    tokens = Store.open(tiny.store).special.vocab_size
    refused(
        options,
        f"small: found 150 embeddings, expected at least {tokens}, one for each token",
        model=str(model),
    )


@pytest.mark.parametrize(("family", "positions"), [("bert", 24), ("xlm-roberta", 24)])
def test_too_few_positions_are_an_error(options, tiny, tmp_path, family, positions):
    store = Store.open(tiny.store)
    a, b = store.manifest["longest_a"], store.manifest["longest_b"]
    longest = max(a, b)

    def model(limit: int) -> str:
        folder = tmp_path / f"{limit}"
        if not folder.exists():
            sizes = {"layers": 1, "hidden": 8, "heads": 1, "max_positions": limit}
            init_model(folder, str(tiny.tokenizer), family, **sizes)
        return str(folder)

    needed = a + b + 3
    message = refused(options, f"together {needed} with special tokens", model=model(needed - 1))
    assert f"has {needed - 1} positions: prepare with --max-tokens {(needed - 4) // 2}" in message
    assert plan(options, model=model(needed)).steps
    # Without TLM no sequence contains both sentences.
    assert plan(options, model=model(needed - 1), tlm=False).steps
    assert plan(options, model=model(longest + 2), tlm=False).steps
    message = refused(options, f"up to {longest} tokens", model=model(longest + 1), tlm=False)
    assert f"prepare with --max-tokens {longest - 1}" in message


def test_a_batch_that_the_ranks_cannot_divide_is_an_error(options, tmp_path):
    config = str(write_config(tmp_path / "micro.json", batch=8, micro=8))
    assert plan(options, deepspeed_config=config).config.accumulation == 1
    with pytest.raises(UserError, match=r"train_batch_size: found 8, expected a multiple of .* 8 × 2 ranks"):
        plan(options, world_size=2, deepspeed_config=config)


def test_a_queue_smaller_than_the_batch_is_an_error(options):
    refused(options, "^queue_size: found 7, expected at least the global batch, 8", queue_size=7)
    assert plan(options, queue_size=8).warnings == []
    assert plan(options, queue_size=1, moco=False).warnings == []


def test_a_queue_size_of_0_needs_the_symmetric_contrast(options):
    refused(options, "^queue_size: found 0, expected at least the global batch, 8", queue_size=0)
    refused(options, "^queue_size: found 15, expected 0: contrast symmetric", contrast="symmetric")
    assert plan(options, contrast="symmetric", queue_size=0).warnings == []
    assert plan(options, contrast="symmetric", moco=False).warnings == []


def test_in_batch_negatives_need_moco(options):
    assert plan(options, in_batch_negatives=True).settings.in_batch_negatives
    symmetric = {"contrast": "symmetric", "queue_size": 0}
    refused(
        options,
        "^in_batch_negatives: found true, expected false; only contrast moco",
        in_batch_negatives=True,
        **symmetric,
    )
    refused(
        options,
        "^in_batch_negatives: found true, expected false; only contrast moco",
        in_batch_negatives=True,
        moco=False,
    )


def test_moco_without_a_projection_accepts_every_width_of_infonce(options, tiny, tmp_path):
    assert plan(options, projection_dim=0).settings.projection_dim == 0
    init_model(tmp_path / "odd", str(tiny.tokenizer), layers=1, hidden=36, heads=2, max_positions=64)
    odd = {"model": str(tmp_path / "odd"), "projection_dim": 0}
    refused(options, "^projection_dim: found 0, but .* vectors of 36 elements .* a multiple of 8 up to 4096", **odd)
    assert plan(options, contrast="symmetric", queue_size=0, **odd).settings.projection_dim == 0


def test_a_momentum_too_slow_for_the_steps_gives_a_warning(options):
    assert plan(options, steps=100, momentum=0.9).warnings == []
    (warning,) = plan(options, steps=100, momentum=0.91).warnings
    assert warning.startswith("momentum 0.91 averages over more than 10% of the run's 100")
    assert warning.endswith("consider 0.9")
    (warning,) = plan(options, steps=620, momentum=0.999).warnings
    assert warning.endswith("consider 0.983")
    assert plan(options, steps=620, momentum=0.983).warnings == []
    (warning,) = plan(options, steps=5, momentum=0.5).warnings
    assert warning.endswith("consider more steps or contrast symmetric")
    assert plan(options, steps=10_000, momentum=0.999).warnings == []
    assert plan(options, steps=5, moco=False).warnings == []
    assert plan(options, steps=5, contrast="symmetric", queue_size=0).warnings == []


def test_a_queue_above_5_per_cent_of_the_pairs_gives_a_warning(options):
    assert plan(options, queue_size=PAIRS // 20).warnings == []
    (warning,) = plan(options, queue_size=PAIRS // 20 + 1).warnings
    assert warning.startswith("queue_size 16 is 5% of the 300 pairs")
    assert warning.endswith("consider queue_size 15")
    (warning,) = plan(options, queue_size=PAIRS * 2).warnings
    assert "200% of the 300 pairs" in warning
    assert plan(options, queue_size=PAIRS, moco=False).warnings == []


def test_a_warning_suggests_no_queue_that_is_not_smaller(options, tmp_path):
    """A queue holds at least the global batch, which may be above 5 % of the pairs by itself."""
    for size, suggested in (
        (33, "consider queue_size 32"),
        (32, "consider a smaller batch, more pairs, or contrast symmetric,"),
    ):
        config = write_config(tmp_path / "ds.json", 32, 16)
        warning, *_ = plan(options, queue_size=size, deepspeed_config=str(config)).warnings
        assert warning.startswith(f"queue_size {size} is")
        assert suggested in warning


# Sampling across language pairs: the tiny store has 150 pairs of en-de and 150 of fr-en.


@pytest.fixture
def uneven(options, tiny, tmp_path) -> dict:
    """The tiny store, and another store with 150 more pairs of en-de: 300 and 150."""
    prepare(tiny.pairs[:1], str(tiny.tokenizer), tmp_path / "more", max_tokens=30)
    return {**options, "data": [str(tiny.store), str(tmp_path / "more")]}


def test_without_rebalancing_all_pairs_are_shuffled_together(options, uneven):
    for more in ({}, {"sampling_cap": 300}, {"max_upsampling": 1}):
        good = plan(uneven, **more)
        assert type(good.sampler) is Sampler
        assert good.sampling_counts == {"en-de": 300, "fr-en": 150}
        assert good.sampler.per_epoch == 450
    assert type(plan(options, sampling_alpha=0.3).sampler) is Sampler  # language pairs of equal size


def test_sampling_counts_follow_the_settings(uneven):
    good = plan(uneven, sampling_alpha=0)
    assert isinstance(good.sampler, BalancedSampler)
    assert good.sampling_counts == {"en-de": 225, "fr-en": 225}
    assert good.steps == 57  # ceil(450 / 8)
    capped = plan(uneven, sampling_alpha=0, sampling_cap=200, max_upsampling=1.2, epochs=2)
    assert capped.sampling_counts == {"en-de": 200, "fr-en": 180}
    assert (capped.sampler.per_epoch, capped.steps) == (380, 95)
    rows, _ = capped.sampler.at(np.arange(380))
    assert np.bincount(capped.data.segments[:, 0], minlength=2).tolist() == [2, 1]
    assert ((rows >= 150) & (rows < 300)).sum() == 180  # fr-en


def test_the_sampling_table_is_logged():
    lines = sampling_table(
        {"en-de": 1_000_000, "zh_Hant-en": 500, "en-sw": 0}, {"en-de": 6000, "zh_Hant-en": 2000, "en-sw": 0}
    )
    assert [line.split() for line in lines.splitlines()] == [
        ["language", "pair", "pairs", "draws", "an", "epoch", "share", "draws", "of", "a", "pair"],
        ["en-de", "1,000,000", "6,000", "75.00%", "0.01"],
        ["zh_Hant-en", "500", "2,000", "25.00%", "4.00"],
        ["en-sw", "0", "0", "0.00%", "0.00"],
    ]
    assert len({len(line) for line in lines.splitlines()}) == 1


# The output.


def test_an_output_that_is_a_file_is_an_error(options, tmp_path):
    (tmp_path / "run").write_text("")
    refused(options, "^output: .* is a file")


@pytest.mark.parametrize("name", ["thesis.tex", "data"])
def test_an_output_with_foreign_files_is_an_error(options, tmp_path, name):
    (tmp_path / "run" / name).mkdir(parents=True)
    refused(options, f"^output: .* holds {name}, which does not belong to a run; expected an empty folder")


def test_an_output_with_a_model_but_no_run_is_an_error(options, tiny, tmp_path):
    shutil.copytree(tiny.model, tmp_path / "run" / "model")
    refused(options, "^output: .* holds model, which does not belong to a run")


def test_usable_outputs_are_accepted(options, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    assert plan(options).resume_from is None
    (run / ".nfs0001").write_text("")
    assert plan(options, resume="never").resume_from is None
    # The files of a run that was killed before its first checkpoint.
    (run / "model").mkdir()
    for name in ("settings.yaml", "metrics.jsonl", "evaluations.jsonl", "model/untouched.safetensors"):
        (run / name).write_text("")
    (run / "checkpoints" / ".step-00000001.tmp").mkdir(parents=True)
    assert plan(options).resume_from is None


def test_a_latest_without_its_checkpoint_is_an_error(options, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "latest").write_text("step-00000009")
    refused(options, "latest: found step-00000009, expected the name of an existing checkpoint folder")


def test_a_damaged_state_is_an_error(options, tmp_path):
    folder = tmp_path / "run" / "checkpoints" / "step-00000009"
    folder.mkdir(parents=True)
    (folder.parent / "latest").write_text(folder.name)
    refused(options, r"state\.json: cannot be read")
    (folder / "state.json").write_text('{"step": 9')
    refused(options, r"state\.json: cannot be read")


# Evaluation pairs.


@pytest.fixture
def texts(tmp_path):
    content = {"en": "a\nb\n", "de": "c\nd\n", "short": "e\n", "none": "", "bad": "x\n\n", "one.tsv": "a\tb\n"}
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_evaluation_pairs_are_read(options, texts):
    ((source, a, b),) = plan(options, eval_pairs=[f"en-de:{texts}/en,{texts}/de"]).eval_pairs
    assert (source.name, a, b) == ("en-de", ["a", "b"], ["c", "d"])


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["en-de:{0}/en,{0}/short"], "files of unequal length: .*en has 2 lines, .*short has 1"),
        (["en-de:{0}/short,{0}/short"], "^eval_pairs: en-de: found 1 sentence in .*short, expected"),
        (["en-de:{0}/en,{0}/de", "en-fr:{0}/one.tsv"], r"^eval_pairs: en-fr: found 1 sentence in .*one\.tsv"),
        (["en-de:{0}/none,{0}/none"], "found no pairs"),
        (["en-de:{0}/en,{0}/bad"], "bad:2: empty side"),
        (["en-de:{0}/en,{0}/absent"], "absent: no such file"),
        (["en-qqqqq:{0}/en,{0}/de"], "unknown language code 'qqqqq'"),
        (["{0}/en,{0}/de"], "expected 'en-de:train.en,train.de'"),
        (["en-de:{0}/en,{0}/de", "en-de:{0}/de,{0}/en"], "^eval_pairs: en-de is given twice"),
    ],
)
def test_invalid_evaluation_pairs_are_an_error(options, texts, specs, message):
    refused(options, message, eval_pairs=[spec.format(texts) for spec in specs])


@pytest.mark.parametrize(("name", "value"), [("freeze_layers", 3), ("freeze_layers", -3), ("contrast_layer", 3)])
def test_more_layers_than_there_are(options, name, value):
    refused(options, rf"^{name}: found {value}; .* has 2 layers, expected no more", **{name: value})


@pytest.mark.parametrize("setting", [{"contrast_layer": 1}, {"freeze_layers": -1}], ids=str)
def test_layers_that_share_their_weights(tiny, tmp_path, setting):
    config = AlbertConfig(**{**SIZES, "vocab_size": 200, "max_position_embeddings": 80}, embedding_size=16)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "albert")
    load_tokenizer(str(tiny.tokenizer)).save_pretrained(tmp_path / "albert")
    options = {"model": tmp_path / "albert", "data": tiny.store, "output": tmp_path / "run"}
    options |= {"deepspeed_config": write_config(tmp_path / "ds.json", batch=8), "queue_size": 15}
    (name,) = setting
    with pytest.raises(UserError, match=f"^{name}: found model type 'albert', whose layers cannot be told apart"):
        train(Settings(**{name: str(path) for name, path in options.items()}, **setting))
    assert not (tmp_path / "run").exists()


def test_compile_with_zero_3_is_an_error(options, tmp_path):
    config = write_config(tmp_path / "zero3.json", batch=8, stage=3)
    refused(options, r"^compile: ZeRO stage 3 .*zero3\.json", compile=True, deepspeed_config=str(config))


def test_bf16_products_are_used_if_faster_and_no_precision_is_given(options, tmp_path, monkeypatch):
    unnamed = tmp_path / "unnamed.json"
    unnamed.write_text(json.dumps({"train_batch_size": 8}), encoding="utf-8")
    free = {**options, "deepspeed_config": str(unnamed)}
    for fast in (False, True):
        monkeypatch.setattr("ppa_fast.training.preflight.has_fast_bf16", lambda *_, fast=fast, **__: fast)
        assert plan(free).bf16_products is fast
        assert plan(options).bf16_products is False  # its bf16 block disables bf16


def test_a_resumed_run_keeps_its_precision(options, tmp_path, monkeypatch, caplog):
    unnamed = tmp_path / "unnamed.json"
    unnamed.write_text(json.dumps({"train_batch_size": 8}), encoding="utf-8")
    free = {**options, "deepspeed_config": str(unnamed), "steps": 1}
    monkeypatch.setattr("ppa_fast.training.preflight.has_fast_bf16", lambda *_, **__: True)
    train(Settings(**free))
    assert caplog.text.count("computed in bf16") == 1
    monkeypatch.setattr("ppa_fast.training.preflight.has_fast_bf16", lambda *_, **__: False)
    assert plan(free, steps=2).bf16_products is True
    named = write_config(tmp_path / "named.json", batch=8)
    assert plan(free, steps=2, deepspeed_config=str(named)).bf16_products is False
    # Runs of older versions computed in fp32.
    state = next((tmp_path / "run" / "checkpoints").glob("step-*/state.json"))
    content = json.loads(state.read_text(encoding="utf-8"))
    del content["bf16_products"]
    state.write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr("ppa_fast.training.preflight.has_fast_bf16", lambda *_, **__: True)
    assert plan(free, steps=2).bf16_products is False
