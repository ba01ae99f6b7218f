"""One competitor of peers.py: trains in this process and writes result.json. ``python peers_training.py RUN.json``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.training_args import BatchSamplers
from torch import Tensor
from transformers import TrainerCallback

from ppa_fast.data.reading.corpus import read_eval_pairs
from ppa_fast.data.store.tokenize import TextTokenizer
from ppa_fast.model.vectors import sentence_vectors
from ppa_fast.settings import Settings
from ppa_fast.tasks.retrieval import retrieval_scores
from ppa_fast.training import distributed, preflight
from ppa_fast.training.trainer import Trainer

Encode = Callable[[list[str]], Tensor]


def memory(field: str) -> int:
    """Bytes of this process: ``VmRSS`` held now, ``VmHWM`` at most since :func:`forget_peak`."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def forget_peak() -> None:
    """Begins a new ``VmHWM``."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


class Curve:
    """Retrieval P@1 over processor seconds; evaluations are neither timed nor in the peak of memory."""

    def __init__(self, run: dict[str, Any], base: int) -> None:
        self.base = base
        self.sets = {
            name: [read_eval_pairs(spec)[1:] for spec in specs.values()] for name, specs in run["evaluations"].items()
        }
        self.points: list[dict[str, float]] = []
        self.seconds = run["prepared"]
        self.peak = 0
        self.marks: list[tuple[int, float]] = []

    def start(self) -> None:
        """Begins to time."""
        forget_peak()
        self._begin = time.process_time()

    def mark(self, step: int) -> None:
        """Notes when a step ended, for the speed."""
        self.marks.append((step, time.process_time()))

    def point(self, step: int, encode: Encode) -> None:
        """Evaluates after ``step`` steps."""
        self.seconds += time.process_time() - self._begin
        self.peak = max(self.peak, memory("VmHWM") - self.base)
        self.points.append({"step": step, "seconds": self.seconds, **self._scores(encode)})
        self.start()

    def _scores(self, encode: Encode) -> dict[str, float]:
        scores = {}
        for name, sets in self.sets.items():
            texts = list(dict.fromkeys(text for sides in sets for side in sides for text in side))
            vectors, index = F.normalize(encode(texts), dim=1), {text: i for i, text in enumerate(texts)}
            values = []
            for sides in sets:
                a, b = (vectors[[index[text] for text in side]] for side in sides)
                values += retrieval_scores(a, b)
            scores[name] = 100 * sum(values) / len(values)
        return scores


def theirs(run: dict[str, Any], curve: Curve, evaluates_at: set[int]) -> None:
    """sentence-transformers' trainer, MultipleNegativesRankingLoss, batches without duplicates."""
    model = SentenceTransformer(run["model"], device="cpu")
    pairs = [pair for spec in run["train"].values() for pair in zip(*read_eval_pairs(spec)[1:], strict=True)]
    data = Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [b for _, b in pairs]})
    options = dict(run["competitor"]["theirs"])
    if "directions" in options:
        options["directions"] = tuple(options["directions"])
    kind = (
        losses.CachedMultipleNegativesRankingLoss
        if "mini_batch_size" in options
        else losses.MultipleNegativesRankingLoss
    )
    arguments = SentenceTransformerTrainingArguments(
        output_dir=run["output"],
        max_steps=run["steps"],
        per_device_train_batch_size=run["batch"],
        learning_rate=run["learning_rate"],
        warmup_ratio=0.06,
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        bf16=run["bf16"],
        seed=run["seed"],
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=50,
    )

    def encode(texts: list[str]) -> Tensor:
        vectors = model.encode(texts, batch_size=64, convert_to_tensor=True, show_progress_bar=False)
        model.train()
        return vectors

    class Evaluations(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            curve.start()
            if evaluates_at:
                curve.point(0, encode)

        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            curve.mark(state.global_step)
            if state.global_step in evaluates_at:
                curve.point(state.global_step, encode)

    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=data, loss=kind(model, **options), callbacks=[Evaluations()]
    )
    trainer.train()


def ours(run: dict[str, Any], curve: Curve, evaluates_at: set[int]) -> None:
    """Trains with ppa-fast, with one micro-batch per step; ``curve`` evaluates."""
    output, steps = Path(run["output"]), run["steps"]
    config = {
        "train_batch_size": run["batch"],
        "train_micro_batch_size_per_gpu": run["batch"],
        "gradient_clipping": 1.0,
    }
    (output / "ds.json").write_text(json.dumps(config | {"zero_optimization": {"stage": 0}}), encoding="utf-8")
    own = dict(run["competitor"]["ours"])
    own = {"learning_rate": run["learning_rate"], **(run["paper"] if own["recipe"] == "paper" else {}), **own}
    settings = Settings(
        model=run["model"],
        data=[run["store"]],
        output=str(output / "run"),
        deepspeed_config=str(output / "ds.json"),
        seed=run["seed"],
        steps=steps,
        save_every=steps,
        eval_every=steps // len(evaluates_at) if evaluates_at else steps,
        resume="never",
        **own,
    )

    class Measured(Trainer):
        def train_step(self) -> Any:
            metrics = super().train_step()
            curve.mark(self.state.step)
            return metrics

        def evaluate(self) -> None:
            if self.state.step == 0:
                curve.start()
            if not evaluates_at:
                return
            tokenize = TextTokenizer(self.plan.tokenizer, self.plan.data.max_tokens)
            with self.training_step.complete_encoder() as encoder:
                curve.point(
                    self.state.step,
                    lambda texts: sentence_vectors(encoder, tokenize(texts), self.plan.data.special, self.plan.pooling),
                )

    plan = preflight.check(settings, 1)
    with distributed.started() as device:
        trainer = Measured(plan, device)
        trainer.fit()
        trainer.close()


def main(path: str) -> None:
    """Trains the run of a file and writes its result."""
    run = json.loads(Path(path).read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    curve = Curve(run, memory("VmRSS"))
    steps, points = run["steps"], run["points"]
    evaluates_at = {i * (steps // points) for i in range(1, points)} | {steps} if points else set()
    (theirs if "theirs" in run["competitor"] else ours)(run, curve, evaluates_at)
    first, begin = curve.marks[len(curve.marks) // 4 - 1]
    last, end = curve.marks[-1]
    result = {"name": run["name"], "steps": steps, "batch": run["batch"], "learning_rate": run["learning_rate"]}
    if "theirs" in run["competitor"]:
        result["bf16"] = run["bf16"]
    if points:
        result |= {"points": curve.points, "pairs_per_s": steps * run["batch"] / (curve.points[-1]["seconds"])}
    else:
        result["pairs_per_s"] = (last - first) * run["batch"] / (end - begin)
        curve.peak = memory("VmHWM") - curve.base
    result["peak_bytes"] = curve.peak
    (Path(run["output"]) / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
