"""What a run will do, and every reason not to start it, said before anything starts."""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ppa_fast.data.corpus import PairSource, read_eval_pairs
from ppa_fast.data.encode import load_tokenizer, tokenizer_fingerprint
from ppa_fast.data.prepare import REJECTED
from ppa_fast.data.sampler import BalancedSampler, Sampler, quotas
from ppa_fast.data.spool import FOLDER
from ppa_fast.data.stores import Stores
from ppa_fast.data.stream import Stream, StreamSampler, is_text
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
    """A run that can start.

    ``draws``: how often each language pair is drawn in an epoch. ``resume_from``: the checkpoint folder to go on from;
    ``warnings``: said once.
    """

    settings: Settings
    config: DeepSpeedConfig
    data: Stores | Stream
    sampler: Sampler
    draws: dict[str, int]
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
    text = is_text(settings.data)
    data: Stores | Stream
    if text:
        _check_stream(settings)
    else:
        data = Stores.open(settings.data)
    evaluations = _read_evaluations(settings.eval_pairs)
    checkpoints = Checkpoints(settings.output)
    resume_from = checkpoints.resume_point()
    _check_output(settings, resume_from)
    model_config = load_config(settings.model)
    tokenizer = load_tokenizer(settings.model)
    if text:
        held = (settings.max_skipped + 4) * config.batch  # steps that may be asked for again, and ranks that are behind
        data = Stream(settings.data, tokenizer, settings.max_tokens, settings.stream_shard, Path(settings.output), held)
    _check_model(settings, data, tokenizer, model_config)
    warnings = _check_queue(settings, config.batch, data)
    sampler, draws = _plan_order(settings, data, config.batch)
    steps = settings.steps
    if steps is None:
        steps = math.ceil((settings.epochs or 1.0) * sampler.per_epoch / config.batch)
    if resume_from is not None:
        warnings += _check_resume(settings, config, data, steps, resume_from)
    return Plan(settings, config, data, sampler, draws, tokenizer, evaluations, steps, resume_from, warnings)


def _check_stream(settings: Settings) -> None:
    """What is known of stores only."""
    if settings.steps is None:
        raise UserError("steps: not given, and how many pairs a text has is not known before; expected --steps")
    for name in ("sampling_alpha", "sampling_cap", "max_upsampling"):
        if getattr(settings, name) != getattr(Settings(), name):
            raise UserError(f"{name}: text is read as it is; expected stores (ppa-fast prepare) to sample from")


def _plan_order(settings: Settings, data: Stores | Stream, batch: int) -> tuple[Sampler, dict[str, int]]:
    """The order of the pairs, and how often each language pair is drawn in an epoch: where that is as often as it has
    pairs, all of them are shuffled as one. Of text nothing is known."""
    if isinstance(data, Stream):
        return StreamSampler(data.spool, batch, settings.seed), {}
    counts = np.array(list(data.counts.values()), np.int64)
    wanted = quotas(counts, settings.sampling_alpha, settings.sampling_cap, settings.max_upsampling)
    draws = dict(zip(data.language_pairs, wanted.tolist(), strict=True))
    if np.array_equal(wanted, counts):
        return Sampler(len(data), batch, settings.seed), draws
    return BalancedSampler(data.segments, wanted, batch, settings.seed), draws


def sampling_table(counts: dict[str, int], draws: dict[str, int]) -> str:
    """The expected share of each language pair, for people."""
    width = max(13, *map(len, counts))
    lines = [f"{'language pair':{width}}  {'pairs':>13}  {'draws an epoch':>14}  {'share':>7}  draws of a pair"]
    for name, count in counts.items():
        share, often = draws[name] / sum(draws.values()), draws[name] / max(1, count)
        lines.append(f"{name:{width}}  {count:>13,}  {draws[name]:>14,}  {share:>7.2%}  {often:>15.2f}")
    return "\n".join(lines)


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
    known |= {FOLDER, REJECTED}
    foreign = sorted({p.name for p in output.iterdir()} - known) if output.is_dir() else []
    foreign = [name for name in foreign if not name.startswith(".")]
    if (output / "model").exists() and not (output / "model" / UNTOUCHED).exists():
        foreign.append("model")  # a model, but not what a run keeps of its base
    if resume_from is None and foreign:
        raise UserError(f"output: {output} holds {foreign[0]}, which is no part of a run; expected an empty folder")


def _check_model(
    settings: Settings, data: Stores | Stream, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig
) -> None:
    paths, how = " ".join(settings.data), "expected --max-tokens"
    if isinstance(data, Stores):
        stated, how = data.stores[0].manifest["tokenizer"], "prepare with --max-tokens"
        if tokenizer_fingerprint(tokenizer) != stated["fingerprint"]:
            raise UserError(
                f"data: {paths} was prepared with the tokenizer {stated['name']}, which is not that of the model "
                f"{settings.model}; expected equal tokenizers: prepare again with --tokenizer {settings.model}"
            )
    if model_config.vocab_size < data.special.vocab_size:
        raise UserError(
            f"model: {settings.model} has {model_config.vocab_size} embeddings, its tokenizer "
            f"{data.special.vocab_size} tokens"
        )
    if settings.freeze_layers > model_config.num_hidden_layers:
        raise UserError(
            f"freeze_layers: found {settings.freeze_layers}; {settings.model} has {model_config.num_hidden_layers} "
            "layers, expected no more"
        )
    longest_a, longest_b = data.longest
    needed, limit = longest_a + longest_b + 3, max_sequence(model_config)
    if settings.tlm and needed > limit:
        raise UserError(
            f"data: {paths} holds sentences of up to {longest_a} and {longest_b} tokens, together "
            f"{needed} with special tokens; the model {settings.model} has {limit} positions: {how} {(limit - 3) // 2}"
        )
    longest = max(longest_a, longest_b)
    if longest + 2 > limit:
        raise UserError(
            f"data: {paths} holds sentences of up to {longest} tokens, {longest + 2} with special tokens; the "
            f"model {settings.model} has {limit} positions: {how} {limit - 2}"
        )


def _check_queue(settings: Settings, batch: int, data: Stores | Stream) -> list[str]:
    if not settings.moco:
        return []
    if settings.queue_size < batch:
        raise UserError(f"queue_size: found {settings.queue_size}, expected at least the global batch, {batch}")
    if isinstance(data, Stream):
        return []
    pairs = len(data)
    if settings.queue_size > QUEUE_SHARE * pairs:
        return [
            f"queue_size {settings.queue_size} is {settings.queue_size / pairs:.0%} of the {pairs} pairs; above "
            f"{QUEUE_SHARE:.0%} the queue holds much of the corpus itself, consider {max(batch, pairs // 20)}"
        ]
    return []


def _check_resume(
    settings: Settings, config: DeepSpeedConfig, data: Stores | Stream, steps: int, path: Path
) -> list[str]:
    state = read_state(path)
    if state["batch"] != config.batch:
        raise UserError(
            f"{config.path}: train_batch_size: found {config.batch}, but the run in {settings.output} was trained with "
            f"{state['batch']}; expected the same, or another output"
        )
    if state["store"] != data.fingerprint:
        raise UserError(
            f"data: {' '.join(settings.data)}: not the stores or the text that the run in {settings.output} was "
            "trained on, in their order; expected the same, or another output"
        )
    now = dataclasses.asdict(settings)
    for name, then in {**dataclasses.asdict(Settings()), **state["settings"]}.items():
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
