"""Plans a run and checks everything that can be checked before it starts.

Also prepares parallel text into RUN/store, before the process group is created.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ppa_fast.data.loading.sampler import BalancedSampler, Sampler, quotas
from ppa_fast.data.reading.corpus import PairSource, is_text, parse_pairs, read_eval_pairs
from ppa_fast.data.store.concat import ConcatDataset
from ppa_fast.data.store.prepare import prepare
from ppa_fast.data.store.store import MANIFEST, read_manifest
from ppa_fast.data.store.tokenize import load_tokenizer, tokenizer_fingerprint
from ppa_fast.errors import UserError
from ppa_fast.model.encoder import lacks_lm_head, load_config, max_sequence
from ppa_fast.model.families import FAMILIES, family_of
from ppa_fast.model.folder import UNTOUCHED
from ppa_fast.model.precision import has_fast_bf16
from ppa_fast.model.sentence_transformer import TRAINED, SentenceModules, is_sentence_encoder, stated_pooling
from ppa_fast.settings import POOLINGS, Settings
from ppa_fast.settings.train import RECIPES, WIDTH
from ppa_fast.training.checkpoint import Checkpoints, read_state
from ppa_fast.training.config import DeepSpeedConfig, read_config, uses_cuda
from ppa_fast.training.distributed import rank

# Settings that may change when a run is resumed; any other change would invalidate the steps already done.
FREE = {"output", "model", "data", "deepspeed_config", "steps", "epochs", "resume"}
FREE |= {"log_every", "eval_pairs", "eval_every", "save_every", "keep", "max_skipped"}
FREE |= {"recipe"}  # its values are compared individually
FREE |= {"activation_checkpointing", "compile"}  # they change only the rounding of sums

NOT_FINITE = "not_finite.jsonl"  # in the run folder: the non-finite steps that ended a run

POLL_SECONDS = 0.2  # interval at which ranks check for the store from rank 0

MOMENTUM_SHARE = 0.1  # share of the steps; if the time constant 1 / (1 − momentum) is longer, the keys lag far behind
QUEUE_SHARE = 0.05  # share of the pairs; a larger queue contains many earlier translations of the query


@dataclass(frozen=True)
class RunPlan:
    """A checked run.

    ``sampling_counts``: draws per epoch for each language pair. ``bf16_products``: see ``AlignmentModel``.
    ``resume_from``: the checkpoint folder to resume from; ``warnings``: logged once.
    """

    settings: Settings
    config: DeepSpeedConfig
    data: ConcatDataset
    sampler: Sampler
    sampling_counts: dict[str, int]
    tokenizer: PreTrainedTokenizerBase
    eval_pairs: list[tuple[PairSource, list[str], list[str]]]
    steps: int
    bf16_products: bool
    resume_from: Path | None
    warnings: list[str]

    @property
    def pooling(self) -> str:
        """The pooling of sentence vectors."""
        return self.settings.pooling or POOLINGS[0]

    @property
    def masking_options(self) -> dict[str, Any]:
        """Options of ``ops.assemble`` and the packer. They and the pairs determine the query sides and the masks."""
        settings = self.settings
        return {
            "seed": settings.seed,
            "mask_probability": settings.mask_probability if settings.tlm else 0.0,
            "input_shuffling": settings.input_shuffling,
        }


def check(settings: Settings, world_size: int) -> RunPlan:
    """Checks everything that can be checked before training; raises UserError for the first error."""
    settings.require("model", "data", "output", "deepspeed_config")
    config = read_config(settings.deepspeed_config, world_size, settings.output)
    if settings.compile and config.stage == 3:
        raise UserError(
            f"compile: ZeRO stage 3 ({config.path}) gathers weights by hooks that torch.compile does not see; expected "
            "stages 0 to 2, or no compile"
        )
    model_config = load_config(settings.model)
    if settings.recipe is None:
        settings = settings.replaced(recipe=_recipe(settings))
    _check_queue(settings, config.batch)
    text = is_text(settings.data)
    opened = None if text else ConcatDataset.open(settings.data)
    evaluations = _read_evaluations(settings.eval_pairs)
    warnings: list[str] = []
    resume_from = Checkpoints(settings.output).resume_point(warnings.append)
    _check_output(settings, resume_from)
    settings = settings.replaced(pooling=_pooling(settings))
    layers = model_config.num_hidden_layers
    for name in ("freeze_layers", "contrast_layer"):
        if abs(number := getattr(settings, name) or 0) > layers:
            raise UserError(f"{name}: found {number}; {settings.model} has {layers} layers, expected no more")
    _check_width(settings, model_config.hidden_size)
    if text:
        _check_lengths(settings, (settings.max_tokens, settings.max_tokens), model_config, "expected --max-tokens")
    tokenizer = load_tokenizer(settings.model)
    data = opened or _prepare_store(settings)
    _check_model(settings, data, tokenizer, model_config)
    warnings += _without_tensorboard(config)
    warnings += _queue_warnings(settings, len(data), config.batch) + _model_warnings(settings, model_config)
    sampler, sampling_counts = _plan_order(settings, data, config.batch)
    steps = settings.steps
    if steps is None:
        steps = math.ceil((settings.epochs or 1.0) * sampler.per_epoch / config.batch)
    warnings += _momentum_warnings(settings, steps)
    if resume_from is not None:
        warnings += _check_resume(settings, config, data, steps, resume_from)
    bf16 = bf16_products(settings, config, model_config, resume_from)
    return RunPlan(
        settings, config, data, sampler, sampling_counts, tokenizer, evaluations, steps, bf16, resume_from, warnings
    )


def _recipe(settings: Settings) -> str:
    """The default recipe: retrieval for a sentence-transformers folder, unless a setting of that recipe is given; else
    paper."""
    given = any(settings.gives(name) for name in RECIPES["retrieval"])
    return "retrieval" if is_sentence_encoder(settings.model) and not given else "paper"


def _check_queue(settings: Settings, batch: int) -> None:
    size = settings.queue_size
    if settings.sentence_objective == "moco" and size < batch:
        raise UserError(
            f"queue_size: found {size}, expected at least the global batch, {batch}; contrast symmetric needs no queue"
        )
    if settings.sentence_objective == "symmetric" and size:
        raise UserError(f"queue_size: found {size}, expected 0: contrast symmetric uses the pairs of the step instead")
    if settings.in_batch_negatives and settings.sentence_objective != "moco":
        raise UserError("in_batch_negatives: found true, expected false; only contrast moco has a queue")


def _check_width(settings: Settings, hidden: int) -> None:
    if settings.sentence_objective == "moco" and not settings.projection_dim and not WIDTH.holds(hidden):
        raise UserError(
            f"projection_dim: found 0, but {settings.model} has vectors of {hidden} elements and MoCo takes "
            f"{WIDTH.expected}; expected a projection, or contrast symmetric"
        )


def _pooling(settings: Settings) -> str:
    """Returns the given pooling, else that of a sentence-transformers folder, else the recipe's default."""
    if settings.pooling:
        return settings.pooling
    if untrained := SentenceModules.of(settings.model).untrained:
        raise UserError(
            f"model: {settings.model} has the module {untrained[0]}, which is not trained here; expected no module "
            f"but {', '.join(TRAINED)}. To train and export the encoder without it, give --pooling"
        )
    default = "mean" if settings.recipe == "retrieval" else POOLINGS[0]
    return stated_pooling(settings.model) or default


def _prepare_store(settings: Settings) -> ConcatDataset:
    """The store for a run on text. Rank 0 prepares it once, or resumes preparing it; other ranks wait."""
    store = Path(settings.output) / "store"
    if rank() == 0 and not (store / MANIFEST).is_file():
        prepare(settings.data, settings.model, store, settings.max_tokens)
    while not (store / MANIFEST).is_file():
        time.sleep(POLL_SECONDS)
    manifest, sources = read_manifest(store), [parse_pairs(spec) for spec in settings.data]
    found = [(source["pair"], [Path(file).name for file in source["files"]]) for source in manifest["sources"]]
    asked = [(source.name, [path.name for path in source.paths]) for source in sources]
    if (found, manifest["max_tokens"]) != (asked, settings.max_tokens):
        raise UserError(
            f"data: {store} was prepared from other text, or with --max-tokens {manifest['max_tokens']}; expected this "
            f"text and --max-tokens {settings.max_tokens}, or another output"
        )
    return ConcatDataset.open([store])


def bf16_products(
    settings: Settings, config: DeepSpeedConfig, model_config: PretrainedConfig, resume_from: Path | None = None
) -> bool:
    """Whether to compute products in bf16 with fp32 weights: on CPUs where it is faster, if the file sets no precision.

    A resumed run keeps its first choice on any machine.
    """
    if config.names_precision or uses_cuda():
        return False
    if resume_from is not None:
        return bool(read_state(resume_from).get("bf16_products", False))
    return has_fast_bf16(model_config.hidden_size, lm_head=settings.tlm)


def _plan_order(settings: Settings, data: ConcatDataset, batch: int) -> tuple[Sampler, dict[str, int]]:
    """The sampler, and the draws per epoch for each language pair. If these equal the pair counts, all pairs are
    shuffled together."""
    counts = np.array(list(data.counts.values()), np.int64)
    wanted = quotas(counts, settings.sampling_alpha, settings.sampling_cap, settings.max_upsampling)
    sampling_counts = dict(zip(data.language_pairs, wanted.tolist(), strict=True))
    if np.array_equal(wanted, counts):
        return Sampler(len(data), batch, settings.seed), sampling_counts
    return BalancedSampler(data.segments, wanted, batch, settings.seed), sampling_counts


def sampling_table(counts: dict[str, int], sampling_counts: dict[str, int]) -> str:
    """A readable table of the expected share of each language pair."""
    width = max(13, *map(len, counts))
    lines = [f"{'language pair':{width}}  {'pairs':>13}  {'draws an epoch':>14}  {'share':>7}  draws of a pair"]
    for name, count in counts.items():
        drawn = sampling_counts[name]
        share, often = drawn / sum(sampling_counts.values()), drawn / max(1, count)
        lines.append(f"{name:{width}}  {count:>13,}  {drawn:>14,}  {share:>7.2%}  {often:>15.2f}")
    return "\n".join(lines)


def _read_evaluations(specs: list[str]) -> list[tuple[PairSource, list[str], list[str]]]:
    evaluations = [read_eval_pairs(spec) for spec in specs]
    names = set()
    for source, texts, _ in evaluations:
        if source.name in names:
            raise UserError(f"eval_pairs: {source.name} is given twice; expected each language pair once")
        names.add(source.name)
        if len(texts) < 2:  # uniformity compares two sentences of one language
            raise UserError(
                f"eval_pairs: {source.name}: found {len(texts)} sentence in {source.paths[0]}, expected at least 2"
            )
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
    known |= {"store"}
    if (output / "stream").exists():
        raise UserError(
            f"output: {output} was trained straight from text, which this version cannot resume; expected a new folder"
        )
    foreign = sorted({p.name for p in output.iterdir()} - known) if output.is_dir() else []
    foreign = [name for name in foreign if not name.startswith(".")]
    if (output / "model").exists() and not (output / "model" / UNTOUCHED).exists():
        foreign.append("model")  # a model, but not the base of a run
    if resume_from is None and foreign:
        raise UserError(
            f"output: {output} holds {foreign[0]}, which does not belong to a run; expected an empty folder"
        )


def _check_model(
    settings: Settings, data: ConcatDataset, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig
) -> None:
    stated = data.stores[0].manifest["tokenizer"]
    if tokenizer_fingerprint(tokenizer) != stated["fingerprint"]:
        raise UserError(
            f"data: {' '.join(settings.data)} was prepared with the tokenizer {stated['name']}, which is not that of "
            f"the model {settings.model}; expected equal tokenizers: prepare again with --tokenizer {settings.model}"
        )
    if model_config.vocab_size < data.special.vocab_size:
        raise UserError(
            f"model: {settings.model}: found {model_config.vocab_size} embeddings, expected at least "
            f"{data.special.vocab_size}, one for each token of its tokenizer"
        )
    _check_lengths(settings, data.longest, model_config, "prepare with --max-tokens")


def _check_lengths(settings: Settings, longest: tuple[int, int], model_config: PretrainedConfig, how: str) -> None:
    """Raises UserError if the model has too few positions for sentences a, b of up to ``longest`` tokens."""
    paths, needed, limit = " ".join(settings.data), sum(longest) + 3, max_sequence(model_config)
    if settings.tlm and needed > limit:
        raise UserError(
            f"data: {paths} holds sentences of up to {longest[0]} and {longest[1]} tokens, together "
            f"{needed} with special tokens; the model {settings.model} has {limit} positions: {how} {(limit - 3) // 2}"
        )
    if max(longest) + 2 > limit:
        raise UserError(
            f"data: {paths} holds sentences of up to {max(longest)} tokens, {max(longest) + 2} with special tokens; "
            f"the model {settings.model} has {limit} positions: {how} {limit - 2}"
        )


def fitting_queue(pairs: int, batch: int) -> int:
    """The largest queue size that gives no warning, in keys."""
    return max(batch, int(QUEUE_SHARE * pairs))


def fitting_momentum(steps: int) -> float:
    """The highest momentum of the momentum encoder that gives no warning."""
    return max(0.0, math.floor(1000 * (1 - 1 / (steps * MOMENTUM_SHARE)) + 1e-6) / 1000)


def _without_tensorboard(config: DeepSpeedConfig) -> list[str]:
    """Disables TensorBoard, with a warning, if the file enables it and it is not installed."""
    block = config.values.get("tensorboard", {})
    if not block.get("enabled") or find_spec("tensorboard"):
        return []
    block["enabled"] = False
    return [
        f"{config.path}: tensorboard: enabled, but not installed; metrics.jsonl has the same figures. To install: "
        "pip install 'ppa-fast[tensorboard]'"
    ]


def _queue_warnings(settings: Settings, pairs: int, batch: int) -> list[str]:
    size, fitting = settings.queue_size, fitting_queue(pairs, batch)
    if settings.sentence_objective != "moco" or size <= QUEUE_SHARE * pairs:
        return []
    remedy = (
        f"queue_size {fitting}"
        if fitting < size
        else "a smaller batch, more pairs, or contrast symmetric, without a queue"
    )
    return [
        f"queue_size {size} is {size / pairs:.0%} of the {pairs} pairs; above {QUEUE_SHARE:.0%} the queue holds much "
        f"of the corpus itself; consider {remedy}"
    ]


def _momentum_warnings(settings: Settings, steps: int) -> list[str]:
    """Warns if the momentum encoder will end the run close to its initial weights."""
    if settings.sentence_objective != "moco" or (1 - settings.momentum) * steps * MOMENTUM_SHARE >= 1 - 1e-9:
        return []
    fitting = fitting_momentum(steps)
    remedy = f"{fitting:g}" if fitting else "more steps or contrast symmetric"
    return [
        f"momentum {settings.momentum} averages over more than {MOMENTUM_SHARE:.0%} of the run's {steps} steps; the "
        f"momentum encoder follows too slowly; consider {remedy}"
    ]


def _model_warnings(settings: Settings, model_config: PretrainedConfig) -> list[str]:
    warnings = []
    if not family_of(model_config).packed:
        warnings.append(
            f"model type {model_config.model_type!r} runs on padded batches, which is slower. These model types "
            f"run without padding: {', '.join(FAMILIES)}"
        )
    if settings.tlm and lacks_lm_head(settings.model):
        warnings.append(
            f"{settings.model} has no MLM head: TLM starts with a random one, tied to the embeddings; "
            "--no-tlm trains without TLM"
        )
    return warnings


def _check_resume(
    settings: Settings, config: DeepSpeedConfig, data: ConcatDataset, steps: int, path: Path
) -> list[str]:
    state = read_state(path)
    if state["batch"] != config.batch:
        raise UserError(
            f"{config.path}: train_batch_size: found {config.batch}, but the run in {settings.output} was trained with "
            f"{state['batch']}; expected the same, or another output"
        )
    if state["store"] != data.fingerprint:
        raise UserError(
            f"data: {' '.join(settings.data)}: not the stores that the run in {settings.output} was trained on; "
            "expected the same stores in the same order, or another output"
        )
    now = dataclasses.asdict(settings)
    for name, then in {**dataclasses.asdict(Settings()), **state["settings"]}.items():
        if name in now and name not in FREE and now[name] != then:  # skip settings of older versions
            raise UserError(
                f"{name}: found {now[name]!r}, but the run in {settings.output} was trained with {then!r}; "
                "expected the same, or another output"
            )
    if state["steps"] != steps:
        return [f"the run was planned for {state['steps']} steps, now for {steps}: the schedule now ends there"]
    return []
