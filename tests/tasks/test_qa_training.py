"""Training inputs of question answering: windows, and the position of the answer in them."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import torch

from ppa_fast.data.store.tokenize import load_tokenizer
from ppa_fast.tasks.qa_windows import answer_tokens, question_windows
from ppa_fast.tasks.question_answering import QaExample, QuestionAnsweringTask
from tests.conftest import Tiny
from tests.tasks import toy


@pytest.fixture(scope="module")
def task(tiny: Tiny) -> QuestionAnsweringTask:
    return QuestionAnsweringTask(load_tokenizer(str(tiny.tokenizer)), max_tokens=48, stride=12)


def examples(folder: Path, length: int) -> list[QaExample]:
    files = toy.qa(folder, "train", rows=40, seed=length, length=length)
    return QuestionAnsweringTask.read(files["de"])[0]


OFFSETS = [(0, 0), (0, 3), (0, 0), (0, 2), (2, 4), (5, 9), (0, 0)]  # [CLS] who [SEP] ab cd efgh [SEP]
CONTEXT = [False, False, False, True, True, True, False]


@pytest.mark.parametrize(
    ("start", "end", "tokens"),
    [
        (0, 2, (3, 3)),
        (0, 4, (3, 4)),
        (2, 9, (4, 5)),
        (5, 9, (5, 5)),
        (6, 8, (5, 5)),  # inside a token: this token
        (1, 3, (3, 4)),  # across tokens: both tokens
        (5, 10, (0, 0)),  # past the window
        (4, 5, (0, 0)),  # a space, which no token covers
    ],
)
def test_answer_tokens_cover_the_answer(start: int, end: int, tokens: tuple[int, int]) -> None:
    assert answer_tokens(OFFSETS, CONTEXT, start, end) == tokens


def test_an_answer_before_the_window_points_at_cls() -> None:
    assert answer_tokens([(0, 0), (9, 12), (13, 15)], [False, True, True], 5, 11) == (0, 0)
    assert answer_tokens([(0, 0)], [False], 0, 3) == (0, 0)


def test_pieces_equal_the_windows(task: QuestionAnsweringTask, tmp_path: Path) -> None:
    rng = random.Random(0)
    words = [word[0] for word in toy.meanings()]
    for _ in range(60):
        question, context = (" ".join(rng.choices(words, k=rng.randint(1, k))) for k in (12, 60))
        example = QaExample("q", question, context, (), "")
        windows = question_windows(task.tokenizer, [question], [context], task.max_tokens, task.stride)
        assert task.pieces(task.lengths([example])).tolist() == [len(windows["input_ids"])]


@pytest.mark.parametrize("length", [4, 30])
def test_a_batch_marks_the_answer_in_its_windows(task: QuestionAnsweringTask, tmp_path: Path, length: int) -> None:
    """The tokens of the marked span spell the answer. A window is marked at [CLS] if and only if it does not contain
    the answer."""
    found = examples(tmp_path, length)
    pieces = task.pieces(task.lengths(found)).tolist()
    assert max(pieces) > 1 if length > 10 else max(pieces) == 1
    for example, count in zip(found, pieces, strict=True):
        batch = task.collate([(example, piece) for piece in range(count)])
        assert batch["input_ids"].shape[1] <= task.max_tokens
        answer = task.tokenizer(example.answers[0][0], add_special_tokens=False)["input_ids"]
        marked = 0
        for ids, start, end in zip(batch["input_ids"], batch["start_positions"], batch["end_positions"], strict=True):
            if start == 0:
                assert end == 0
                context = ids[ids.tolist().index(task.tokenizer.sep_token_id) :].tolist()
                assert not any(context[i : i + len(answer)] == answer for i in range(len(context)))
            else:
                assert ids[start : end + 1].tolist() == answer
                marked += 1
        assert marked >= 1


def test_windows_of_different_questions_share_a_batch(task: QuestionAnsweringTask, tmp_path: Path) -> None:
    found = examples(tmp_path, 30)[:6]
    counts = task.pieces(task.lengths(found)).tolist()
    items = [(example, count - 1) for example, count in zip(found, counts, strict=True)]
    together = task.collate([*items, (found[0], 0)])
    for row, item in enumerate([*items, (found[0], 0)]):
        alone = task.collate([item])
        width = alone["input_ids"].shape[1]
        assert torch.equal(together["input_ids"][row, :width], alone["input_ids"][0])
        assert together["start_positions"][row] == alone["start_positions"][0]


@pytest.mark.slow
@pytest.mark.skipif("PPA_FAST_TEST_DATA" not in os.environ, reason="PPA_FAST_TEST_DATA is not set")
@pytest.mark.parametrize("code", ["ar", "zh"])
def test_every_published_answer_is_in_a_window(tiny: Tiny, code: str) -> None:
    task = QuestionAnsweringTask(load_tokenizer(str(tiny.tokenizer)), max_tokens=384)
    found, rejected = QuestionAnsweringTask.read(Path(os.environ["PPA_FAST_TEST_DATA"]) / "qa" / f"xquad.{code}.json")
    assert not rejected
    for example, count in zip(found, task.pieces(task.lengths(found)).tolist(), strict=True):
        batch = task.collate([(example, piece) for piece in range(count)])
        assert batch["start_positions"].max() > 0
