import json
import re
import shutil
from contextlib import ExitStack
from html.parser import HTMLParser

import pytest

from ppa_fast import cli
from ppa_fast.errors import UserError
from ppa_fast.files import folder_lock
from ppa_fast.reporting import page as page_module
from ppa_fast.reporting import vectors
from ppa_fast.reporting.page import render, report
from ppa_fast.reporting.run import read_run
from tests.reporting.conftest import EVIL, evaluation, write_run


class Page(HTMLParser):
    """The elements of a page, each with its attributes and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements, self._open = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))
        if tag not in ("meta", "link"):
            self._open.append(self.elements[-1])

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for _, _, texts in self._open:
            texts.append(data)

    def texts(self, tag, **attributes):
        return [
            " ".join(" ".join(texts).split())
            for name, found, texts in self.elements
            if name == tag and attributes.items() <= found.items()
        ]


@pytest.fixture(scope="module")
def html(trained):
    return render([trained.folder])


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_a_sentence_states_the_settings_and_the_data(page, tiny):
    (sentence,) = [text for text in page.texts("p") if text.startswith("The BERT encoder")]
    for part in (str(tiny.model), "2 layers × 32", "300 sentence pairs of 2 language pairs (de, en, fr)"):
        assert part in sentence
    assert sentence.endswith("(TLM) and momentum contrast (MoCo); 4 steps of 16 pairs on CPU.")


def test_every_section_has_its_figures(page, trained):
    titles = page.texts("figcaption")
    for part in ("Total loss", "TLM loss", "MoCo loss", "MoCo top-1", "pairs/s", "memory", "Learning rate", "Gradient"):
        assert [title for title in titles if part in title], part
    assert not [title for title in titles if "Skipped" in title]  # no step was skipped
    assert [title.split(",")[0] for title in titles[-4:]] == [
        "Retrieval over steps",
        f"Retrieval before (grey) and at step {read_run(trained.folder).before_after()[1]['step']}",
        "Before",
        "After",
    ]
    assert len([e for e in page.elements if e[0] == "svg"]) == len(titles)
    assert "missing" not in {found.get("class") for _, found, _ in page.elements}


def test_the_numbers_equal_those_of_the_log(page, trained):
    lines = [json.loads(line) for line in (trained.folder / "evaluations.jsonl").read_text().splitlines()]
    step = read_run(trained.folder).before_after()[1]["step"]
    before, after = (line["pairs"]["zh_Hant-en"] for line in lines if line["step"] in (0, step))
    shares = [record[way] for way in ("a_to_b", "b_to_a") for record in (before, after)]
    assert " ".join(["zh_Hant-en", *(f"{100 * share:.1f}" for share in shares), "40"]) in page.texts("tr")


def test_sentences_have_a_language_and_a_text_direction(page, trained):
    for code in trained.texts:
        tag = code.replace("_", "-")
        spans = page.texts("span", lang=tag, dir="auto")
        assert spans
        assert set(spans) <= set(trained.texts[code])


def test_texts_are_escaped(html, page, trained):
    assert EVIL in page.texts("span", lang="en")
    assert not page.texts("script")


def test_the_page_needs_no_other_file(html, page):
    for tag, attributes, _ in page.elements:
        for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:,")), (tag, attributes)
    assert not re.search(r"@import|@font-face|url\((?!#)", html)


def test_ids_are_unique_and_tables_have_headers(page):
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    tables, heads = (len([e for e in page.elements if e[0] == tag]) for tag in ("table", "thead"))
    assert tables == heads >= 4
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes, _ in page.elements if tag == "th")


def test_the_same_runs_give_the_same_page(html, trained):
    assert render([trained.folder]) == html


def test_several_runs_are_compared_with_their_different_settings(tmp_path):
    runs = [
        write_run(
            tmp_path / name,
            [{"step": n, "loss": loss, "skipped": skipped} for n in (10, 20)],
            [evaluation(0, de=0.1, fr=0.2), evaluation(20, de=share, fr=0.2)],
            temperature=temperature,
        )
        for name, loss, share, skipped, temperature in (("a", 2.0, 0.4, 0, 0.05), ("b", 3.0, 0.6, 7, 0.2))
    ]
    page = Page(render(runs))
    rows = [text.split() for text in page.texts("tr")]
    for row in (["total", "loss", "2.000", "3.000"], ["temperature", "0.05", "0.2"], ["skipped", "steps", "0", "7"]):
        assert row in rows
    assert ["retrieval,", "last", "30.0", "%", "40.0", "%"] in rows
    assert [title for title in page.texts("figcaption") if title.startswith("Skipped")]
    for run in runs:
        assert str(run) in page.texts("h3")[0] + page.texts("h3")[1]


def test_missing_parts_are_named_with_their_reason(tmp_path, trained):
    begun = write_run(tmp_path / "begun", eval_pairs=trained.pairs)
    gone = write_run(tmp_path / "gone", [{"step": 3, "loss": 1.0}], eval_pairs=[f"en-de:{tmp_path}/a,{tmp_path}/b"])
    reasons = Page(render([begun, gone])).texts("p", **{"class": "missing"})
    for part in (
        f"{begun}: no metrics logged yet",
        "The run logged no evaluation",
        "/nowhere/base: no such folder",
        "the run has saved no checkpoint yet",
        f"{tmp_path}/a: no such file",
    ):
        assert [reason for reason in reasons if part in reason], part
    assert not Page(render([gone])).texts("table", **{"class": "matrix"})


def test_an_unfinished_run_is_marked(tmp_path):
    folder = write_run(tmp_path / "run", [{"step": 30, "loss": 1.0}])
    assert "The logs end at step 30: the run is in progress or was stopped." in render([folder])


def test_file_names_are_escaped(tmp_path):
    folder = write_run(tmp_path / "<img src=x onerror=alert(1)>", [{"step": 1, "loss": 1.0}], note="<b>")
    page = Page(render([folder]))
    assert not page.texts("img")
    assert str(folder) in page.texts("h1")


def test_more_languages_than_colours_are_shown(tmp_path):
    codes = ["af", "am", "ar", "az", "be", "bg", "bn", "ca", "cs", "cy", "da", "de", "el", "es"]
    records = [evaluation(step, **dict.fromkeys(codes, 0.1 + step / 100)) for step in (0, 10)]
    page = Page(render([write_run(tmp_path / "run", [{"step": 10, "loss": 1.0}], records)]))
    key = page.texts("li")[: len(codes)]
    assert key[0] == "● af"
    assert key[10] == "■ da"


def test_retrieval_is_measured_on_the_vectors_if_it_was_not_logged(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    (folder / "evaluations.jsonl").write_text("")
    page = Page(render([folder], [trained.pairs[1]]))
    titles = page.texts("figcaption")
    assert [title for title in titles if title.startswith("Retrieval before (grey) and at step")]
    assert not [title for title in titles if title.startswith("Retrieval over steps")]
    # At step 0 the run measured the same lines. All cosines of random weights are near 1, so rounding can change a few.
    logged = json.loads((trained.folder / "evaluations.jsonl").read_text().splitlines()[0])["pairs"]["zh_Hant-en"]
    (text,) = [text for text in page.texts("desc") if text.startswith("zh_Hant-en: ")]
    assert float(text.split()[1]) == pytest.approx(50 * (logged["a_to_b"] + logged["b_to_a"]), abs=5)


def test_pairs_on_the_command_line_replace_those_of_the_run(trained, tmp_path, capsys):
    out = tmp_path / "page.html"
    only = trained.pairs[0]
    assert cli.main(["report", str(trained.folder), "--out", str(out), "--pairs", only]) == 0
    assert capsys.readouterr().out == f"report in {out}\n"
    page = Page(out.read_text(encoding="utf-8"))
    assert page.texts("span", lang="ar")
    assert not page.texts("span", lang="zh-Hant")


def test_the_page_is_written_to_the_first_run_folder_by_default(tmp_path):
    runs = [write_run(tmp_path / name) for name in "ab"]
    assert report(runs) == tmp_path / "a" / "report.html"
    assert (tmp_path / "a" / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_invalid_arguments_are_an_error(tmp_path):
    run = write_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"--out .*: found no folder"):
        report([run], tmp_path / "none" / "page.html")
    with pytest.raises(UserError, match="not a run folder"):
        report([run, tmp_path])


def test_the_page_begins_with_the_answer(tmp_path):
    records = [evaluation(0, de=0.1, fr=0.2), evaluation(20, de=0.5, fr=0.7), evaluation(40, de=0.4, fr=0.6)]
    page = Page(render([write_run(tmp_path / "run", [{"step": 40, "loss": 1.0}], records)], model="out/<b>"))
    assert page.texts("h2")[0] == "Did it help?"
    (verdict,) = page.texts("p", **{"class": "verdict"})
    # Of the checkpoint that is exported: the best, not the last.
    expected = "Yes: retrieval of translations was 15.0 % before training and is 60.0 % at step 20"
    assert verdict == f"{expected}, the mean over 2 language pairs."
    assert page.texts("tr")[:3] == ["pair sentences before after", "en-de 10 10.0 50.0", "en-fr 10 20.0 70.0"]
    assert 'SentenceTransformer("out/<b>")' in page.texts("pre")[0].replace("\\u003c", "<").replace("\\u003e", ">")
    assert not page.texts("b")


@pytest.mark.parametrize(
    ("after", "words"), [(0.21, "No clear change: "), (0.9, "Yes: "), (0.0, "No: "), (None, "Not known: ")]
)
def test_the_answer_is_honest(tmp_path, after, words):
    records = [evaluation(step, de=share) for step, share in ((0, 0.2), (20, after)) if share is not None]
    for record in records:
        record["pairs"]["en-de"]["n"] = 100
    page = Page(render([write_run(tmp_path / "run", [{"step": 20, "loss": 1.0}], records)]))
    (verdict,) = page.texts("p", **{"class": "verdict"})
    assert verdict.startswith(words)
    assert f"ppa-fast export {tmp_path / 'run'} --out aligned" in page.texts("code")


def test_watch_rewrites_the_page_while_a_run_trains_and_a_last_time(trained, tmp_path, monkeypatch):
    folder, pages, waits = tmp_path / "run", [], []
    shutil.copytree(trained.folder, folder)
    embedded = []
    embed = vectors.embed
    monkeypatch.setattr(vectors, "embed", lambda *of: (embedded.append(of[-1]), embed(*of))[1])

    with ExitStack() as training:
        training.enter_context(folder_lock(folder, "a test"))

        def wait(seconds):
            waits.append(seconds)
            pages.append((folder / "report.html").read_text())
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": 4 + len(waits), "loss": 1.0}) + "\n")
            if len(waits) == 2:
                training.close()

        monkeypatch.setattr(page_module.time, "sleep", wait)
        assert report([folder], watch=True) == folder / "report.html"
    pages.append((folder / "report.html").read_text())
    assert waits == [page_module.WATCH_SECONDS] * 2
    assert ["http-equiv" in text for text in pages] == [True, True, False]  # a browser loads it again until the end
    assert [f"at step {4 + n}" in text for n, text in enumerate(pages)] == [True] * 3
    assert embedded == ["before", "after"]  # once, as the checkpoint remained the same
