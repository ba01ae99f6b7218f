"""Predictions of fine-tuned models: against transformers row by row, and answers that are parts of their contexts."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from ppa_fast.errors import UserError
from ppa_fast.tasks import evaluate, prediction, qa_windows
from ppa_fast.tasks.prediction import load_finetuned, predict_classes
from ppa_fast.tasks.qa_windows import MAX_ANSWER_TOKENS, answer_questions, best_spans, question_windows
from ppa_fast.tasks.question_answering import QaExample

CLASSIFIER, READER = "AutoModelForSequenceClassification", "AutoModelForQuestionAnswering"
WORDS = [f"w{i}" for i in range(60)]
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "start", "end", "北", "京", "大", "学", "?", ".", *WORDS]
CONFIG: dict[str, Any] = {
    "vocab_size": len(VOCAB),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,  # far from 0, so that classes and answers differ between rows
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return BertTokenizer(vocab={word: i for i, word in enumerate(VOCAB)}, do_lower_case=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Folders ``nli``, ``reader`` and ``mlm`` with random models."""
    folder = tmp_path_factory.mktemp("models")
    names = {"id2label": {0: "CONTRADICTION", 1: "neutral", 2: "entailment"}}
    torch.manual_seed(0)
    for name, auto, extra in (
        ("nli", AutoModelForSequenceClassification, names),
        ("reader", AutoModelForQuestionAnswering, {}),
    ):
        auto.from_config(BertConfig(**CONFIG, **extra)).save_pretrained(folder / name)
    BertForMaskedLM(BertConfig(**CONFIG)).save_pretrained(folder / "mlm")
    for name in ("nli", "reader", "mlm"):
        tokenizer.save_pretrained(folder / name)
    return folder


def sentences(rng: random.Random, n: int, longest: int) -> list[str]:
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for _ in range(n)]


@pytest.mark.parametrize("pairs", [False, True])
def test_classes_equal_those_of_single_rows(folder: Path, monkeypatch: pytest.MonkeyPatch, pairs: bool) -> None:
    model, tokenizer = load_finetuned(CLASSIFIER, str(folder / "nli"))
    rng = random.Random(1)
    texts: list[Any] = sentences(rng, 40, 50)
    if pairs:
        texts = list(zip(texts, sentences(rng, 40, 50), strict=True))
    monkeypatch.setattr(prediction, "CHUNK", 17)
    monkeypatch.setattr(prediction, "TOKENS_PER_BATCH", 150)
    model.cpu().train()
    classes = predict_classes(model, tokenizer, texts, max_tokens=20)
    assert all(module.training for module in model.modules())

    model.eval()
    expected = []
    for text in texts:
        inputs = tokenizer(
            *([text] if isinstance(text, str) else text), truncation=True, max_length=20, return_tensors="pt"
        )
        assert inputs["input_ids"].shape[1] <= 20
        with torch.no_grad():
            expected.append(model(**inputs).logits.argmax().item())
    assert classes == expected
    assert len(set(classes)) > 1
    assert predict_classes(model, tokenizer, []) == []


def test_a_text_is_truncated_to_the_models_maximum(folder: Path) -> None:
    model, tokenizer = load_finetuned(CLASSIFIER, str(folder / "nli"))
    long = " ".join(WORDS * 3)
    assert predict_classes(model, tokenizer, [long], 1000) == predict_classes(model, tokenizer, [long], 64)


def test_best_spans_are_optimal() -> None:
    generator = torch.Generator().manual_seed(0)
    starts, ends = torch.randn(2, 20, 70, generator=generator)
    allowed = torch.rand(20, 70, generator=generator) < 0.7
    score, first, last = best_spans(starts, ends, allowed)
    for row in range(20):
        spans = [
            (starts[row, i] + ends[row, j], -i, -j)
            for i in range(70)
            for j in range(i, min(i + MAX_ANSWER_TOKENS, 70))
            if allowed[row, i] and allowed[row, j]
        ]
        expected = max(spans)
        assert (score[row].item(), -first[row].item(), -last[row].item()) == pytest.approx(tuple(map(float, expected)))


def test_a_span_is_neither_backward_nor_too_long() -> None:
    starts, ends = torch.zeros(1, 60), torch.zeros(1, 60)
    starts[0, 40], ends[0, 5] = (
        9.0,
        9.0,
    )  # separately these positions are the best, but together they are in the wrong order
    _, first, last = best_spans(starts, ends, torch.ones(1, 60, dtype=torch.bool))
    assert first.item() <= last.item()
    starts, ends = torch.zeros(1, 60), torch.zeros(1, 60)
    starts[0, 0], ends[0, 30], ends[0, 29] = 9.0, 9.0, 8.0  # 31 tokens, and 30
    assert [x.item() for x in best_spans(starts, ends, torch.ones(1, 60, dtype=torch.bool))] == [17.0, 0, 29]


class Oracle(nn.Module):
    """Answers from token ``start`` to token ``end``, anywhere in the input, including the question."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.config = BertConfig(**CONFIG)
        self.rows = 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Any:
        assert input_ids.shape[1] <= 64
        self.rows += len(input_ids)
        logits = [3.0 * (input_ids == VOCAB.index(word)) - 9.0 * (attention_mask == 0) for word in ("start", "end")]
        return QuestionAnsweringModelOutput(start_logits=logits[0], end_logits=logits[1])


def asked(id_: str, question: str, context: str) -> QaExample:
    return QaExample(id_, question, context, (), "")


def test_answers_are_substrings_of_the_context(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    filler = " ".join(WORDS[:50])
    examples = [
        asked("spaces", "start end ?", "w1  start\u00a0w2 \n end . w3"),
        asked("zh", "大 ?", "北京start北京大学，end大学"),
        asked("late", "w1 ?", f"{filler} {filler} start w7 end {filler}"),
        asked("twice", "w1 ?", f"start w8 end {filler} {filler} start w9 end"),
        asked("long", f"{filler} {filler} start end", f"w4 start w5 end {filler}"),
        asked("empty", "w1", " \n"),
    ]
    model: Any = Oracle()
    for chunk in (512, 2):
        monkeypatch.setattr(qa_windows, "CHUNK", chunk)
        assert answer_questions(model, tokenizer, examples, progress="answering") == {
            "spaces": "start\u00a0w2 \n end",
            "zh": "start北京大学，end",
            "late": "start w7 end",
            "twice": "start w8 end",
            "long": "start w5 end",
            "empty": "",
        }
    assert model.rows > 2 * len(examples)  # windows have 64 tokens
    assert answer_questions(model, tokenizer, []) == {}


def test_windows_overlap_and_cover_the_context(tokenizer: PreTrainedTokenizerBase) -> None:
    context = " ".join(WORDS * 3)
    windows = question_windows(tokenizer, ["w0 w1 ?"], [context], max_tokens=40, stride=8)
    seen = []
    for row in range(len(windows["input_ids"])):
        assert len(windows["input_ids"][row]) <= 40
        sides = windows.sequence_ids(row)
        seen.append([o for o, side in zip(windows["offset_mapping"][row], sides, strict=True) if side == 1])
    for before, after in pairwise(seen):
        assert before[-8:] == after[:8]
    assert [context[a:b] for a, b in dict.fromkeys(o for row in seen for o in row)] == WORDS * 3


def test_a_real_reader_equals_the_definition(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load_finetuned(READER, str(folder / "reader"))
    rng = random.Random(2)
    examples = [
        asked(str(i), q, c) for i, (q, c) in enumerate(zip(sentences(rng, 12, 9), sentences(rng, 12, 90), strict=True))
    ]
    monkeypatch.setattr(prediction, "TOKENS_PER_BATCH", 200)
    answers = answer_questions(model.cpu(), tokenizer, examples, max_tokens=48, stride=10)
    for example in examples:
        windows = question_windows(tokenizer, [example.question], [example.context], 48, 10)
        best = (float("-inf"), "")
        for row in range(len(windows["input_ids"])):
            inputs = {name: torch.tensor([windows[name][row]]) for name in tokenizer.model_input_names}
            with torch.no_grad():
                output = model(**inputs)
            inside = [i for i, side in enumerate(windows.sequence_ids(row)) if side == 1]
            for i in inside:
                for j in range(i, min(i + MAX_ANSWER_TOKENS, inside[-1] + 1)):
                    score = (output.start_logits[0, i] + output.end_logits[0, j]).item()
                    if score > best[0] + 1e-5:
                        offsets = windows["offset_mapping"][row]
                        best = (score, example.context[offsets[i][0] : offsets[j][1]])
        assert answers[example.id] == best[1]
    assert len({len(answer) for answer in answers.values()}) > 1


def test_model_folders_are_evaluated(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load_finetuned(CLASSIFIER, str(folder / "nli"))
    rows = list(zip(sentences(random.Random(3), 20, 9), sentences(random.Random(4), 20, 9), strict=True))
    names = ["contradiction", "neutral", "entailment"]
    labels = [names[c] for c in predict_classes(model, tokenizer, rows)]
    labels[:5] = ["neutral" if label != "neutral" else "entailment" for label in labels[:5]]
    lines = ["premise\thypo\tlabel", *("\t".join((*row, label)) for row, label in zip(rows, labels, strict=True))]
    (tmp_path / "nli.tsv").write_text("\n".join(lines))
    result = evaluate("nli", gold=[f"en:{tmp_path / 'nli.tsv'}"], model=str(folder / "nli"))
    assert (result["accuracy"], result["model"]) == (0.75, str(folder / "nli"))

    topics = [names[c] for c in predict_classes(model, tokenizer, [a for a, _ in rows])]
    lines = ["text\tlabel", *(f"{a}\t{label}" for (a, _), label in zip(rows, topics, strict=True))]
    (tmp_path / "topics.tsv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"id2label in config.json: found CONTRADICTION, neutral, entail"):
        evaluate("classify", gold=[str(tmp_path / "topics.tsv")], model=str(folder / "nli"))
    if "contradiction" in topics:
        (tmp_path / "topics.tsv").write_text("\n".join(lines).replace("contradiction", "CONTRADICTION"))
    assert evaluate("classify", gold=[str(tmp_path / "topics.tsv")], model=str(folder / "nli"))["accuracy"] == 1.0

    squad = (
        '{"data": [{"paragraphs": [{"context": "w1 w2 w3", "qas": [{"id": "1", "question": "w4", "answers": [%s]}]}]}]}'
    )
    answer = answer_questions(*load_finetuned(READER, str(folder / "reader")), [asked("1", "w4", "w1 w2 w3")])["1"]
    (tmp_path / "qa.json").write_text(squad % f'{{"text": "{answer}"}}, {{"text": "x"}}')
    result = evaluate("qa", gold=[str(tmp_path / "qa.json")], model=str(folder / "reader"), language="en")
    assert (result["exact_match"], result["f1"], result["languages"]["en"]["missing"]) == (100.0, 100.0, 0)


def test_a_model_without_fine_tuning_is_an_error(folder: Path, tmp_path: Path) -> None:
    for auto in (CLASSIFIER, READER):
        with pytest.raises(UserError, match=r"lacks \d weights of BertFor\w+, the first is .*fine-tuned for the task"):
            load_finetuned(auto, str(folder / "mlm"))
    with pytest.raises(UserError, match="no such folder"):
        load_finetuned(READER, str(tmp_path / "absent"))
