"""Links from vectors computed by hand, subwords to words, and a run of a tiny model."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, BertTokenizer

from ppa_fast import cli
from ppa_fast.errors import UserError
from ppa_fast.model.initialise import init_model
from ppa_fast.tasks import word_alignment
from ppa_fast.tasks.word_alignment import (
    align,
    default_layer,
    evaluate_alignment,
    mutual_argmax,
    read_alignment,
    softmax_intersection,
)


def on_circle(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], 1)


def links_of(matrix: Tensor) -> list[list[int]]:
    found: list[list[int]] = matrix.nonzero().tolist()
    return found


def test_mutual_argmax_equals_hand_computed_links() -> None:
    # a0 and b0 are each other's nearest, a2 and b1 too; a1's nearest is b0, b2's is a2: neither is mutual.
    a, b = on_circle(0, 20, 90), on_circle(5, 80, 100.5)
    assert links_of(mutual_argmax(a, b)) == [[0, 0], [2, 1]]
    # Cosines: lengths do not matter.
    assert links_of(mutual_argmax(a * torch.tensor([[0.1], [50.0], [3.0]]), b)) == [[0, 0], [2, 1]]
    assert links_of(mutual_argmax(a[:1], b[:1])) == [[0, 0]]


def test_softmax_intersection_equals_hand_computed_links() -> None:
    # Products log 8, log 1 | log 1, log 1: over the target 8/9 1/9 | 1/2 1/2, over the source 8/9 1/2 | 1/9 1/2.
    product = torch.tensor([[8.0, 1.0], [1.0, 1.0]]).log()
    a, b = product, torch.eye(2)
    assert links_of(softmax_intersection(a, b, 0.45)) == [[0, 0], [1, 1]]
    assert links_of(softmax_intersection(a, b, 0.1)) == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert links_of(softmax_intersection(a, b, 0.2)) == [[0, 0], [1, 1]]
    assert links_of(softmax_intersection(a, b, 0.6)) == [[0, 0]]
    # Inner products: lengths matter.
    assert links_of(softmax_intersection(10 * a, b, 0.1)) == [[0, 0], [1, 1]]


def test_the_default_layer_is_two_thirds_of_the_layers() -> None:
    assert [default_layer(layers) for layers in (12, 24, 6, 4, 2, 1)] == [8, 16, 4, 3, 1, 1]


class Vectors:
    """Replaces an embedder: the subwords of a word are its letters, and each letter of the alphabet has a vector."""

    def words(self, sentences: list[list[str]]) -> tuple[list[tuple[Tensor, Tensor]], list[int]]:
        embedded = []
        for sentence in sentences:
            letters = [
                (ord(letter) - ord("a"), i) for i, word in enumerate(sentence) for letter in word if letter != "-"
            ]
            ids, words = (torch.tensor([each[n] for each in letters], dtype=torch.long) for n in (0, 1))
            embedded.append((10 * torch.eye(26)[ids], words))
        return embedded, [number for number, sentence in enumerate(sentences) if "z" in sentence]


@pytest.mark.parametrize("threshold", [None, 0.001])
def test_words_are_linked_if_any_of_their_subwords_are(
    monkeypatch: pytest.MonkeyPatch, threshold: float | None
) -> None:
    monkeypatch.setattr(word_alignment, "CHUNK", 2)
    pairs = [
        (["ab", "c", "de"], ["d", "xa", "bc"]),  # a: 0-1, b: 0-2, c: 1-2, d: 2-0
        (["-"], ["a"]),  # a word without subwords
        (["z", "q"], ["q", "z"]),
        (["m"], ["m"]),
    ]
    embedder: Any = Vectors()
    links, truncated = align(embedder, pairs, threshold)
    assert truncated == 1  # a pair counts once
    wanted = {(0, 0, 1), (0, 0, 2), (0, 1, 2), (0, 2, 0), (2, 0, 1), (2, 1, 0), (3, 0, 0)}
    assert wanted <= links
    # e and x have no counterpart: all their cosines are 0, and the first of equal values may be mutual.
    assert {link for link in links - wanted if link[0]} == set()


WORDS = [f"w{i}" for i in range(30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and sentences with "translations" that reverse the words: position i is linked to n − 1 − i."""
    folder = tmp_path_factory.mktemp("aligner")
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertTokenizer(vocab={word: i for i, word in enumerate(vocab)}, do_lower_case=False).save_pretrained(folder / "tok")
    init_model(folder / "model", str(folder / "tok"), layers=3, hidden=64, heads=4, max_positions=16)
    model = AutoModelForMaskedLM.from_pretrained(folder / "model")
    model.bert.embeddings.position_embeddings.weight.data.zero_()  # layer 0 then depends only on the word
    model.save_pretrained(folder / "model")
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randperm(30, generator=generator)[: 3 + i % 6].tolist() for i in range(20)]
    for name, sides in (("a", rows), ("b", [row[::-1] for row in rows])):
        (folder / name).write_text("".join(" ".join(WORDS[i] for i in row) + "\n" for row in sides))
    (folder / "gold").write_text(
        "".join(" ".join(f"{i + 1}-{len(row) - i}" for i in range(len(row))) + "\n" for row in rows)
    )
    return folder


@pytest.mark.parametrize("method", ["mutual", "softmax"])
def test_a_tiny_model_links_equal_words(folder: Path, method: str) -> None:
    result = evaluate_alignment(
        folder / "gold",
        one_indexed=True,
        model=str(folder / "model"),
        pairs=f"{folder}/a,{folder}/b",
        layer=0,
        method=method,
        threshold=0.1,
        links_out=folder / "links",
    )
    assert (result["aer"], result["precision"], result["recall"]) == (0, 1, 1)
    assert (result["layer"], result["method"], result["truncated"]) == (0, method, 0)
    assert result["threshold"] == (0.1 if method == "softmax" else None)
    again = evaluate_alignment(folder / "gold", links=folder / "links", one_indexed=True)
    assert {name: again[name] for name in ("aer", "precision", "recall", "links")} == {
        name: result[name] for name in ("aer", "precision", "recall", "links")
    }


def test_the_command_scores_a_model(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    files = ["--gold", f"{folder}/gold", "--one-indexed", "--pairs", f"{folder}/a,{folder}/b"]
    out = ["--links-out", str(tmp_path / "links"), "--json", str(tmp_path / "scores.json")]
    assert cli.main(["evaluate", "align", "--model", str(folder / "model"), *files, *out]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["layer"] == 2  # of three sentences
    assert read_alignment(tmp_path / "links").sentences == 20
    assert "AER" in capsys.readouterr().out


def test_invalid_arguments_are_an_error(folder: Path, tmp_path: Path) -> None:
    request: dict[str, Any] = {"gold": folder / "gold", "one_indexed": True, "model": str(folder / "model")}
    pairs = f"{folder}/a,{folder}/b"
    with pytest.raises(UserError, match="method: found 'itermax', expected one of mutual, softmax"):
        evaluate_alignment(**request, pairs=pairs, method="itermax")
    with pytest.raises(UserError, match=r"threshold: found 2\.0, expected a probability"):
        evaluate_alignment(**request, pairs=pairs, threshold=2)
    with pytest.raises(UserError, match="layer: found 4"):
        evaluate_alignment(**request, pairs=pairs, layer=4)
    (tmp_path / "short").write_text("w1\n")
    with pytest.raises(UserError, match=r"short: found 1 sentences, expected 20 as in .*gold"):
        evaluate_alignment(**request, pairs=f"{tmp_path}/short,{tmp_path}/short")
