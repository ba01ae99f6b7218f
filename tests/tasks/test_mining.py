"""Mining: thresholds and scores computed by hand, one-to-one selection against its definition, files, and a run of a
tiny model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForMaskedLM, BertTokenizer

from ppa_fast import cli
from ppa_fast.errors import UserError
from ppa_fast.model.initialise import init_model
from ppa_fast.tasks import evaluate, neighbours
from ppa_fast.tasks.mining import (
    Corpus,
    Side,
    best_threshold,
    evaluate_mining,
    mine,
    one_to_one,
    read_corpus,
    read_gold,
    read_side,
    score_pairs,
)


def test_scores_equal_hand_computed_values() -> None:
    gold = {("a", "x"), ("b", "y"), ("c", "z"), ("d", "w")}
    found = score_pairs({("a", "x"), ("b", "y"), ("c", "x")}, gold)
    assert found == {"precision": pytest.approx(2 / 3), "recall": 0.5, "f1": pytest.approx(4 / 7)}
    assert score_pairs(set(), gold) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert score_pairs(gold, gold) == {"precision": 1.0, "recall": 1.0, "f1": 1.0}


def test_the_threshold_equals_the_hand_computed_value() -> None:
    scores = np.array([2.0, 1.8, 1.6, 1.2, 1.0])
    # Of 3 gold pairs: F1 is 1/2, 2/5, 4/6, 6/7, 6/8.
    assert best_threshold(scores, np.array([True, False, True, True, False]), 3) == pytest.approx(1.1)
    # The last one is included, and nothing follows.
    assert best_threshold(scores, np.array([False, False, False, False, True]), 1) == 1.0
    # Equal scores are included together or not at all.
    equal = np.array([2.0, 1.5, 1.5, 1.0])
    assert best_threshold(equal, np.array([True, True, False, False]), 2) == pytest.approx(1.25)
    assert best_threshold(equal, np.array([True, False, False, False]), 1) == pytest.approx(1.75)


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=30), st.integers(0, 5))
def test_the_threshold_is_optimal(candidates: list[tuple[int, bool]], missed: int) -> None:
    candidates.sort(key=lambda candidate: -candidate[0])
    scores, correct = np.array([s for s, _ in candidates], float), np.array([c for _, c in candidates])
    gold = int(correct.sum()) + missed + 1

    def f1(threshold: float) -> float:
        taken = scores >= threshold
        return float(2 * (correct & taken).sum() / (taken.sum() + gold))

    assert f1(best_threshold(scores, correct, gold)) == max(f1(threshold) for threshold in scores)


def test_one_to_one_equals_the_hand_computed_value() -> None:
    assert one_to_one([0, 0, 1, 2, 2], [5, 6, 5, 6, 6]) == [0, 3]
    assert one_to_one([], []) == []


def test_mining_equals_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 16)
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(60, 8, generator=generator)
    b = torch.cat([a[:40] + 0.5 * torch.randn(40, 8, generator=generator), torch.randn(30, 8, generator=generator)])
    a, b = F.normalize(a, dim=1), F.normalize(b[torch.randperm(70, generator=generator)], dim=1)
    cosine = (a @ b.T).double()
    around = [table.topk(4, 1).values.mean(1) for table in (cosine, cosine.T)]
    margins = cosine / ((around[0][:, None] + around[1][None]) / 2)
    candidates = {}
    for i in range(60):
        j = max(cosine[i].topk(4).indices.tolist(), key=lambda j: margins[i, j].item())
        candidates[i, j] = margins[i, j].item()
    for j in range(70):
        i = max(cosine[:, j].topk(4).indices.tolist(), key=lambda i: margins[i, j].item())
        candidates[i, j] = margins[i, j].item()
    kept: dict[tuple[int, int], float] = {}
    for (i, j), margin in sorted(candidates.items(), key=lambda item: -item[1]):
        if not any(i == k or j == n for k, n in kept):
            kept[i, j] = margin

    rows, columns, scores = mine(a, b)
    assert list(zip(rows, columns, strict=True)) == list(kept)
    assert scores.tolist() == pytest.approx(list(kept.values()), rel=1e-5)
    assert sorted(scores, reverse=True) == scores.tolist()
    assert len(set(rows)) == len(set(columns)) == len(rows)

    # The row numbers do not matter.
    order_a, order_b = torch.randperm(60, generator=generator), torch.randperm(70, generator=generator)
    rows, columns, again = mine(a[order_a], b[order_b])
    assert {(int(order_a[i]), int(order_b[j])) for i, j in zip(rows, columns, strict=True)} == set(kept)
    assert again.tolist() == pytest.approx(scores.tolist(), rel=1e-5)


def write(folder: Path, **files: str) -> dict[str, str]:
    for name, text in files.items():
        (folder / name).write_text(text)
    return {name: str(folder / name) for name in files}


def test_files_are_read(tmp_path: Path) -> None:
    files = write(tmp_path, a="de-1\tEin Satz .\nde-2\tJa\n", b="en-1\tYes\n", gold="de-2\ten-1\nde-2\ten-1\n")
    corpus = read_corpus(",".join(files.values()), "--dev", gold=True)
    assert corpus == Corpus(Side(["de-1", "de-2"], ["Ein Satz .", "Ja"]), Side(["en-1"], ["Yes"]), {("de-2", "en-1")})
    assert read_corpus(f"{files['a']},{files['b']}", "--test", gold=False).gold is None
    with pytest.raises(UserError, match=r"--dev .*: expected SRC,TGT,GOLD$"):
        read_corpus(f"{files['a']},{files['b']}", "--dev", gold=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tx\nb x\n", "bad:2: found 'b x', expected id<TAB>text"),
        ("a\tx\nb\t\n", "bad:2: found"),
        ("a\tx\n\n", "bad:2: found ''"),
        ("a\tx\ty\n", "bad:1: found"),
        ("a\tx\nb\ty\na\tz\n", "bad:3: found id 'a' of line 1 again, expected unique ids"),
        ("", "bad: found no sentences"),
    ],
)
def test_malformed_sentences_are_an_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_side(write(tmp_path, bad=text)["bad"])


def test_malformed_pairs_are_an_error(tmp_path: Path) -> None:
    a, b = Side(["a"], ["x"]), Side(["b"], ["y"])
    for text, message in (
        ("a\tb\nb\ta\n", "bad:2: found id 'b', expected an id of the corpus"),
        ("a\tc\n", "bad:1: found id 'c'"),
        ("a b\n", "bad:1: found 'a b', expected id<TAB>id"),
        ("", "bad: found no pairs"),
    ):
        with pytest.raises(UserError, match=message):
            read_gold(write(tmp_path, bad=text)["bad"], a, b)


def test_a_file_of_pairs_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = "b\ty\t1.25\nb\ty\t1.25\nc\tx\t1.1\na\ty\t1.0\n"
    files = write(tmp_path, gold="a\tx\nb\ty\n", predictions=found)
    result = evaluate("mine", **files)
    assert result == {"precision": pytest.approx(1 / 3), "recall": 0.5, "f1": 0.4, "mined": 3, "gold": 2}
    assert cli.main(["evaluate", "mine", "--gold", files["gold"], "--predictions", files["predictions"]]) == 0
    assert "P 33.33  R 50.00  F1 40.00" in capsys.readouterr().out


@pytest.mark.parametrize("found", ["", "x\ta\n", "1.2\ta\tx\n"])
def test_predictions_without_common_ids_give_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, found: str
) -> None:
    result = evaluate("mine", **write(tmp_path, gold="a\tx\nb\ty\n", predictions=found))
    assert result == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "mined": min(1, len(found)), "gold": 2}
    assert "predictions: no first id occurs as a first id in" in caplog.text


WORDS = [f"w{i}" for i in range(200)]


def make_corpus(folder: Path, name: str, seed: int) -> str:
    """Two sides of word bags: 30 sentences whose words are reversed on the other side, and 25 sentences on one side
    only. One of the 30 occurs twice."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(200, (8,), generator=generator).tolist() for _ in range(80)]
    sides = {"a": rows[:55], "b": [row[::-1] for row in rows[:30]] + rows[55:]}
    lines = {
        code: [f"{code}-{i}\t{' '.join(WORDS[w] for w in row)}" for i, row in enumerate(side)]
        for code, side in sides.items()
    }
    lines["a"].append(lines["a"][7].replace("a-7", "a-again"))
    lines["a"].reverse()
    lines["gold"] = [f"a-{i}\tb-{i}" for i in range(30)]
    for end, content in lines.items():
        (folder / f"{name}.{end}").write_text("\n".join(content) + "\n")
    return ",".join(f"{folder}/{name}.{end}" for end in ("a", "b", "gold"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("mining")
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertTokenizer(vocab={word: i for i, word in enumerate(vocab)}, do_lower_case=False).save_pretrained(folder / "tok")
    init_model(folder / "model", str(folder / "tok"), layers=2, hidden=64, heads=4, max_positions=20)
    encoder = AutoModelForMaskedLM.from_pretrained(folder / "model")
    encoder.bert.embeddings.position_embeddings.weight.data.zero_()  # without positions, word order does not matter
    encoder.save_pretrained(folder / "model")
    return str(folder / "model")


def test_a_tiny_model_mines_word_bags(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 20)
    specs = {name: make_corpus(tmp_path, name, seed) for name, seed in (("dev", 0), ("test", 1))}
    result = evaluate_mining(model, **specs, mined_out=tmp_path / "mined")
    # All except the sentence that occurs twice.
    for name in specs:
        assert result[name]["recall"] == pytest.approx(29 / 30)
        assert result[name]["sentences"] == [56, 55]
        assert result[name]["repeated"] == 2
    assert result["dev"]["precision"] == 1
    assert result["precision"] == result["test"]["precision"] > 0.9
    assert (result["recall"], result["f1"]) == (result["test"]["recall"], result["test"]["f1"])
    assert (result["model"], result["pooling"], result["layer"]) == (model, "mean", None)
    assert json.loads(json.dumps(result)) == result

    lines = [line.split("\t") for line in (tmp_path / "mined").read_text().splitlines()]
    assert len(lines) == result["test"]["mined"]
    margins = [float(margin) for *_, margin in lines]
    assert margins == sorted(margins, reverse=True)
    assert min(margins) >= result["threshold"] - 1e-6
    scores = evaluate_mining(gold=specs["test"].split(",")[2], predictions=tmp_path / "mined")
    assert scores["f1"] == result["f1"]


def test_a_test_set_without_gold_is_mined_but_not_scored(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dev, test = make_corpus(tmp_path, "dev", 0), make_corpus(tmp_path, "test", 1)
    command = ["evaluate", "mine", "--model", model, "--dev", dev, "--test", test.rpartition(",")[0]]
    assert cli.main([*command, "--mined-out", f"{tmp_path}/mined", "--json", f"{tmp_path}/scores.json"]) == 0
    result = json.loads((tmp_path / "scores.json").read_text())
    assert "f1" not in result
    assert "f1" not in result["test"]
    assert result["dev"]["f1"] > 0.9
    assert len((tmp_path / "mined").read_text().splitlines()) == result["test"]["mined"]
    out = capsys.readouterr().out
    assert f"test  {result['test']['mined']} pairs mined" in out
    assert "4 sentences have the same text as another on their side" in out


def test_contradictory_arguments_are_an_error(tmp_path: Path) -> None:
    neither = "model and predictions: found neither, expected one of them"
    requests: list[tuple[dict[str, Any], str]] = [
        ({}, neither),
        ({"dev": "a,b,c"}, neither),
        ({"gold": "g"}, neither),
        ({"gold": "g", "dev": "a,b,c"}, neither),
        ({"model": "m"}, "model: found m without dev, expected both"),
        ({"predictions": "p"}, "predictions: found p without gold, expected both"),
        ({"gold": "g", "model": "m", "dev": "a,b,c"}, "gold: found g without predictions, expected both"),
        (
            {"gold": "g", "predictions": "p", "model": "m", "dev": "a,b,c"},
            r"model and predictions: found both \(m and p\), expected one of them",
        ),
    ]
    for request, message in requests:
        with pytest.raises(UserError, match=message):
            evaluate_mining(**request)
    with pytest.raises(UserError, match="--mined-out"):
        evaluate_mining("m", dev="a,b,c", mined_out=tmp_path / "no" / "file")
