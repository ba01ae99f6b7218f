"""Turns a run into a Hugging Face folder that transformers and sentence-transformers load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel

from ppa_fast.data.encode import load_tokenizer
from ppa_fast.errors import UserError
from ppa_fast.evaluation.embedder import POOLING_FILE
from ppa_fast.files import check_new_folder
from ppa_fast.hub import load_pretrained
from ppa_fast.model import POOLINGS
from ppa_fast.model.encoder import max_sequence, missing_weights
from ppa_fast.model.folder import UNTOUCHED, save_folder
from ppa_fast.training.card import model_card
from ppa_fast.training.checkpoint import Checkpoints, read_tensors
from ppa_fast.training.metrics import read_lines


def _settings(run: Path) -> dict[str, Any]:
    path = run / "settings.yaml"
    if not path.is_file() or not (run / "model" / UNTOUCHED).is_file():
        raise UserError(
            f"{run}: not a run folder, or a run that never started: expected settings.yaml and model/ in it"
        )
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {error}") from error
    pooling = settings.get("pooling") if isinstance(settings, dict) else None
    if pooling not in POOLINGS:
        raise UserError(f"{path}: pooling: found {pooling!r}, expected one of {', '.join(POOLINGS)}")
    return settings


def _checkpoint(run: Path, name: str | None) -> Path:
    """The folder of a checkpoint: "latest", "best" or "step-…"; None is the best, or the latest without a best."""
    checkpoints = Checkpoints(run)
    if name is None:
        path = checkpoints.named("best") or checkpoints.named("latest")
    elif name in ("latest", "best"):
        path = checkpoints.named(name)
    else:
        path = checkpoints.folder / name
    if path is None or not (path / "query.safetensors").is_file():
        there = sorted(folder.name for folder in checkpoints.folder.glob("step-*"))
        raise UserError(
            f"{run}: no checkpoint {name or 'yet'}; expected latest, best or one of: {', '.join(there) or '(none)'}"
        )
    return path


def _trained(run: Path, checkpoint: Path) -> PreTrainedModel:
    """The run's masked language model with the weights of a checkpoint, fp32."""
    config = load_pretrained(AutoConfig, run / "model")
    mlm = AutoModelForMaskedLM.from_config(config, dtype=torch.float32)
    tensors = read_tensors(checkpoint, "query")
    weights = {name.removeprefix("mlm."): tensor for name, tensor in tensors.items() if name.startswith("mlm.")}
    file = checkpoint / "query.safetensors"
    try:
        missing, unexpected = mlm.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise UserError(f"{file}: does not fit {run / 'model'}: {error}") from error
    # A tied weight is stored once, under either name.
    wrong = [*missing_weights(mlm, set(missing)), *unexpected]
    if wrong:
        raise UserError(f"{file}: does not fit {run / 'model'}: {len(wrong)} weights differ, the first is {wrong[0]}")
    return mlm


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_sentence_transformers(folder: Path, hidden_size: int, pooling: str, max_seq_length: int) -> None:
    """The files of sentence-transformers, in the form that its versions since 3 read."""
    kind = "sentence_transformers.models"
    _write_json(
        folder / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": f"{kind}.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{kind}.Pooling"},
        ],
    )
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False})
    _write_json(
        folder / POOLING_FILE,
        {
            "word_embedding_dimension": hidden_size,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
            "include_prompt": True,
        },
    )
    _write_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})


def export(run: str | Path, out: str | Path, checkpoint: str | None = None) -> None:
    """Writes the encoder of a run as a Hugging Face folder.

    The folder has config.json, the tokenizer, one model.safetensors in fp32 (encoder and MLM head of the checkpoint,
    the base model's pooler and other untouched weights bit for bit), sentence-transformers' files and a model card.
    ``AutoModel``, ``AutoModelForMaskedLM`` and ``SentenceTransformer`` load it; the latter's vectors are those of
    ``sentence_vectors`` with the run's pooling (a text that spells out a special token, such as "[SEP]", aside: there
    it is read as text, in other libraries as that token).

    Args:
        run: the folder of a run.
        out: a new or empty folder; appears whole or not at all.
        checkpoint: "best", "latest" or "step-…"; None is the best if there is one, else the latest.

    Raises UserError for a folder that is no run or has no such checkpoint, for files that do not fit each other, and
    for an ``out`` that is not empty.
    """
    run, folder = Path(run), Path(out).absolute()
    check_new_folder(out)
    settings = _settings(run)
    source = _checkpoint(run, checkpoint)
    mlm = _trained(run, source)
    tokenizer = load_tokenizer(str(run / "model"))
    step = int(source.name.removeprefix("step-"))
    max_tokens = (settings.get("store") or {}).get("max_tokens", 126)

    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_folder(mlm, read_tensors(run / "model", Path(UNTOUCHED).stem), tokenizer, temporary)
        max_seq_length = min(max_tokens + 2, max_sequence(mlm.config))
        _write_sentence_transformers(temporary, mlm.config.hidden_size, settings["pooling"], max_seq_length)
        evaluations = read_lines(run / "evaluations.jsonl")
        card = model_card(settings, evaluations, step, mlm.config.model_type, max_seq_length)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
