"""The training set as drawn: what is in it, and what the file of it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ppa_fast.data.encode import load_tokenizer
from ppa_fast.finetune.classify import Classify
from ppa_fast.finetune.code_switch import mixture
from ppa_fast.finetune.dataset import Drawn, dump
from ppa_fast.finetune.nli import Nli
from ppa_fast.finetune.parallel import Parallel, read_parallel
from ppa_fast.finetune.qa import Qa
from ppa_fast.finetune.task import Task
from tests.conftest import Tiny
from tests.finetune import toy

KINDS = {"nli": Nli, "qa": Qa, "classify": Classify}


def load(tiny: Tiny, folder: Path, name: str, **options: int) -> tuple[Task, Parallel]:
    data = read_parallel(getattr(toy, name)(folder, "train", rows=60, seed=0, **options), KINDS[name].read)
    task = KINDS[name](load_tokenizer(str(tiny.tokenizer)), 48, KINDS[name].labels_of(data.examples["en"]))
    return task, data


def language_of(text: str) -> set[str]:
    """The languages whose words a text has."""
    words = toy.meanings()
    return {toy.CODES[i] for i in range(3) for word in words if word[i] in text.replace("?", "").split()}


def test_nli_switches_one_side_and_keeps_the_label(tiny: Tiny, tmp_path: Path) -> None:
    task, data = load(tiny, tmp_path, "nli")
    mix = mixture("zero-shot", [*toy.CODES], share=0.5)
    drawn = Drawn(task, data, mix, seed=0, epochs=2)
    seen = set()
    for epoch in range(2):
        for row in range(60):
            example, piece = drawn[epoch, row]
            first, second = (mix.codes[side] for side in drawn.sides[epoch][row].tolist())
            assert (language_of(example.premise), language_of(example.hypothesis)) == ({first}, {second})
            english = data.examples["en"][row]
            assert (example.label, example.row, piece) == (english.label, row, 0)
            assert example.premise == data.examples[first][row].premise
            seen.add((first, second))
    assert seen == {("en", "en"), ("en", "de"), ("en", "fr"), ("de", "en"), ("fr", "en")}


def test_an_answer_is_in_the_language_of_its_context(tiny: Tiny, tmp_path: Path) -> None:
    task, data = load(tiny, tmp_path, "qa")
    mix = mixture("translate-train", [*toy.CODES], "de", share=0.5)
    drawn = Drawn(task, data, mix, seed=0, epochs=1)
    seen = set()
    for number in range(60):
        example, _ = drawn[0, number]
        question, context = (mix.codes[side] for side in drawn.sides[0][number].tolist())
        assert (language_of(example.question), language_of(example.context)) == ({question}, {context})
        ((text, start),) = example.answers
        assert example.context[start : start + len(text)] == text
        seen.add((question, context))
    assert seen == {("de", "de"), ("en", "de"), ("en", "fr"), ("de", "en"), ("fr", "en")}


def test_all_windows_of_all_rows_are_there(tiny: Tiny, tmp_path: Path) -> None:
    task, data = load(tiny, tmp_path, "qa", length=20)
    drawn = Drawn(task, data, mixture("translate-train-all", [*toy.CODES], share=0.5), seed=0, epochs=2)
    assert len(drawn) == sum(map(len, drawn.lengths)) > 2 * 3 * 60
    items = [drawn[1, number] for number in range(len(drawn.lengths[1]))]
    found = [(example.id, piece) for example, piece in items]
    expected = [
        (example.id, piece)
        for copy in range(3)
        for row in range(60)
        for example in [items[[i for i, (_, piece) in enumerate(items) if piece == 0][copy * 60 + row]][0]]
        for piece in range(int(task.pieces(task.lengths([example]))))
    ]
    assert found == expected
    task.collate(items)  # each of them is a window that exists


def test_a_classified_text_is_in_the_first_sides_language(tiny: Tiny, tmp_path: Path) -> None:
    task, data = load(tiny, tmp_path, "classify")
    mix = mixture("zero-shot", [*toy.CODES], share=1.0)
    drawn = Drawn(task, data, mix, seed=0, epochs=1)
    languages = [language_of(drawn[0, row][0].text) for row in range(60)]
    assert languages == [{mix.codes[side]} for side in drawn.sides[0][:, 0].tolist()]
    assert 15 < sum(language == {"en"} for language in languages) < 45


@pytest.mark.parametrize("name", KINDS)
def test_the_file_says_what_is_trained_on(tiny: Tiny, tmp_path: Path, name: str) -> None:
    task, data = load(tiny, tmp_path, name)
    mix = mixture("translate-train-all", [*toy.CODES], share=0.5)
    dump(task, data, mix, seeds=range(2), epochs=2, path=tmp_path / "switched.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "switched.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 2 * 2 * 3 * 60
    for seed in range(2):
        drawn = Drawn(task, data, mix, seed, epochs=2)
        for epoch in range(2):
            part = [line for line in lines if (line["seed"], line["epoch"]) == (seed, epoch)]
            assert [line["row"] for line in part] == 3 * list(range(60))
            for number, line in enumerate(part):
                example, _ = drawn[epoch, int((drawn.owners[epoch] == number).nonzero()[0])]
                record = task.record(example)
                assert {key: line[key] for key in record} == record
                own = [line["own"]] * 2
                assert ("en" in line["languages"]) if line["switched"] else (line["languages"] == own)
