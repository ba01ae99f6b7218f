"""Retrieval scores computed by hand, and the evaluation of a model folder against a plain computation."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, BertTokenizer

from ppa_fast.errors import UserError
from ppa_fast.model.initialise import init_model
from ppa_fast.tasks import evaluate, neighbours
from ppa_fast.tasks.retrieval import (
    alignment_uniformity,
    evaluate_retrieval,
    format_table,
    margin_retrieval_scores,
    retrieval_scores,
    summarise,
)

WORDS = [f"w{i}" for i in range(40)]


def on_circle(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_scores_equal_hand_computed_values() -> None:
    # The nearest of a0 is b0, of a1 b1, of a2 b1; of b0 a0, of b1 a2 (10° and not 15°), of b2 a2.
    a = on_circle(0, 45, 70)
    b = on_circle(5, 60, 120)
    assert retrieval_scores(a, b) == (pytest.approx(2 / 3), pytest.approx(2 / 3))


def test_scores_differ_by_direction() -> None:
    # The nearest of every a is b0; of b0 it is a2, of b1 and b2 a0.
    a, b = on_circle(60, 70, 90), on_circle(95, 0, 0)
    assert retrieval_scores(a, b) == (pytest.approx(1 / 3), 0.0)


def test_scores_do_not_depend_on_vector_lengths() -> None:
    a, b = on_circle(0, 90), on_circle(10, 80)
    scale = torch.tensor([[100.0], [0.01]])
    assert retrieval_scores(a * scale, b / scale) == (1.0, 1.0)


def test_margin_scores_are_robust_to_hubs() -> None:
    # The rows of b at 45° and 50° are close to most rows of a, and so are those at 115° and 120°.
    a, b = on_circle(40, 10, 95, 0, 140, 105), on_circle(50, 45, 145, 115, 160, 120)
    cosine = (a @ b.T).tolist()

    def around(similarities: list[float]) -> float:
        return sum(sorted(similarities)[-4:]) / 8

    found = []
    for row in cosine:
        nearest = sorted(range(6), key=lambda j: -row[j])[:4]
        margins = {j: row[j] / (around(row) + around([other[j] for other in cosine])) for j in nearest}
        found.append(max(margins, key=lambda j: margins[j]))
    expected = sum(i == j for i, j in enumerate(found)) / 6
    assert margin_retrieval_scores(a, b) == (expected, 0.5)
    assert (retrieval_scores(a, b)[0], expected) == (pytest.approx(1 / 6), 0.5)


def test_ties_are_resolved_to_the_lowest_index() -> None:
    same = torch.ones(4, 2)
    assert retrieval_scores(same, same) == (0.25, 0.25)


def test_blocks_equal_the_complete_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(50, 8, generator=generator)
    b = a + torch.randn(50, 8, generator=generator)
    a[[10, 37]] = a[3].clone()  # equal rows in different blocks
    whole, by_margin, spread = retrieval_scores(a, b), margin_retrieval_scores(a, b), alignment_uniformity(a, b)
    assert 0.1 < whole[0] < 0.9
    monkeypatch.setattr(neighbours, "BLOCK", 7)
    assert retrieval_scores(a, b) == whole
    assert margin_retrieval_scores(a, b) == by_margin
    assert alignment_uniformity(a, b) == pytest.approx(spread, abs=1e-6)


def test_alignment_and_uniformity_equal_hand_computed_values() -> None:
    a, b = 3 * on_circle(0, 90, 180), on_circle(90, 180, 180)
    alignment, uniformity = alignment_uniformity(a, b)
    # Squared distances: at right angles 2, opposite 4, equal 0.
    assert alignment == pytest.approx((2 + 2 + 0) / 3, abs=1e-6)
    of_a = math.log((math.exp(-4) + math.exp(-8) + math.exp(-4)) / 3)
    of_b = math.log((math.exp(-4) + math.exp(-4) + 1) / 3)
    assert uniformity == pytest.approx((of_a + of_b) / 2, abs=1e-6)
    with pytest.raises(UserError, match="at least 2"):
        alignment_uniformity(a[:1], b[:1])


def test_the_summary_equals_hand_computed_values() -> None:
    pairs = {
        "en-de": {"a_to_b": 0.5, "b_to_a": 0.1},
        "zh_Hant-en": {"a_to_b": 0.2, "b_to_a": 0.9},
        "de-fr": {"a_to_b": 0.3, "b_to_a": 0.4},
    }
    result = summarise(pairs)
    assert result["mean"] == pytest.approx((0.5 + 0.1 + 0.2 + 0.9 + 0.3 + 0.4) / 6)
    assert result["english_to_foreign"] == pytest.approx((0.5 + 0.9) / 2)
    assert summarise({"de-fr": pairs["de-fr"]})["english_to_foreign"] is None
    assert "margin_mean" not in result
    margins = {name: {f"margin_{way}": share / 2 for way, share in scores.items()} for name, scores in pairs.items()}
    both = summarise({name: {**scores, **margins[name]} for name, scores in pairs.items()})
    assert both["margin_mean"] == pytest.approx(result["mean"] / 2)
    assert both["margin_english_to_foreign"] == pytest.approx(result["english_to_foreign"] / 2)
    assert {key: both[key] for key in ("mean", "english_to_foreign")} == {
        key: result[key] for key in ("mean", "english_to_foreign")
    }


def cells(line: str) -> list[str]:
    return line.split()


def scored(a_to_b: float, b_to_a: float) -> dict[str, float]:
    return {"a_to_b": a_to_b, "b_to_a": b_to_a, "n": 1000}


def test_the_table_has_means_with_english() -> None:
    after = summarise({"en-de": scored(0.5, 0.25), "fr-en": scored(0.125, 1.0)})
    before = summarise({"en-de": scored(0.0, 0.1), "fr-en": scored(0.2, 0.3)})
    caption, heads, *lines = format_table(after, before).splitlines()
    assert "en→xx is XTREME's Tatoeba accuracy" in caption
    assert cells(heads) == ["pair", "en→xx", "before", "en→xx", "after", "xx→en", "before", "xx→en", "after", "n"]
    assert [cells(line) for line in lines] == [
        ["en-de", "0.0", "50.0", "10.0", "25.0", "1,000"],
        ["fr-en", "30.0", "100.0", "20.0", "12.5", "1,000"],
        ["mean", "15.0", "75.0", "15.0", "18.8", "2,000"],
    ]
    assert len({len(line) for line in [heads, *lines]}) == 1


def test_the_table_works_without_english() -> None:
    result = summarise({"en-de": scored(0.5, 0.25), "fr-de": scored(0.1, 0.2)})
    caption, heads, *lines = format_table(result).splitlines()
    assert "XTREME" not in caption
    assert cells(heads) == ["pair", "a→b", "b→a", "n"]
    assert cells(lines[1]) == ["fr-de", "10.0", "20.0", "1,000"]


def test_the_table_has_margin_scores() -> None:
    scores = {**scored(0.5, 0.25), "margin_a_to_b": 0.75, "margin_b_to_a": 1.0}
    result = summarise({"fr-en": scores})
    _, heads, line, _ = format_table(result).splitlines()
    assert cells(heads) == ["pair", "en→xx", "xx→en", "en→xx", "margin", "xx→en", "margin", "n"]
    assert cells(line) == ["fr-en", "25.0", "50.0", "100.0", "75.0", "1,000"]
    assert "margin" not in format_table(result, result)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models")
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertTokenizer(vocab={word: i for i, word in enumerate(vocab)}, do_lower_case=False).save_pretrained(folder / "tok")
    init_model(folder / "model", str(folder / "tok"), layers=2, hidden=32, heads=4, max_positions=20)
    return str(folder / "model")


@pytest.fixture
def pairs(tmp_path: Path) -> list[str]:
    """Two pairs over the same words. A "translation" reverses the words and changes some."""
    generator = torch.Generator().manual_seed(1)
    specs = []
    for other in ("de", "fr"):
        rows = torch.randint(40, (30, 6), generator=generator)
        changed = torch.where(torch.rand(30, 6, generator=generator) < 0.4, (rows + 1) % 40, rows).flip(1)
        for code, side in (("en", rows), (other, changed)):
            text = "\n".join(" ".join(WORDS[i] for i in row) for row in side.tolist()) + "\n"
            (tmp_path / f"{other}.{code}").write_text(text)
        specs.append(f"en-{other}:{tmp_path}/{other}.en,{tmp_path}/{other}.{other}")
    return specs


def plain_scores(model: str, spec: str) -> tuple[float, float]:
    """Computed with transformers only, one sentence at a time, mean over all tokens of the last layer."""
    encoder = AutoModel.from_pretrained(model)
    vectors = []
    for path in spec.split(":")[1].split(","):
        ids = [[2, *(5 + WORDS.index(w) for w in line.split()), 3] for line in Path(path).read_text().splitlines()]
        with torch.no_grad():
            rows = [encoder(input_ids=torch.tensor([row])).last_hidden_state[0].mean(0) for row in ids]
        vectors.append(torch.nn.functional.normalize(torch.stack(rows), dim=1))
    similarity, own = vectors[0] @ vectors[1].T, torch.arange(len(vectors[0]))
    return (similarity.argmax(1) == own).float().mean().item(), (similarity.argmax(0) == own).float().mean().item()


def test_the_evaluation_of_a_folder_equals_plain_scores(model: str, pairs: list[str]) -> None:
    result = evaluate("retrieval", model=model, pairs=pairs)
    assert list(result["pairs"]) == ["en-de", "en-fr"]
    for name, spec in zip(result["pairs"], pairs, strict=True):
        scores = result["pairs"][name]
        assert (scores["a_to_b"], scores["b_to_a"]) == pytest.approx(plain_scores(model, spec), abs=1e-6)
        assert 0.2 < scores["a_to_b"] < 1
        assert 0.2 < scores["margin_a_to_b"] <= 1
        assert scores["n"] == 30
    assert result["margin_mean"] != result["mean"]
    assert (result["model"], result["pooling"], result["layer"]) == (model, "mean", None)
    assert json.loads(json.dumps(result)) == result


def test_pooling_and_layer_are_used(model: str, pairs: list[str]) -> None:
    mean, cls, embeddings = (
        evaluate_retrieval(model, pairs, **options)["pairs"]
        for options in ({"pooling": "mean"}, {"pooling": "cls"}, {"pooling": "cls", "layer": 0})
    )
    assert cls != mean
    # [CLS] before the first layer is the same vector for every sentence, so the lowest index is always found.
    assert embeddings["en-de"].pop("n") == 30
    assert embeddings["en-de"] == dict.fromkeys(
        ["a_to_b", "b_to_a", "margin_a_to_b", "margin_b_to_a"], pytest.approx(1 / 30)
    )


def test_invalid_arguments_are_an_error(model: str, pairs: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="task: found 'bitext', expected one of retrieval"):
        evaluate("bitext", model=model, pairs=pairs)
    with pytest.raises(UserError, match="found en-de twice"):
        evaluate_retrieval(model, [pairs[0], pairs[1], pairs[0]])
    with pytest.raises(UserError, match="at least one"):
        evaluate_retrieval(model, [])
    with pytest.raises(UserError, match="no such folder"):
        evaluate_retrieval(str(tmp_path / "absent"), pairs)
    with pytest.raises(UserError, match="layer: found 3"):
        evaluate_retrieval(model, pairs, layer=3)
    (tmp_path / "de.de").write_text("w1\n")
    with pytest.raises(UserError, match="30"):
        evaluate_retrieval(model, pairs)


def test_repeated_sentences_are_a_warning(model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "t.tsv").write_text("w1\tw2\nw1\tw3\nw1\u200b\tw4\nw5\tw6\n")
    evaluate("retrieval", model=model, pairs=[f"en-de:{tmp_path}/t.tsv"])
    assert caplog.messages == [
        "en-de: 2 of 4 en sentences repeat another: only the first of equal sentences can be retrieved"
    ]


def test_sentences_that_the_tokenizer_cannot_read_are_a_warning_and_most_are_an_error(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("w1\tw2\nw3 w4\tw5 ቤት\nw6\tቤቱ አረንጓዴ w7\n")
    assert evaluate("retrieval", model=model, pairs=[f"en-am:{path}"])["pairs"]["en-am"]["n"] == 3
    (message,) = caplog.messages
    start = (
        f"{model}: the tokenizer does not cover 1 of 3 am texts, such as 'ቤቱ አረንጓዴ w7': their tokens are mostly unknown"
    )
    assert message.startswith(start)
    path.write_text("w1\tw2\nw3 w4\tቤት\nw6\tቤቱ አረንጓዴ w7\n")
    with pytest.raises(UserError, match=r"does not cover 2 of 3 am texts, .*; expected a model for this language"):
        evaluate("retrieval", model=model, pairs=[f"en-am:{path}"])
