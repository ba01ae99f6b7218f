"""What a run will do, and every reason not to start it, said before anything starts."""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ppa_fast.data.corpus import PairSource, read_eval_pairs
from ppa_fast.data.encode import load_tokenizer, tokenizer_fingerprint
from ppa_fast.data.stores import Stores
from ppa_fast.errors import UserError
from ppa_fast.model.encoder import load_config, max_sequence
from ppa_fast.model.folder import UNTOUCHED
from ppa_fast.settings import Settings
from ppa_fast.training.checkpoint import Checkpoints, read_state
from ppa_fast.training.config import DeepSpeedConfig, read_config

# What may differ between a run and its continuation; everything else would change what has been computed.
FREE = {"output", "model", "data", "deepspeed_config", "steps", "epochs", "resume"}
FREE |= {"log_every", "eval_pairs", "eval_every", "save_every", "keep", "max_skipped"}
FREE |= {"activation_checkpointing", "compile"}  # the same sums, but for their rounding

NOT_FINITE = "not_finite.jsonl"  # of the run folder: the steps that ended a run because they were not finite

QUEUE_SHARE = 0.05  # of the pairs: a larger queue holds many of the query's own earlier translations


@dataclass(frozen=True)
class Plan:
    """A run that can start. ``resume_from``: the checkpoint folder to go on from; ``warnings``: said once."""

    settings: Settings
    config: DeepSpeedConfig
    stores: Stores
    tokenizer: PreTrainedTokenizerBase
    eval_pairs: list[tuple[PairSource, list[str], list[str]]]
    steps: int
    resume_from: Path | None
    warnings: list[str]


def make_plan(settings: Settings, world_size: int) -> Plan:
    """Checks everything that can be known before training; raises UserError for the first thing that is wrong."""
    settings.require("model", "data", "output", "deepspeed_config")
    config = read_config(settings.deepspeed_config, world_size, settings.output)
    if settings.compile and config.stage == 3:
        raise UserError(
            f"compile: ZeRO stage 3 ({config.path}) gathers weights by hooks that torch.compile does not see; expected "
            "stages 0 to 2, or no compile"
        )
    stores = Stores.open(settings.data)
    evaluations = _read_evaluations(settings.eval_pairs)
    checkpoints = Checkpoints(settings.output)
    resume_from = checkpoints.resume_point()
    _check_output(settings, resume_from)
    model_config = load_config(settings.model)
    tokenizer = load_tokenizer(settings.model)
    _check_model(settings, stores, tokenizer, model_config)
    warnings = _check_queue(settings, config.batch, len(stores))
    epochs = settings.epochs if settings.epochs is not None else 1.0
    steps = settings.steps if settings.steps is not None else math.ceil(epochs * len(stores) / config.batch)
    if resume_from is not None:
        warnings += _check_resume(settings, config, stores, steps, resume_from)
    return Plan(settings, config, stores, tokenizer, evaluations, steps, resume_from, warnings)


def _read_evaluations(specs: list[str]) -> list[tuple[PairSource, list[str], list[str]]]:
    evaluations = [read_eval_pairs(spec) for spec in specs]
    names = set()
    for source, texts, _ in evaluations:
        if source.name in names:
            raise UserError(f"eval_pairs: {source.name} is given twice; expected each language pair once")
        names.add(source.name)
        if len(texts) < 2:  # uniformity is over pairs of sentences
            raise UserError(f"eval_pairs: {source.name}: found {len(texts)} sentence in {source.paths[0]}, expected 2")
    return evaluations


def _check_output(settings: Settings, resume_from: Path | None) -> None:
    output = Path(settings.output)
    if output.exists() and not output.is_dir():
        raise UserError(f"output: {output} is a file, expected a folder")
    if resume_from is not None and settings.resume == "never":
        raise UserError(
            f"output: {output} holds a run ({resume_from.name}) and resume is never; "
            "expected an empty folder, or --resume auto to continue"
        )
    known = {"settings.yaml", "metrics.jsonl", "evaluations.jsonl", NOT_FINITE, "model", "checkpoints", "tensorboard"}
    foreign = sorted({p.name for p in output.iterdir()} - known) if output.is_dir() else []
    foreign = [name for name in foreign if not name.startswith(".")]
    if (output / "model").exists() and not (output / "model" / UNTOUCHED).exists():
        foreign.append("model")  # a model, but not what a run keeps of its base
    if resume_from is None and foreign:
        raise UserError(f"output: {output} holds {foreign[0]}, which is no part of a run; expected an empty folder")


def _check_model(
    settings: Settings, stores: Stores, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig
) -> None:
    stated = stores.stores[0].manifest["tokenizer"]
    paths = " ".join(settings.data)
    if tokenizer_fingerprint(tokenizer) != stated["fingerprint"]:
        raise UserError(
            f"data: {paths} was prepared with the tokenizer {stated['name']}, which is not that of the model "
            f"{settings.model}; expected equal tokenizers: prepare again with --tokenizer {settings.model}"
        )
    if model_config.vocab_size < stores.special.vocab_size:
        raise UserError(
            f"model: {settings.model} has {model_config.vocab_size} embeddings, its tokenizer "
            f"{stores.special.vocab_size} tokens"
        )
    if settings.freeze_layers > model_config.num_hidden_layers:
        raise UserError(
            f"freeze_layers: found {settings.freeze_layers}; {settings.model} has {model_config.num_hidden_layers} "
            "layers, expected no more"
        )
    longest_a, longest_b = stores.longest
    needed, limit = longest_a + longest_b + 3, max_sequence(model_config)
    if settings.tlm and needed > limit:
        raise UserError(
            f"data: {paths} holds sentences of up to {longest_a} and {longest_b} tokens, together "
            f"{needed} with special tokens; the model {settings.model} has {limit} positions: prepare with "
            f"--max-tokens {(limit - 3) // 2}"
        )
    longest = max(longest_a, longest_b)
    if longest + 2 > limit:
        raise UserError(
            f"data: {paths} holds sentences of up to {longest} tokens, {longest + 2} with special tokens; the "
            f"model {settings.model} has {limit} positions: prepare with --max-tokens {limit - 2}"
        )


def _check_queue(settings: Settings, batch: int, pairs: int) -> list[str]:
    if not settings.moco:
        return []
    if settings.queue_size < batch:
        raise UserError(f"queue_size: found {settings.queue_size}, expected at least the global batch, {batch}")
    if settings.queue_size > QUEUE_SHARE * pairs:
        return [
            f"queue_size {settings.queue_size} is {settings.queue_size / pairs:.0%} of the {pairs} pairs; above "
            f"{QUEUE_SHARE:.0%} the queue holds much of the corpus itself, consider {max(batch, pairs // 20)}"
        ]
    return []


def _check_resume(settings: Settings, config: DeepSpeedConfig, stores: Stores, steps: int, path: Path) -> list[str]:
    state = read_state(path)
    if state["batch"] != config.batch:
        raise UserError(
            f"{config.path}: train_batch_size: found {config.batch}, but the run in {settings.output} was trained with "
            f"{state['batch']}; expected the same, or another output"
        )
    if state["store"] != stores.fingerprint:
        raise UserError(
            f"data: {' '.join(settings.data)}: not the stores that the run in {settings.output} was trained on, in "
            "their order; expected the same, or another output"
        )
    now = dataclasses.asdict(settings)
    for name, then in state["settings"].items():
        if name not in FREE and now.get(name) != then:
            raise UserError(
                f"{name}: found {now.get(name)!r}, but the run in {settings.output} was trained with {then!r}; "
                "expected the same, or another output"
            )
    if state["steps"] != steps:
        return [f"the run was planned for {state['steps']} steps, now for {steps}: the schedule now ends there"]
    return []


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
