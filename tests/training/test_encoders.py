"""Encoders that users start from: prepared, trained, exported, and loaded by their original libraries."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    BertModel,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    XLMRobertaTokenizer,
)

from ppa_fast.data.store.prepare import prepare
from ppa_fast.data.store.tokenize import load_tokenizer
from ppa_fast.errors import UserError
from ppa_fast.model.sentence_transformer import SentenceModules
from ppa_fast.tasks import evaluate
from ppa_fast.tasks.embedder import Embedder
from ppa_fast.training.export import export
from ppa_fast.training.json_lines import read_lines
from tests.conftest import Tiny, write_config
from tests.model.configs import PACKED, PADDED
from tests.model.sizes import SIZES
from tests.training.harness import largest_difference, metrics, run_here, tensors

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def sentencepiece_tokenizer(folder: Path) -> XLMRobertaTokenizer:
    """A tokenizer with XLM-R's special tokens at the same ids: 0, 1, 2, 3, and the mask last."""
    vocab = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
    vocab += [(piece, -1.0 - i) for i, piece in enumerate(["▁", *LETTERS])] + [("<mask>", 0.0)]
    tokenizer = XLMRobertaTokenizer(vocab=vocab)
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.fixture(scope="module")
def base(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model like multilingual-e5-small: BERT with XLM-R's tokenizer, more embeddings than tokens, no head; a
    sentence-transformers folder with mean pooling, prompts and Normalize. Its folder ``store`` has prepared text."""
    folder = tmp_path_factory.mktemp("encoders") / "e5"
    tokenizer = sentencepiece_tokenizer(folder)
    torch.manual_seed(0)
    config = BertConfig(**{**SIZES, "vocab_size": len(tokenizer) + 35, "max_position_embeddings": 80}, pad_token_id=0)
    BertModel(config).save_pretrained(folder)
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query", "similarity_fn_name": "cosine"}
    SentenceModules(normalize=True, prompts=prompts).write(folder, 32, "mean", 20)
    prepare(tiny.pairs, str(folder), folder / "store", max_tokens=24)
    return folder


def job(base: Path, run: Path, **settings: Any) -> dict[str, Any]:
    config = write_config(run.with_suffix(".json"), 16, stage=1)
    paths = {"model": base, "data": base / "store", "output": run, "deepspeed_config": config}
    return {**{name: str(path) for name, path in paths.items()}, "queue_size": 32, "steps": 1, **settings}


def text_of(tiny: Tiny) -> list[str]:
    return Path(tiny.pairs[0].partition(":")[2].split(",")[0]).read_text(encoding="utf-8").splitlines()[:20]


@pytest.mark.parametrize("tlm", [False, True])
def test_a_sentence_transformer_is_unchanged_after_a_minimal_training(
    base: Path, tiny: Tiny, tmp_path: Path, tlm: bool
) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    run_here(job(base, tmp_path / "run", tlm=tlm, learning_rate=1e-12))
    export(tmp_path / "run", tmp_path / "out")
    before, after = (library.SentenceTransformer(str(folder), device="cpu") for folder in (base, tmp_path / "out"))
    texts = text_of(tiny)
    vectors = after.encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(vectors, before.encode(texts, convert_to_tensor=True), atol=1e-5, rtol=0)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(texts)))
    assert (after.max_seq_length, after.prompts, after.default_prompt_name) == (20, before.prompts, "query")
    assert not torch.allclose(vectors, after.encode(texts, prompt="", convert_to_tensor=True), atol=1e-2)

    _, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert bool(info["missing_keys"]) != tlm
    pooler = AutoModel.from_pretrained(base).pooler.dense.weight
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "out").pooler.dense.weight, pooler)


def test_a_new_head_is_created_and_learns(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    training = {"steps": 12, "learning_rate": 3e-3, "log_every": 1, "temperature": 0.2, "save_every": 6}
    run_here(job(base, tmp_path / "run", **training))
    note = "e5 has no MLM head: TLM starts with a random one, tied to the embeddings; --no-tlm trains without TLM"
    assert note in caplog.text
    lines = metrics(tmp_path / "run")
    assert lines[-1]["loss_tlm"] < 0.8 * lines[0]["loss_tlm"]
    export(tmp_path / "run", tmp_path / "out")
    mlm, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert mlm.get_output_embeddings().weight is mlm.get_input_embeddings().weight

    texts = (tmp_path / "texts").with_suffix(".txt")
    texts.write_text("kalo mine\npu lo\n")
    result = evaluate(model=str(tmp_path / "out"), pairs=[f"en-de:{texts},{texts}"])
    assert (result["pooling"], result["mean"]) == ("mean", 1.0)


def tiny_model(config: PretrainedConfig, tokenizer: Path, folder: Path) -> Path:
    """A folder with a random masked language model and a tokenizer of 200 tokens."""
    config = copy.deepcopy(config)
    config.vocab_size, config.max_position_embeddings = 200, 80
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    load_tokenizer(str(tokenizer)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", [*PACKED, "deberta-v2", "rembert"])
def test_a_short_training_lowers_the_losses_and_exports(
    name: str, tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model({**PACKED, **PADDED}[name], tiny.tokenizer, tmp_path / "base")
    training = {"steps": 40, "learning_rate": 3e-3, "log_every": 1, "momentum": 0.9, "pooling": "mean"}
    run_here(job(model, tmp_path / "run", data=str(tiny.store), **training))
    assert ("runs on padded batches" in caplog.text) == (name in PADDED)
    lines = metrics(tmp_path / "run")
    for loss in ("loss_tlm", "loss_moco"):
        assert sum(line[loss] for line in lines[-5:]) < 0.97 * sum(line[loss] for line in lines[:5]), loss

    export(tmp_path / "run", tmp_path / "out")
    loaded, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    trained, exported = tensors(tmp_path / "run", 40, "query"), loaded.state_dict()
    weights = {name.removeprefix("mlm."): w for name, w in trained.items() if name.startswith("mlm.")}
    assert weights
    assert all(torch.equal(weight, exported[name]) for name, weight in weights.items())


@pytest.mark.parametrize("name", ["modernbert", "deberta-v2"])
def test_zero_stages_agree_and_resume_each_other(name: str, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny_model({**PACKED, **PADDED}[name], tiny.tokenizer, tmp_path / "base")
    results = {}
    for stage in (0, 1, 3):
        training = job(model, tmp_path / f"run-{stage}", data=str(tiny.store), steps=4, save_every=2, pooling="mean")
        training |= {"deepspeed_config": str(write_config(tmp_path / f"{stage}.json", 16, 8, stage=stage))}
        run_here(training)
        results[stage] = tensors(tmp_path / f"run-{stage}", 4, "query")
    assert largest_difference(results[0], results[1]) < 1e-5
    assert largest_difference(results[0], results[3]) < 1e-5

    begun = job(model, tmp_path / "resumed", data=str(tiny.store), steps=4, save_every=2, pooling="mean")
    shutil.copytree(tmp_path / "run-1", tmp_path / "resumed")
    (tmp_path / "resumed" / "checkpoints" / "latest").write_text("step-00000002\n")
    begun |= {"deepspeed_config": str(tmp_path / "3.json")}
    run_here(begun)
    assert largest_difference(results[0], tensors(tmp_path / "resumed", 4, "query")) < 1e-5


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_libraries_pool_the_layer_of_the_contrast_in_an_encoder_cut_there(
    name: str, tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    model = tiny_model(PACKED[name], tiny.tokenizer, tmp_path / "base")
    dev = tiny.pairs[0]
    training = {"steps": 2, "contrast_layer": 1, "pooling": "mean", "eval_pairs": [dev]}
    run_here(job(model, tmp_path / "run", data=str(tiny.store), **training))
    for folder, layers in (("whole", None), ("cut", 1)):
        export(tmp_path / "run", tmp_path / folder, "latest", layers)
    assert caplog.text.count("the sentence vectors of layer 1 were trained; --layers 1 exports") == 1
    assert "`ppa-fast export --layers 1`" in (tmp_path / "whole" / "README.md").read_text(encoding="utf-8")
    assert "--layers" not in (tmp_path / "cut" / "README.md").read_text(encoding="utf-8")

    texts = text_of(tiny)
    whole, cut = Embedder(str(tmp_path / "whole")), Embedder(str(tmp_path / "cut"))
    assert (whole.layer, cut.layer, cut.encoder.config.num_hidden_layers) == (1, None, 1)
    vectors = whole.sentences(texts, "mean", progress="")
    torch.testing.assert_close(cut.sentences(texts, "mean", progress=""), vectors, atol=1e-5, rtol=0)
    loaded = library.SentenceTransformer(str(tmp_path / "cut"), device="cpu")
    torch.testing.assert_close(loaded.encode(texts, convert_to_tensor=True), vectors, atol=1e-5, rtol=0)
    assert not torch.allclose(Embedder(str(tmp_path / "whole"), 2).sentences(texts, "mean", progress=""), vectors)

    evaluations = read_lines(tmp_path / "run" / "evaluations.jsonl")
    result = evaluate(model=str(tmp_path / "whole"), pairs=[dev])
    assert (result["layer"], result["mean"]) == (1, pytest.approx(evaluations[-1]["mean"]))
    with pytest.raises(UserError, match=r"^layers: found 9; the encoder has .*, expected no more"):
        export(tmp_path / "run", tmp_path / "out", "latest", 9)


def test_bos_and_eos_stand_for_cls_and_sep(tiny: Tiny, tmp_path: Path) -> None:
    """As EuroBERT and mmBERT; sentence-transformers puts them by the tokenizer's own template."""
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    model = tiny_model(PACKED["modernbert"], tiny.tokenizer, tmp_path / "base")
    backend = load_tokenizer(str(tiny.tokenizer)).backend_tokenizer
    specials = {"bos_token": "[CLS]", "eos_token": "[SEP]", "mask_token": "[MASK]", "pad_token": "[PAD]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **specials, unk_token="[UNK]").save_pretrained(model)
    assert load_tokenizer(str(model)).cls_token is None
    prepare(tiny.pairs, str(model), tmp_path / "store", max_tokens=24)
    run_here(job(model, tmp_path / "run", data=str(tmp_path / "store"), learning_rate=1e-12, pooling="mean"))
    export(tmp_path / "run", tmp_path / "out")
    texts = text_of(tiny)
    embedder, loaded = Embedder(str(tmp_path / "out")), library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    expected = embedder.sentences(texts, "mean", progress="")
    torch.testing.assert_close(loaded.encode(texts, convert_to_tensor=True), expected, atol=1e-5, rtol=0)
