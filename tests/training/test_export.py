"""Exports: every loader finds every weight, vectors agree between libraries, no partial output remains."""

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    BertConfig,
    BertForPreTraining,
    BertTokenizer,
    PreTrainedModel,
    XLMRobertaTokenizer,
)

from ppa_fast.data.store.tokenize import TextTokenizer, load_tokenizer, special_ids, tokenizer_fingerprint
from ppa_fast.errors import UserError
from ppa_fast.model.encoder import load_encoder, load_masked_lm
from ppa_fast.model.folder import save_base
from ppa_fast.model.initialise import init_model
from ppa_fast.model.vectors import sentence_vectors
from ppa_fast.tasks import evaluate
from ppa_fast.training.export import export
from tests.docs.pages import ROOT, blocks

TEXTS = ["the cat sat on a dog.", "ein hund", "a", "the dog and the cat " * 12, ""]
PIECES = ["▁", "▁the", "▁a", "▁cat", "▁dog", "▁ein", "▁hund", "▁and", "s", "a", "t", "o", "n", "."]


def make_tokenizer(family: str, folder: Path) -> None:
    if family == "bert":
        vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "cat", "sat", "on", "dog", "ein", "."]
        BertTokenizer(vocab={word: i for i, word in enumerate(vocab)}, do_lower_case=False).save_pretrained(folder)
    else:
        vocab = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
        vocab += [(piece, -1.0 - i) for i, piece in enumerate(PIECES)] + [("<mask>", 0.0)]
        XLMRobertaTokenizer(vocab=vocab).save_pretrained(folder)


def write_checkpoint(run: Path, mlm: PreTrainedModel, step: int, seed: int) -> dict[str, torch.Tensor]:
    """Writes a checkpoint with every weight of ``mlm`` changed; returns its tensors by their names in the model."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: parameter.detach() + torch.randn(parameter.shape, generator=generator) * 0.1
        for name, parameter in mlm.named_parameters()
    }
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    tensors = {f"mlm.{name}": tensor for name, tensor in weights.items()}
    save_file({**tensors, "projection.0.weight": torch.zeros(2, 2)}, folder / "query.safetensors")
    (folder / "state.json").write_text(json.dumps({"step": step}))
    (run / "checkpoints" / "latest").write_text(folder.name)
    return weights


def write_settings(run: Path, **more: Any) -> None:
    settings = {
        "model": str(run / "base"),
        "data": "/somewhere/store",
        "pooling": "mean",
        "learning_rate": 3e-5,
        "steps": None,
        "a_new_setting": "one | two",
        "store": {
            "pairs": {"en-de": 1200, "en-zh_Hant": 34},
            "languages": ["de", "en", "zh_Hant"],
            "max_tokens": 18,
            "batch": 64,
        },
        **more,
    }
    (run / "settings.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))


def write_evaluation(run: Path, step: int, score: float) -> None:
    pairs = {"en-de": {"a_to_b": score, "b_to_a": score / 2, "n": 10, "alignment": 0.1, "uniformity": -3.0}}
    with (run / "evaluations.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "pairs": pairs, "mean": score}) + "\n")


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def base_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with its base model in ``base`` and one checkpoint, in the form that training writes."""
    run = tmp_path_factory.mktemp("run")
    make_tokenizer(request.param, run / "tokenizer")
    sizes = {"layers": 2, "hidden": 32, "heads": 4, "max_positions": 32}
    init_model(run / "base", str(run / "tokenizer"), request.param, **sizes)
    mlm = load_masked_lm(str(run / "base"))
    save_base(mlm, str(run / "base"), load_tokenizer(str(run / "base")), run / "model")
    write_checkpoint(run, mlm, step=20, seed=20)
    write_settings(run)
    write_evaluation(run, 0, 0.1)
    write_evaluation(run, 20, 0.8)
    return run


@pytest.fixture
def run(base_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base_run, tmp_path / "run")


def test_every_weight_is_in_the_export(run: Path, tmp_path: Path) -> None:
    trained = write_checkpoint(run, load_masked_lm(str(run / "base")), step=30, seed=3)
    export(run, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [type(load_masked_lm(str(run / "base"))).__name__]
    assert config["dtype"] == "float32"

    mlm, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    state = mlm.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in trained.items())

    base = AutoModel.from_pretrained(run / "base").pooler.state_dict()
    encoder, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert all(torch.equal(tensor, base[name]) for name, tensor in encoder.pooler.state_dict().items())
    assert torch.equal(encoder.embeddings.word_embeddings.weight, mlm.get_input_embeddings().weight)

    tokenizers = [load_tokenizer(str(folder)) for folder in (run / "base", tmp_path / "out")]
    assert len(set(map(tokenizer_fingerprint, tokenizers))) == 1


def test_the_next_sentence_head_of_the_base_is_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    saved = BertForPreTraining(
        BertConfig(vocab_size=13, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
    )
    saved.save_pretrained(run / "base")
    make_tokenizer("bert", run / "base")
    mlm = load_masked_lm(str(run / "base"))
    save_base(mlm, str(run / "base"), load_tokenizer(str(run / "base")), run / "model")
    write_checkpoint(run, mlm, step=1, seed=1)
    write_settings(run)
    export(run, tmp_path / "out")
    loaded, info = AutoModelForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(loaded.cls.seq_relationship.weight, saved.cls.seq_relationship.weight)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_sentence_transformers_gives_equal_vectors(run: Path, tmp_path: Path, pooling: str) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    write_settings(run, pooling=pooling)
    export(run, tmp_path / "out")
    model = library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert model.max_seq_length == 20
    tokenizer = load_tokenizer(str(tmp_path / "out"))
    rows = TextTokenizer(tokenizer, 18)(TEXTS)
    assert max(map(len, rows)) == 18
    encoder = load_encoder(str(tmp_path / "out"))
    expected = sentence_vectors(encoder, rows, special_ids(tokenizer), pooling)
    vectors = model.encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-2)


def test_an_encoder_cut_above_a_layer_keeps_its_pooler_and_no_head(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out", layers=1)
    loaded, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert len(loaded.encoder.layer) == 1
    pooler = AutoModel.from_pretrained(run / "base").pooler.dense.weight
    assert torch.equal(loaded.pooler.dense.weight, pooler)
    assert "loads the head" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    export(run, tmp_path / "whole", layers=2)
    _, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not info["missing_keys"]
    assert "contrast_layer" not in (tmp_path / "whole" / "config.json").read_text(encoding="utf-8")


def test_evaluation_takes_the_pooling_of_the_export(run: Path, tmp_path: Path) -> None:
    write_settings(run, pooling="cls")
    export(run, tmp_path / "out")
    for code in ("en", "de"):
        (tmp_path / code).write_text("the cat\na dog\n")
    result = evaluate(model=str(tmp_path / "out"), pairs=[f"en-de:{tmp_path}/en,{tmp_path}/de"])
    assert result["pooling"] == "cls"
    assert result["mean"] == 1.0


def first_weight(folder: Path) -> torch.Tensor:
    return next(t for name, t in load_file(folder / "model.safetensors").items() if name.endswith("LayerNorm.bias"))


def test_the_checkpoint_can_be_selected(run: Path, tmp_path: Path) -> None:
    mlm = load_masked_lm(str(run / "base"))
    for step in (30, 40):
        write_checkpoint(run, mlm, step, seed=step)
    export(run, tmp_path / "without-best")
    (run / "checkpoints" / "best").write_text("step-00000030\n")
    for name in (None, "best", "latest", "step-00000020"):
        export(run, tmp_path / str(name), name)
    found = {
        name: first_weight(tmp_path / name) for name in ("without-best", "None", "best", "latest", "step-00000020")
    }
    assert torch.equal(found["None"], found["best"])
    assert torch.equal(found["without-best"], found["latest"])
    assert not torch.equal(found["best"], found["latest"])
    assert not torch.equal(found["step-00000020"], found["best"])
    assert "checkpoint of step 30." in (tmp_path / "best" / "README.md").read_text().replace("\n", " ")
    with pytest.raises(UserError, match=r"no checkpoint step-9; expected latest, best or one of: step-00000020, "):
        export(run, tmp_path / "out", "step-9")


def python_blocks(folder: Path) -> list[str]:
    """Returns the Python code in the model card of an exported folder, with its path and known words filled in."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    text = text.replace("path/to/this/folder", str(folder))
    text = text.replace('["A sentence.", "Ein Satz."]', '["the cat sat", "ein hund"]')
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_code_in_the_card_gives_equal_vectors_in_both_libraries(run: Path, tmp_path: Path, pooling: str) -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    write_settings(run, pooling=pooling)
    export(run, tmp_path / "out")
    of_sentence_transformers, of_transformers, _ = python_blocks(tmp_path / "out")
    first: dict[str, Any] = {}
    exec(of_sentence_transformers, first)
    second: dict[str, Any] = {}
    exec(of_transformers, second)
    assert first["similarities"].shape == (2, 2)
    torch.testing.assert_close(torch.from_numpy(first["vectors"]), second["vectors"], atol=1e-5, rtol=0)
    assert not torch.allclose(second["vectors"][0], second["vectors"][1], atol=1e-2)


def bitext_task(a: list[str], b: list[str]) -> Any:
    """A task of MTEB's type BitextMining (find b[i] for a[i]) with local data."""
    datasets = pytest.importorskip("datasets", reason="datasets, which comes with mteb, is not installed")
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.abstasks.text.bitext_mining import AbsTaskBitextMining

    class Bitext(AbsTaskBitextMining):
        metadata = TaskMetadata(
            name="Bitext",
            description="made up",
            type="BitextMining",
            category="t2t",
            dataset={"path": "none/none", "revision": "1"},
            eval_splits=["test"],
            eval_langs={"en-de": ["eng-Latn", "deu-Latn"]},
            main_score="accuracy",
        )

        def load_data(self, **options: Any) -> None:
            test = datasets.Dataset.from_dict({"sentence1": a, "sentence2": b})
            self.dataset = {"en-de": {"test": test}}
            self.data_loaded = True

    return Bitext()


def test_mteb_evaluates_the_export(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mteb = pytest.importorskip("mteb", reason="mteb is not installed")
    monkeypatch.setattr(mteb, "evaluate", partial(mteb.evaluate, cache=None))
    export(run, tmp_path / "out")
    (page,) = (block for block in blocks(ROOT / "docs" / "finetuning.md") if "import mteb" in block.text)
    texts = ["the cat sat on a dog.", "ein hund", "a", "the dog"]
    right, wrong = bitext_task(texts, texts), bitext_task(texts, texts[::-1])
    for task, accuracy in ((right, 1.0), (wrong, 0.0)):
        monkeypatch.setattr(mteb, "get_tasks", lambda tasks, task=task: [task])
        for code in (python_blocks(tmp_path / "out")[2], page.text.replace("aligned", str(tmp_path / "out"))):
            names: dict[str, Any] = {}
            exec(code, names)
            (scores,) = names["results"].task_results[0].scores["test"]
            assert scores["accuracy"] == accuracy


def test_the_card_describes_the_run_without_paths_of_the_machine(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| en → de | 10 | 10.0 | 80.0 |" in text.splitlines()
    assert "checkpoint of step 20." in text.replace("\n", " ")
    assert "max_length=20," in text
    assert str(run) not in text
    assert "/somewhere" not in text
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model is None  # a local folder
    assert [result.metric_value for result in card.data.eval_results] == [0.8, 0.4]


def test_an_unusable_run_is_an_error(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="not a run folder"):
        export(tmp_path / "absent", out)
    (run / "checkpoints" / "latest").unlink()
    with pytest.raises(UserError, match="no checkpoint yet"):
        export(run, out)
    weights = run / "checkpoints" / "step-00000020" / "query.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("query.weight"))
    save_file({other: tensor for other, tensor in tensors.items() if other != name}, weights)
    with pytest.raises(UserError, match=f"1 weights differ, the first is {name.removeprefix('mlm.')}"):
        export(run, out, "step-00000020")
    save_file({**tensors, name: torch.zeros(3, 3)}, weights)
    with pytest.raises(UserError, match=r"query\.safetensors: does not fit"):
        export(run, out, "step-00000020")
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(UserError, match=r"query\.safetensors: cannot be read"):
        export(run, out, "step-00000020")
    write_settings(run, pooling="max")
    with pytest.raises(UserError, match=r"settings\.yaml: pooling: found 'max'"):
        export(run, out)
    (run / "model" / "untouched.safetensors").unlink()
    with pytest.raises(UserError, match="not a run folder, or a run that never started"):
        export(run, out)
    assert not out.exists()


def test_an_output_is_never_overwritten_or_partial(run: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        export(run, full)
    assert [path.name for path in full.iterdir()] == ["notes.txt"]

    (run / "evaluations.jsonl").write_text("{broken\n")  # the error occurs late, when the weights are written
    (tmp_path / "results").mkdir()
    with pytest.raises(UserError, match=r"evaluations\.jsonl:1: found .*, expected a JSON object"):
        export(run, tmp_path / "results" / "out")
    assert list((tmp_path / "results").iterdir()) == []

    (run / "evaluations.jsonl").unlink()
    (tmp_path / "results" / "out").mkdir()  # an empty folder is allowed
    export(run, tmp_path / "results" / "out")
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["out"]


def test_a_failed_save_base_leaves_no_folder(run: Path, tmp_path: Path) -> None:
    mlm, tokenizer = load_masked_lm(str(run / "base")), load_tokenizer(str(run / "base"))
    with pytest.raises(UserError, match="no such folder"):
        save_base(mlm, str(tmp_path / "absent"), tokenizer, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_link_to_an_empty_folder_as_out(run: Path, tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "place")
    export(run, tmp_path / "out")
    assert (tmp_path / "place" / "model.safetensors").is_file()
    assert (tmp_path / "out").is_symlink()


def test_a_disk_that_fills_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    message = rf"^{tmp_path}/out: cannot be written: no space is left on the device; free some space and run the same"
    with pytest.raises(UserError, match=message):
        export(run, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
