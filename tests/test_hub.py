"""Models, tokenizers and data sets by their names on a hub."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ppa_fast.data.store.tokenize import load_tokenizer
from ppa_fast.errors import UserError
from ppa_fast.model.encoder import load_encoder
from tests.conftest import write_config
from tests.hub import hub

MAIN = [sys.executable, "-c", "import sys; from ppa_fast.cli import main; sys.exit(main())"]


def run(environment: dict[str, str], *words: str | Path) -> subprocess.CompletedProcess[str]:
    alone = {name: value for name, value in os.environ.items() if name != "RANK"}
    return subprocess.run(
        [*MAIN, *map(str, words)], env={**alone, **environment}, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def repositories(tiny, tmp_path: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    root = tmp_path / "root"
    shutil.copytree(tiny.model, root / "org" / "encoder")
    (root / "org" / "pairs").mkdir()
    files = tiny.pairs[0].partition(":")[2].split(",")
    english, german = (Path(file).read_text("utf-8").splitlines() for file in files)
    rows = [{"translation": {"en": a, "de": b}} for a, b in zip(english, german, strict=True)]
    datasets.Dataset.from_list(rows).to_parquet(root / "org" / "pairs" / "train.parquet")
    return root


@pytest.mark.slow
def test_a_model_and_a_data_set_are_loaded_by_name(repositories: Path, tmp_path: Path) -> None:
    store, output = tmp_path / "store", tmp_path / "run"
    with hub(repositories) as environment:
        done = run(
            environment, "prepare", "--pairs", "en-de:hf:org/pairs", "--tokenizer", "org/encoder", "--out", store
        )
        assert done.returncode == 0, done.stderr
        train = ["--model", "org/encoder", "--data", store, "--output", output, "--queue-size", "16", "--steps", "1"]
        done = run(environment, "train", *train, "--deepspeed_config", write_config(tmp_path / "ds.json"))
        assert done.returncode == 0, done.stderr
    manifest = json.loads((store / "manifest.json").read_text())
    assert (manifest["pairs"], manifest["tokenizer"]["name"]) == (150, "org/encoder")
    done = run({}, "export", output, "--out", tmp_path / "aligned")
    assert done.returncode == 0, done.stderr
    assert "base_model: org/encoder" in (tmp_path / "aligned" / "README.md").read_text()


def test_an_unknown_name_is_an_error(repositories: Path, tmp_path: Path) -> None:
    with hub(repositories) as environment:
        for pairs, tokenizer, found in (
            ("en-de:hf:org/absent", "org/encoder", "error: hf:org/absent: cannot be read: "),
            ("en-de:hf:org/pairs", "org/absent", "error: org/absent: cannot be loaded with AutoTokenizer: "),
        ):
            done = run(environment, "prepare", "--pairs", pairs, "--tokenizer", tokenizer, "--out", tmp_path / "store")
            assert done.returncode == 2, done.stderr
            assert done.stderr.splitlines()[-1].startswith(found)


def test_a_pickle_error_does_not_advise_to_run_the_file(tiny, tmp_path: Path) -> None:
    """torch's own message advises ``weights_only=False``."""
    model = shutil.copytree(tiny.model, tmp_path / "model")
    (model / "model.safetensors").unlink()
    for content in (Path("/"), subprocess.Popen):  # objects of classes that torch does not load
        with (model / "pytorch_model.bin").open("wb") as file:
            torch.save({"weight": content}, file)
        with pytest.raises(UserError) as caught:
            load_encoder(model)
        assert str(caught.value) == (
            f"{model}: cannot be loaded with AutoModel: its weights are a pickle file with more than tensors, which "
            "would run code and is never loaded; expected weights in safetensors"
        )


@pytest.mark.parametrize(
    ("kind", "tokenizer", "name"),
    [("xlm-roberta", "XLMRobertaTokenizer", "sentencepiece.bpe.model"), ("albert", "AlbertTokenizer", "spiece.model")],
)
@pytest.mark.parametrize("missing", [{"sentencepiece"}, {"sentencepiece", "google.protobuf"}])
def test_a_sentencepiece_model_alone_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, tokenizer: str, name: str, missing: set[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": tokenizer}))
    (tmp_path / name).write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "ppa_fast.hub.importlib.util.find_spec", lambda module: None if module in missing else find(module)
    )
    packages = "sentencepiece protobuf" if "google.protobuf" in missing else "sentencepiece"
    message = rf"^{tmp_path}: .*a SentencePiece model without tokenizer.json; run pip install {packages}$"
    with pytest.raises(UserError, match=message):
        load_tokenizer(str(tmp_path))
