import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ppa_fast.errors import UserError
from ppa_fast.reporting import vectors
from ppa_fast.reporting.run import read_run
from ppa_fast.reporting.vectors import Confusion, Texts
from ppa_fast.tasks.embedder import Embedder
from ppa_fast.tasks.retrieval import retrieval_scores
from ppa_fast.training.export import export
from tests.reporting.conftest import SENTENCES, write_run


@pytest.fixture
def texts(trained):
    return vectors.read_texts(trained.pairs)


def unit(*rows):
    return F.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


def test_the_first_lines_are_read(trained, monkeypatch):
    monkeypatch.setattr(vectors, "LINES", 5)
    first, second = vectors.read_texts(trained.pairs)
    assert first == Texts("en", "ar", trained.texts["en"][:5], trained.texts["ar"][:5])
    assert (second.a, second.b, len(second)) == ("zh_Hant", "en", 5)


def test_missing_evaluation_pairs_are_an_error_with_a_remedy():
    with pytest.raises(UserError, match="pass --pairs to the report"):
        vectors.read_texts([])


def test_vectors_before_come_from_the_base_model(tiny, trained, texts):
    found = vectors.embed_before(read_run(trained.folder), texts)
    embedder = Embedder(str(tiny.model))
    embedder.max_tokens = 30  # the value of the store
    for (a, b), s in zip(found, texts, strict=True):
        for side, own in ((a, s.texts_a), (b, s.texts_b)):
            expected = F.normalize(embedder.sentences(own, "cls", progress=""), dim=1)
            torch.testing.assert_close(side, expected, atol=1e-5, rtol=0)
    assert torch.equal(found[0][0], found[1][1])  # both pairs share the English side, so each sentence is encoded once


@pytest.mark.parametrize(("best", "step"), [("step-00000002", 2), (None, 4)])
def test_vectors_after_come_from_the_best_or_the_latest_checkpoint(trained, texts, tmp_path, best, step):
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    pointer = folder / "checkpoints" / "best"
    pointer.write_text(best) if best else pointer.unlink(missing_ok=True)
    run = read_run(folder)
    assert vectors.selected_step(run) == step
    found = vectors.embed_after(run, texts, step)
    export(folder, tmp_path / "export", f"step-{step:08d}")
    expected = vectors.embed(str(tmp_path / "export"), run, texts, "")
    assert all(torch.equal(x, y) for pair in zip(found, expected, strict=True) for x, y in zip(*pair, strict=True))
    assert not torch.allclose(found[0][0], vectors.embed_before(run, texts)[0][0], atol=1e-4)


def test_without_a_checkpoint_there_are_no_vectors_after(tmp_path):
    with pytest.raises(UserError, match="no checkpoint yet"):
        vectors.selected_step(read_run(write_run(tmp_path / "run")))


@given(st.integers(1, 500), st.integers(1, 200))
def test_rows_are_spread_evenly(n, k):
    rows = vectors.spread_out(n, k)
    assert len(set(rows)) == len(rows) == min(n, k)
    assert rows == sorted(rows)
    gaps = [b - a for a, b in zip([-1, *rows], [*rows, n], strict=True)]
    assert max(gaps) <= math.ceil(n / min(n, k)) + 1


def test_the_map_keeps_the_distances_of_vectors_in_a_plane():
    generator = torch.Generator().manual_seed(0)
    plane = torch.linalg.qr(torch.randn(16, 2, generator=generator))[0].T
    sides = [torch.randn(30, 2, generator=generator) * torch.tensor([3.0, 1.0]) for _ in range(2)]
    found = vectors.project([(sides[0] @ plane + 5, sides[1] @ plane + 5)])
    assert found.explained == pytest.approx(1)
    (points,) = found.points
    flat, expected = torch.cat(points), torch.cat(sides)
    distances = [torch.cdist(x.double(), x.double()) for x in (flat, expected)]
    torch.testing.assert_close(*distances, atol=1e-4, rtol=0)
    assert flat[:, 0].var() > flat[:, 1].var()


def test_the_map_shows_the_same_rows_of_each_pair(monkeypatch):
    monkeypatch.setattr(vectors, "MAPPED", 8)
    pair = (torch.randn(50, 6), torch.randn(50, 6))
    found = vectors.project([pair, pair])
    assert [len(side) for points in found.points for side in points] == [4, 4, 4, 4]
    assert torch.equal(found.points[0][0], found.points[1][0])


def test_the_matrix_contains_the_cosines_of_the_selected_pairs(texts):
    chosen = vectors.compared(texts)
    assert len(chosen) == vectors.COMPARED
    assert {number for number, _ in chosen} == {0, 1}
    assert len({row for _, row in chosen}) == len(chosen)
    sides = [tuple(F.normalize(torch.randn(SENTENCES, 8), dim=1) for _ in range(2)) for _ in texts]
    found = vectors.similarities(sides, chosen)
    (n, row), (m, column) = chosen[3], chosen[8]
    assert found[3][8] == pytest.approx(float(sides[n][0][row] @ sides[m][1][column]), abs=1e-6)


def test_confusions_are_the_wrong_neighbours_sorted_by_cosine_gap():
    """In a, sentence 0 is correct, 1 finds 2 with a large gap, and 2 finds 1 with a small one. In b, 1 and 2 find each
    other's translation."""
    texts = [Texts("en", "de", ["one", "two", "three"], ["eins", "zwei", "drei"])]
    a, b = unit([1, 0, 0], [0, 1, 0], [0, 1, 1]), unit([1, 0, 0], [0, 0, 1], [0, 1, 0.1])
    found, wrong, total = vectors.confusions(texts, [(a, b)])
    assert total == 6
    a_to_b, b_to_a = retrieval_scores(a, b)
    assert wrong == round(3 * (1 - a_to_b) + 3 * (1 - b_to_a))
    first = found[0]
    assert (first.source, first.target, first.text, first.found, first.expected) == ("en", "de", "two", "drei", "zwei")
    assert first.cosine_found == pytest.approx(float(a[1] @ b[2]))
    assert first.cosine_expected == pytest.approx(float(a[1] @ b[1]), abs=1e-6)
    gaps = [c.cosine_found - c.cosine_expected for c in found]
    assert gaps == sorted(gaps, reverse=True)


def test_another_line_with_the_text_of_the_translation_is_correct():
    texts = [Texts("en", "de", ["one", "one"], ["eins", "eins"])]
    a, b = unit([1, 0], [0, 1]), unit([0, 1], [1, 0])
    assert vectors.confusions(texts, [(a, b)]) == ([], 0, 4)


def test_the_list_limits_the_confusions_per_language_pair():
    lines = [str(n) for n in range(20)]
    texts = [Texts("en", "de", lines, lines), Texts("en", "fr", lines, lines)]
    bad, good = torch.eye(20), F.normalize(torch.eye(20) + 0.01 * torch.rand(20, 20), dim=1)
    found, wrong, _ = vectors.confusions(texts, [(bad, bad.roll(1, 0)), (good, good)])
    assert wrong == 40
    assert [(c.source, c.target) for c in found] == [("en", "de")] * 2 + [("de", "en")] * 2
    assert all(isinstance(c, Confusion) and c.found != c.expected for c in found)
