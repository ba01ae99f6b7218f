"""Exports a run as a Hugging Face folder for transformers and sentence-transformers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from ppa_fast.data.store.tokenize import load_tokenizer
from ppa_fast.errors import UserError
from ppa_fast.files import check_new_folder, new_folder
from ppa_fast.hub import load_pretrained
from ppa_fast.model.encoder import build_model, cut_above, encoder_of, max_sequence, missing_weights, state_layer
from ppa_fast.model.folder import UNTOUCHED, save_folder
from ppa_fast.model.sentence_transformer import SentenceModules
from ppa_fast.settings import POOLINGS, ExportSettings, takes
from ppa_fast.training.checkpoint import Checkpoints, read_tensors
from ppa_fast.training.json_lines import read_lines
from ppa_fast.training.model_card import model_card

log = logging.getLogger(__name__)


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
    """The folder of a checkpoint: "latest", "best" or "step-…". None selects the best, else the latest."""
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


def _trained_model(run: Path, checkpoint: Path) -> PreTrainedModel:
    """The run's masked language model (its encoder without TLM) with the weights of a checkpoint, fp32."""
    model = build_model(load_pretrained(AutoConfig, run / "model"))
    tensors = read_tensors(checkpoint, "query")
    weights = {name.removeprefix("mlm."): tensor for name, tensor in tensors.items() if name.startswith("mlm.")}
    file = checkpoint / "query.safetensors"
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise UserError(f"{file}: does not fit {run / 'model'}: {error}") from error
    # A tied weight is stored once, under one of its names.
    wrong = [*missing_weights(model, set(missing)), *unexpected]
    if wrong:
        raise UserError(f"{file}: does not fit {run / 'model'}: {len(wrong)} weights differ, the first is {wrong[0]}")
    return model


def _cut(
    model: PreTrainedModel, untouched: dict[str, Tensor], layers: int
) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """The first ``layers`` layers of the encoder, without the heads, and its untouched weights."""
    encoder: Any = encoder_of(model)
    if layers > encoder.config.num_hidden_layers:
        raise UserError(f"layers: found {layers}; the encoder has {encoder.config.num_hidden_layers}, expected no more")
    cut_above(encoder, layers)
    prefix = "" if encoder is model else f"{model.base_model_prefix}."
    return encoder, {name.removeprefix(prefix): t for name, t in untouched.items() if name.startswith(prefix)}


@takes(ExportSettings)
def export(chosen: ExportSettings) -> None:
    """Writes the encoder of a run as a Hugging Face folder.

    The folder has config.json, the tokenizer, one model.safetensors in fp32, sentence-transformers' files and a model
    card. The weights are the checkpoint's encoder and, with TLM, MLM head, and bit for bit the base model's pooler and
    other untouched weights. ``AutoModel``, ``AutoModelForMaskedLM`` and ``SentenceTransformer`` load it. The latter's
    vectors equal those of ``sentence_vectors`` with the run's pooling, normalized if the base model's are. Exception:
    ``sentence_vectors`` reads a special token in a text, such as "[SEP]", as text; other libraries read it as a token.

    With ``layers`` N, the folder has the encoder's first N layers and no MLM head. Libraries then pool the output of
    layer N. The configuration states ``contrast_layer`` if it is one of several layers in the folder.

    The arguments are the fields of :class:`ExportSettings`. The folder ``out`` is created atomically.

    Raises UserError for a folder that is not a run or lacks the checkpoint, for files that do not match or have weights
    that are not finite, for more ``layers`` than the encoder has or layers that cannot be told apart, and for an
    ``out`` that is not empty or cannot be written.
    """
    run = Path(chosen.run)
    check_new_folder(chosen.out)
    settings = _settings(run)
    source = _checkpoint(run, chosen.checkpoint)
    model, untouched = _trained_model(run, source), read_tensors(run / "model", Path(UNTOUCHED).stem)
    layers = model.config.num_hidden_layers
    trained_layer, last = settings.get("contrast_layer") or layers, chosen.layers or layers
    if last != layers:
        model, untouched = _cut(model, untouched, last)
    state_layer(model.config, trained_layer if trained_layer < last else None)
    if trained_layer != last:
        log.warning(
            f"{chosen.out}: transformers and sentence-transformers pool layer {last}, but the sentence vectors of "
            f"layer {trained_layer} were trained; --layers {trained_layer} exports an encoder that ends there"
        )
    tokenizer = load_tokenizer(str(run / "model"))
    step = int(source.name.removeprefix("step-"))
    max_tokens = (settings.get("store") or {}).get("max_tokens", 126)

    modules, evaluations = SentenceModules.kept(run / "model"), read_lines(run / "evaluations.jsonl")
    max_seq_length = min(modules.max_seq_length or max_tokens + 2, max_sequence(model.config))
    has_head = encoder_of(model) is not model
    other_layer, family = None if trained_layer == last else trained_layer, model.config.model_type
    card = model_card(settings, evaluations, step, family, max_seq_length, has_head, other_layer)
    with new_folder(chosen.out) as folder:
        save_folder(model, untouched, tokenizer, folder)
        modules.write(folder, model.config.hidden_size, settings["pooling"], max_seq_length)
        (folder / "README.md").write_text(card, encoding="utf-8")
