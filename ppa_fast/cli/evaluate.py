"""``ppa-fast evaluate TASK``: argument parsing only."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module

from ppa_fast.cli.verb import Verbs, add_family, add_verb_of
from ppa_fast.settings import (
    AlignmentSettings,
    AnswersSettings,
    LabelsSettings,
    MiningSettings,
    Options,
    RetrievalSettings,
    SuiteSettings,
    TagsSettings,
)

TASKS: dict[str, tuple[type[Options], str, str, str]] = {
    "retrieval": (
        RetrievalSettings,
        "retrieval.format_table",
        "retrieve each sentence's translation among all sentences of the other side by cosine similarity",
        "ppa-fast evaluate retrieval --model DIR --pairs en-de:dev.en,dev.de --json scores.json",
    ),
    "qa": (
        AnswersSettings,
        "question_answering.format_table",
        "exact match and token F1 of extractive question answering, as in the official script of MLQA or SQuAD",
        "ppa-fast evaluate qa --gold test.json --predictions answers.json --language zh --json scores.json",
    ),
    "nli": (
        LabelsSettings,
        "sequence_classification.format_table",
        "accuracy and macro-F1 of natural language inference, for each language and on average",
        "ppa-fast evaluate nli --gold en:en.tsv de:de.tsv --predictions en:en.txt de:de.txt --json scores.json",
    ),
    "classify": (
        LabelsSettings,
        "sequence_classification.format_table",
        "accuracy and macro-F1 of text classification, for each language and on average",
        "ppa-fast evaluate classify --gold test.tsv --predictions test.txt --json scores.json",
    ),
    "tagging": (
        TagsSettings,
        "tagging.format_table",
        "accuracy of parts of speech, or F1 of named entities as seqeval computes it, for each language and on average",
        "ppa-fast evaluate tagging --gold en:en.conllu de:de.conllu --model DIR --json scores.json",
    ),
    "align": (
        AlignmentSettings,
        "word_alignment.format_scores",
        "alignment error rate, precision and recall of word links, from a file or from an encoder",
        "ppa-fast evaluate align --gold test.gold --one-indexed --links test.links --json scores.json\n"
        "ppa-fast evaluate align --gold test.gold --model DIR --pairs test.de,test.en --json scores.json",
    ),
    "mine": (
        MiningSettings,
        "mining.format_scores",
        "mine translations from two monolingual corpora (BUCC): precision, recall and F1",
        "ppa-fast evaluate mine --model DIR --dev dev.de,dev.en,dev.gold --test test.de,test.en,test.gold",
    ),
    "suite": (
        SuiteSettings,
        "suite.format_table",
        "score models on every evaluation set of a folder; the same command resumes",
        "ppa-fast evaluate suite --model bert-base-multilingual-cased aligned --data DIR\n"
        "ppa-fast evaluate suite --model aligned --data DIR --languages de zh --out runs/suite",
    ),
}
"""Task → options, formatting function in ``ppa_fast.tasks``, help and examples."""


def _work(task: str, formatter: str) -> Callable[[Options], None]:
    def work(settings: Options) -> None:
        from ppa_fast.tasks import evaluate

        result = evaluate(task, **vars(settings))
        module, _, name = formatter.partition(".")
        print(getattr(import_module(f"ppa_fast.tasks.{module}"), name)(result))

    return work


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds ``evaluate`` and its tasks."""
    tasks = add_family(
        verbs,
        "evaluate",
        "score an encoder or a file of predictions",
        "ppa-fast evaluate retrieval --model aligned-mbert --pairs en-de:test.en,test.de",
    )
    for task, (cls, formatter, text, examples) in TASKS.items():
        add_verb_of(cls, tasks, task, text, examples, _work(task, formatter))
