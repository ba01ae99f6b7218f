"""The model card of an exported folder: README.md with front matter for the Hugging Face Hub."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ppa_fast.settings import Settings, objectives
from ppa_fast.version import __version__

# Settings about paths, logging and checkpoints, which do not change the model.
_PRIVATE = {
    *("model", "data", "output", "deepspeed_config", "eval_pairs", "store", "pooling"),
    *("log_every", "eval_every", "save_every", "keep", "max_skipped", "resume"),
}
_POOLED = {
    "cls": ("the `[CLS]` vector", "output.last_hidden_state[:, 0]"),
    "mean": (
        "the mean over all tokens",
        '(output.last_hidden_state * batch["attention_mask"].unsqueeze(-1)).sum(1)'
        ' / batch["attention_mask"].sum(1, keepdim=True)',
    ),
}


def _on_hub(base: str) -> bool:
    """Whether a base model's name can be a name on the Hub, not a local folder."""
    return bool(base) and not Path(base).exists() and base.count("/") <= 1 and not base.startswith((".", "~", "/"))


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; all columns except the first are right-aligned."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _data_section(pairs: dict[str, int], step: int, batch: int | None) -> str:
    if not pairs:
        return "The run did not record its language pairs."
    total = sum(pairs.values())
    rows = [(name, f"{count:,}") for name, count in pairs.items()]
    table = _table(("language pair", "sentence pairs"), [*rows, ("all", f"{total:,}")])
    if not batch:
        return table
    passes = f"{step:,} steps of {batch:,} pairs, {step * batch / total:.2g} passes over the data."
    return f"{table}\n\nTrained for {passes}"


def _scores(after: dict[str, Any], before: dict[str, Any]) -> str:
    """A row per direction, then the mean; a dash for a score that was not measured before training."""
    rows: list[tuple[str, str, float | None, float]] = []
    for name, scores in after.items():
        for way, key in ((name.split("-"), "a_to_b"), (name.split("-")[::-1], "b_to_a")):
            rows.append((" → ".join(way), f"{scores['n']:,}", before.get(name, {}).get(key), scores[key]))
    firsts = [first for _, _, first, _ in rows if first is not None]
    mean = fmean(firsts) if len(firsts) == len(rows) else None
    rows.append(("mean", "", mean, fmean(last for *_, last in rows)))
    cells = [(way, n, "–" if x is None else f"{100 * x:.1f}", f"{100 * y:.1f}") for way, n, x, y in rows]
    return _table(("direction", "sentences", "before", "after"), cells)


def _scores_section(evaluations: Sequence[dict[str, Any]], step: int) -> tuple[str, dict[str, Any] | None]:
    """The text of the section, and the evaluation at the exported step, if any."""
    known = [record for record in evaluations if record.get("pairs") and record["step"] <= step]
    if not known:
        return "The run was not evaluated.", None
    first, shown = known[0], known[-1]
    before = first["pairs"] if first["step"] == 0 and shown["step"] > 0 else {}
    when = f"before training and at step {shown['step']:,}" if before else f"at step {shown['step']:,}"
    text = f"""Retrieval of translations, precision at 1 in %: the share of sentences whose nearest neighbour in the
other language, by cosine, is the translation. Measured {when}, on the run's evaluation pairs.
The mean of these scores selects the best checkpoint, so they are development scores, not test scores.

{_scores(shown["pairs"], before)}"""
    return text, shown if shown["step"] == step else None


def _model_index(evaluation: dict[str, Any] | None) -> list[EvalResult]:
    """The scores under the metric names of sentence-transformers' TranslationEvaluator."""
    return [
        EvalResult(
            task_type="translation",
            task_name="Translation",
            dataset_type="unknown",
            dataset_name=f"evaluation pairs of the run, {name}, {scores['n']} sentences",
            metric_type=metric,
            metric_value=round(scores[key], 4),
            metric_name=text,
        )
        for name, scores in (evaluation["pairs"] if evaluation else {}).items()
        for key, metric, text in (
            ("a_to_b", "src2trg_accuracy", "Src2Trg Accuracy"),
            ("b_to_a", "trg2src_accuracy", "Trg2Src Accuracy"),
        )
        if math.isfinite(scores[key])
    ]


def _changed_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that differ from the defaults, except those that do not change the model."""
    defaults = dataclasses.asdict(Settings())
    return {
        name: value
        for name, value in settings.items()
        if name not in _PRIVATE and value is not None and value != defaults.get(name)
    }


def _front_matter(base: str, title: str, languages: Sequence[str], evaluation: dict[str, Any] | None) -> str:
    standard = [code.replace("_", "-") for code in languages]
    results = _model_index(evaluation)
    variants: dict[str, Any] = {"language_bcp47": [code for code in standard if "-" in code] or None}
    card = ModelCardData(
        language=["multilingual", *sorted({code.split("-")[0] for code in standard})],
        base_model=base if _on_hub(base) else None,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "sentence-similarity", "feature-extraction", "ppa-fast"],
        model_name=title if results else None,
        eval_results=results or None,
        **variants,
    )
    return f"# license: to be filled in, see Licence below\n{card.to_yaml()}".strip()


def model_card(
    settings: dict[str, Any],
    evaluations: Sequence[dict[str, Any]],
    step: int,
    family: str,
    max_seq_length: int,
    has_head: bool,
    trained_layer: int | None = None,
) -> str:
    """The text of the model card, in Markdown.

    Args:
        settings: the run's settings (``RUN/settings.yaml``); ``store`` describes its data.
        evaluations: the records of ``RUN/evaluations.jsonl``, in order.
        step: the step of the exported checkpoint.
        family: the encoder's ``model_type``.
        max_seq_length: the maximum number of tokens of a sentence, specials included.
        has_head: whether the folder has an MLM head.
        trained_layer: the layer whose vectors were trained, if it is not the last of the folder.
    """
    store = settings.get("store") or {}
    base = str(settings.get("model", ""))
    pairs = store.get("pairs") or {}
    languages = store.get("languages") or sorted({code for pair in pairs for code in pair.split("-")})
    title = f"{Path(base).name or family}, aligned across languages"
    source = f"[{base}](https://huggingface.co/{base})" if _on_hub(base) else f"`{Path(base).name or family}`"
    pooled, expression = _POOLED[settings["pooling"]]
    head, loads = (
        ", its masked-language-model head," if has_head else "",
        "; `AutoModelForMaskedLM` also loads the head" * has_head,
    )
    note = ""
    if trained_layer:
        note = f"""The vectors of layer {trained_layer} were trained and evaluated, but the code below uses the last
layer. To export an encoder that ends at that layer, use `ppa-fast export --layers {trained_layer}`.

"""
    scores, evaluation = _scores_section(evaluations, step)
    changed = _changed_settings(settings)
    table = _table(("setting", "value"), list(changed.items())) + "\n\nAll others" if changed else "All settings"
    return f"""---
{_front_matter(base, title, languages, evaluation)}
---

# {title}

A multilingual encoder (`{family}`), {source}, post-trained on parallel sentences so that translations have similar
vectors. It was trained with {objectives(settings)}, based on Pan et al.,
"Multilingual BERT Post-Pretraining Alignment" (NAACL 2021). Made with ppa-fast {__version__} from the checkpoint of
step {step:,}. The folder contains the encoder{head} and the unchanged other weights of the base model (the pooler).

## Use

The sentence vector is {pooled}. Compare vectors by cosine similarity. Sentences are truncated to
{max_seq_length} tokens.

{note}With [sentence-transformers](https://sbert.net):

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
vectors = model.encode(["A sentence.", "Ein Satz."])
similarities = model.similarity(vectors, vectors)
```

With [transformers](https://huggingface.co/docs/transformers) (for a task, fine-tune the model like any encoder of its
family{loads}):

```python
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = AutoModel.from_pretrained("path/to/this/folder")
sentences = ["A sentence.", "Ein Satz."]
batch = tokenizer(sentences, padding=True, truncation=True, max_length={max_seq_length}, return_tensors="pt")
with torch.no_grad():
    output = model(**batch)
vectors = {expression}
```

With [MTEB](https://github.com/embeddings-benchmark/mteb):

```python
import mteb
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
results = mteb.evaluate(model, tasks=mteb.get_tasks(tasks=["Tatoeba"]))
```

## Intended use and limits

Use this model to retrieve translations, to compare sentences across languages, or as a starting point for fine-tuning
on multilingual tasks. Only the languages below were aligned; other languages may have become better or worse. The model
was trained to place translations close together, not to grade the similarity of other sentences. Better retrieval does
not guarantee better transfer to a task: such gains vary between seeds (Wu and Dredze, 2020), so compare with the base
model over several seeds. The model inherits errors and biases of the base model and of the parallel text.

## Data

{_data_section(pairs, step, store.get("batch"))}

## Scores

{scores}

## Settings

{table} are the defaults of ppa-fast {__version__}.

## Licence

Not stated yet. Fill in `license:` at the top of this file before you publish the model. The licence depends on those of
the base model and of the parallel text.

## Citation

```bibtex
@inproceedings{{pan-etal-2021-multilingual,
    title = "Multilingual {{BERT}} Post-Pretraining Alignment",
    author = "Pan, Lin and Hang, Chung-Wei and Qi, Haode and Shah, Abhishek and Potdar, Saloni and Yu, Mo",
    booktitle = "Proceedings of the 2021 Conference of the North American Chapter of the Association for
        Computational Linguistics: Human Language Technologies",
    year = "2021",
    pages = "210--219",
    url = "https://aclanthology.org/2021.naacl-main.20",
    doi = "10.18653/v1/2021.naacl-main.20",
}}
```
"""
