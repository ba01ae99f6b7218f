"""The code-switched training set: its content, and the file that describes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ppa_fast.data.store.tokenize import load_tokenizer
from ppa_fast.tasks.classification import TextClassificationTask
from ppa_fast.tasks.code_switching import CodeSwitchedDataset, dump, mixture_of
from ppa_fast.tasks.nli import NliTask
from ppa_fast.tasks.parallel import ParallelExamples, read_parallel
from ppa_fast.tasks.question_answering import QuestionAnsweringTask
from ppa_fast.tasks.tagging import TaggingTask
from ppa_fast.tasks.task import Task
from tests.conftest import Tiny
from tests.tasks import toy

KINDS = {"nli": NliTask, "qa": QuestionAnsweringTask, "classify": TextClassificationTask, "tagging": TaggingTask}


def load(tiny: Tiny, folder: Path, name: str, **options: int) -> tuple[Task, ParallelExamples]:
    data = read_parallel(getattr(toy, name)(folder, "train", rows=60, seed=0, **options), KINDS[name].read)
    task = KINDS[name](load_tokenizer(str(tiny.tokenizer)), 48, KINDS[name].labels_of(data.examples["en"]))
    return task, data


def language_of(text: str) -> set[str]:
    """The languages whose words a text contains."""
    words = toy.meanings()
    return {toy.CODES[i] for i in range(3) for word in words if word[i] in text.replace("?", "").split()}


def test_nli_switches_one_side_and_keeps_the_label(tiny: Tiny, tmp_path: Path) -> None:
    task, data = load(tiny, tmp_path, "nli")
    mixture = mixture_of("zero-shot", [*toy.CODES], share=0.5)
    dataset = CodeSwitchedDataset(task, data, mixture, seed=0, epochs=2)
    seen = set()
    for epoch in range(2):
        for row in range(60):
            example, piece = dataset[epoch, row]
            first, second = (mixture.codes[side] for side in dataset.sides[epoch][row].tolist())
            assert (language_of(example.premise), language_of(example.hypothesis)) == ({first}, {second})
            english = data.examples["en"][row]
            assert (example.label, example.row, piece) == (english.label, row, 0)
            assert example.premise == data.examples[first][row].premise
            seen.add((first, second))
    assert seen == {("en", "en"), ("en", "de"), ("en", "fr"), ("de", "en"), ("fr", "en")}


def test_an_answer_is_in_the_language_of_its_context(tiny: Tiny, tmp_path: Path) -> None:
    task, data = load(tiny, tmp_path, "qa")
    mixture = mixture_of("translate-train", [*toy.CODES], "de", share=0.5)
    dataset = CodeSwitchedDataset(task, data, mixture, seed=0, epochs=1)
    seen = set()
    for number in range(60):
        example, _ = dataset[0, number]
        question, context = (mixture.codes[side] for side in dataset.sides[0][number].tolist())
        assert (language_of(example.question), language_of(example.context)) == ({question}, {context})
        ((text, start),) = example.answers
        assert example.context[start : start + len(text)] == text
        seen.add((question, context))
    assert seen == {("de", "de"), ("en", "de"), ("en", "fr"), ("de", "en"), ("fr", "en")}


def test_every_window_of_every_row_is_present(tiny: Tiny, tmp_path: Path) -> None:
    task, data = load(tiny, tmp_path, "qa", length=20)
    dataset = CodeSwitchedDataset(
        task, data, mixture_of("translate-train-all", [*toy.CODES], share=0.5), seed=0, epochs=2
    )
    assert len(dataset) == sum(map(len, dataset.lengths)) > 2 * 3 * 60
    items = [dataset[1, number] for number in range(len(dataset.lengths[1]))]
    found = [(example.id, piece) for example, piece in items]
    expected = [
        (example.id, piece)
        for copy in range(3)
        for row in range(60)
        for example in [items[[i for i, (_, piece) in enumerate(items) if piece == 0][copy * 60 + row]][0]]
        for piece in range(int(task.pieces(task.lengths([example]))))
    ]
    assert found == expected
    task.collate(items)  # each of them is an existing window


def test_a_classified_text_is_in_the_language_of_the_first_side(tiny: Tiny, tmp_path: Path) -> None:
    task, data = load(tiny, tmp_path, "classify")
    mixture = mixture_of("zero-shot", [*toy.CODES], share=1.0)
    dataset = CodeSwitchedDataset(task, data, mixture, seed=0, epochs=1)
    languages = [language_of(dataset[0, row][0].text) for row in range(60)]
    assert languages == [{mixture.codes[side]} for side in dataset.sides[0][:, 0].tolist()]
    assert 15 < sum(language == {"en"} for language in languages) < 45


def test_a_tagged_sentence_is_switched_with_its_own_tags(tiny: Tiny, tmp_path: Path) -> None:
    task, data = load(tiny, tmp_path, "tagging")
    mixture = mixture_of("zero-shot", [*toy.CODES], share=1.0)
    dataset = CodeSwitchedDataset(task, data, mixture, seed=0, epochs=1)
    for row in range(60):
        code = mixture.codes[int(dataset.sides[0][row, 0])]
        assert dataset[0, row] == (data.examples[code][row], 0)
    assert {*dataset.sides[0][:, 0].tolist()} == {0, 1, 2}


@pytest.mark.parametrize("name", KINDS)
def test_the_file_contains_the_training_rows(tiny: Tiny, tmp_path: Path, name: str) -> None:
    task, data = load(tiny, tmp_path, name)
    mixture = mixture_of("translate-train-all", [*toy.CODES], share=0.5)
    dump(task, data, mixture, seeds=range(2), epochs=2, path=tmp_path / "switched.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "switched.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 2 * 2 * 3 * 60
    for seed in range(2):
        dataset = CodeSwitchedDataset(task, data, mixture, seed, epochs=2)
        for epoch in range(2):
            part = [line for line in lines if (line["seed"], line["epoch"]) == (seed, epoch)]
            assert [line["row"] for line in part] == 3 * list(range(60))
            for number, line in enumerate(part):
                example, _ = dataset[epoch, int((dataset.owners[epoch] == number).nonzero()[0])]
                record = task.record(example)
                assert {key: line[key] for key in record} == record
                own = [line["own"]] * 2
                assert ("en" in line["languages"]) if line["switched"] else (line["languages"] == own)
