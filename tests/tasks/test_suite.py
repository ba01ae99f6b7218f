"""The suite finds published file names, scores as the single evaluations do, and computes no score twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ppa_fast.data.store.tokenize import load_tokenizer
from ppa_fast.errors import UserError
from ppa_fast.tasks import evaluate, suite
from ppa_fast.tasks.head import load_with_head
from ppa_fast.tasks.layouts import UNKNOWN, find_sets
from ppa_fast.tasks.nli import NLI_LABELS
from ppa_fast.tasks.suite import evaluate_suite, format_table, mining_corpora
from tests.conftest import Tiny, pseudo_text

TEXT = {code: lines[:30] for code, lines in pseudo_text(0, 150).items()}


def write(folder: Path, files: Mapping[str, list[str]]) -> Path:
    for name, lines in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def squad(code: str) -> list[str]:
    text = TEXT[code][0]
    asked = {"id": "1", "question": TEXT["en"][1], "answers": [{"text": text.split()[0], "answer_start": 0}]}
    return [json.dumps({"data": [{"title": "", "paragraphs": [{"context": text, "qas": [asked]}]}]})]


def xnli(*codes: str) -> list[str]:
    rows = [f"{c}\t{NLI_LABELS[i % 3]}\t{a}\t{TEXT[c][i - 1]}" for c in codes for i, a in enumerate(TEXT[c][:6])]
    return ["language\tgold_label\tsentence1\tsentence2", *rows]


TATOEBA = {"t/tatoeba.deu-eng.deu": TEXT["de"], "t/tatoeba.deu-eng.eng": TEXT["en"]}
NTREX = {"newstest2019-src.eng.txt": TEXT["en"], "newstest2019-ref.fra.txt": TEXT["fr"]}
TOPICS = ["index_id\tcategory\ttext", *(f"{i}\tsports\t{text}" for i, text in enumerate(TEXT["en"]))]
WORDS = [f"{a} ||| {b}" for a, b in zip(TEXT["de"], TEXT["en"], strict=True)]
GOLD = ["1-1" for _ in WORDS]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["tatoeba.cmn-eng.cmn", "tatoeba.cmn-eng.eng", "tatoeba.fra-eng.eng"], ["Tatoeba en-cmn"]),
        (["devtest/eng_Latn.devtest", "devtest/deu_Latn.devtest", "dev/deu_Latn.dev"], ["FLORES-200 en-de"]),
        (["newstest2019-src.eng.txt", "newstest2019-ref.zho-CN.txt.gz"], ["NTREX en-zh_CN"]),
        (["newstest2019-src.eng.txt", "newstest2019-ref.eng-GB.txt"], []),
        (["deen.gold", "deen.src-tgt", "fr-en.gold", "fr-en.fr", "fr-en.en"], ["word links de-en", "word links fr-en"]),
        (["en-de.gold", "en-de.en"], []),
        (["annotated/zho_Hans/test.tsv", "annotated/zho_Hans/train.tsv"], ["SIB-200 zh_Hans"]),
        (["multinli.de.tsv", "xquad.de.json", "pud.th.tsv"], ["MultiNLI de", "XQuAD de", "PUD th"]),
        (["test-context-de-question-de.json", "test-context-de-question-zh.json"], ["MLQA de", "MLQA de-zh"]),
        (["de_pud-ud-test.conllu", "de_gsd-ud-test.conllu", "x.conllu"], ["UD gsd de", "UD pud de"]),
        (["old/xquad.de.json", "xquad.de.json", ".git/xquad.en.json"], ["XQuAD de"]),
    ],
)
def test_published_file_names_are_found(tmp_path: Path, files: list[str], expected: list[str]) -> None:
    folder = write(tmp_path / "data", {name: ["x"] for name in files})
    sets, left = find_sets(folder)
    assert [f"{each.dataset} {each.language}" for each in sets] == expected
    used = {path for each in sets for path in each.files} | {path for path, _ in left}
    assert {str(path.relative_to(folder)) for path in used} == {name for name in files if ".git" not in name}


def test_the_rows_of_xnli_state_their_languages(tmp_path: Path) -> None:
    folder = write(tmp_path, {"xnli.test.tsv": xnli("en", "de", "fr"), "xnli.dev.tsv": xnli("en"), "a.txt": ["x"]})
    sets, left = find_sets(folder, languages=["de"])
    assert [each.language for each in sets] == ["en", "de"]
    assert [(path.name, reason) for path, reason in left] == [
        ("a.txt", UNKNOWN),
        ("xnli.dev.tsv", "training or development data of XNLI"),
        ("xnli.test.tsv", "not in the given languages"),
    ]
    (folder / "xnli.test.tsv").write_text("no header\n")
    assert "xnli.test.tsv:1: found ['no header']" in find_sets(folder)[1][-1][1]


def test_languages_match_by_language_and_script(tmp_path: Path) -> None:
    names = ["arb_Arab", "zho_Hans", "zho_Hant", "eng_Latn"]
    folder = write(tmp_path, {f"devtest/{name}.devtest": ["x"] for name in names})
    assert [each.language for each in find_sets(folder, languages=["ar", "zh"])[0]] == ["en-arb_Arab", "en-zh_Hans"]
    assert [each.language for each in find_sets(folder, pivot="zh_Hant", languages=["en"])[0]] == ["zh_Hant-en"]


def test_scores_equal_those_of_the_single_evaluations(tiny: Tiny, tmp_path: Path) -> None:
    data = write(tmp_path / "data", {**TATOEBA, **NTREX, "g/deen.gold": GOLD, "g/deen.src-tgt": WORDS, "a.md": ["x"]})
    write(data, {"eng_Latn/test.tsv": TOPICS, "pud.en.tsv": ["x"]})
    model, out = str(tiny.model), tmp_path / "out"
    result = evaluate_suite([model], data, out)
    scores = {(row["dataset"], row["task"], row["language"]): row["scores"][0] for row in result["scores"]}
    assert len(scores) == 4

    pairs = {"en-de": ("t/tatoeba.deu-eng.eng", "t/tatoeba.deu-eng.deu"), "en-fr": tuple(NTREX)}
    specs = [f"{name}:{data / a},{data / b}" for name, (a, b) in pairs.items()]
    expected = evaluate("retrieval", model=model, pairs=specs)["pairs"]
    assert scores["Tatoeba", "retrieval", "en-de"] == pytest.approx(expected["en-de"])
    assert scores["NTREX", "retrieval", "en-fr"] == pytest.approx(expected["en-fr"])

    sets = {}
    for name, corpus in mining_corpora(TEXT["en"], TEXT["fr"]).items():
        assert corpus.gold is not None
        sides = {f"{name}.{side}": [f"{i}\t{t}" for i, t in zip(*texts, strict=True)] for side, texts in
                 (("en", corpus.a), ("fr", corpus.b))}  # fmt: skip
        write(tmp_path, {**sides, f"{name}.gold": [f"{a}\t{b}" for a, b in corpus.gold]})
        sets[name] = ",".join(str(tmp_path / f"{name}.{part}") for part in ("en", "fr", "gold"))
    mined = evaluate("mine", model=model, **sets)
    assert scores["NTREX", "mine", "en-fr"]["test"] == mined["test"]

    pair = str(data / "g/deen.src-tgt")
    aligned = evaluate("align", model=model, gold=data / "g/deen.gold", pairs=pair, one_indexed=True)
    assert scores["word links", "align", "de-en"] == aligned

    assert result["not_scored"] == {
        UNKNOWN: ["a.md"],
        "classify needs a fine-tuned model, whose class ends with ForSequenceClassification": ["SIB-200 en"],
        "tagging needs a fine-tuned model, whose class ends with ForTokenClassification": ["PUD en"],
    }
    assert json.loads((out / "result.json").read_text(encoding="utf-8")) == result
    table = (out / "table.md").read_text(encoding="utf-8")
    assert f"| Tatoeba: P@1 en→xx | de | {100 * expected['en-de']['a_to_b']:.1f} | 30 |" in table
    assert f"- not scored ({UNKNOWN}): a.md" in table


def test_mining_has_gold_pairs_and_sentences_without_a_translation() -> None:
    corpora = mining_corpora([f"a{i}" for i in range(13)], [f"b{i}" for i in range(13)])
    assert corpora["dev"].gold == {("0", "0"), ("3", "3")}
    assert corpora["dev"].a == (["0", "1", "3", "4"], ["a0", "a1", "a3", "a4"])
    assert corpora["dev"].b == (["0", "2", "3", "5"], ["b0", "b2", "b3", "b5"])
    assert corpora["test"].gold == {("6", "6"), ("9", "9"), ("12", "12")}
    with pytest.raises(UserError, match="found 11 rows, expected at least 12"):
        mining_corpora(["a"] * 11, ["b"] * 11)


def test_a_score_is_computed_once(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[str] = []
    interrupted = [True]

    def score(self: Any, found: Any, task: str) -> dict[str, Any]:
        if task == "mine" and interrupted.pop():
            raise KeyboardInterrupt
        computed.append(f"{found.dataset} {task}")
        return {"n": 30, "f1": 0.5, "a_to_b": 0.25, "b_to_a": 0.125}

    monkeypatch.setattr(suite._Model, "score", score)
    data = write(tmp_path / "data", {**TATOEBA, **NTREX})
    model = Path(shutil.copytree(tiny.model, tmp_path / "model"))
    out = data / "out"  # its files are no data

    def run(*models: Path, **options: Any) -> list[str]:
        computed.clear()
        evaluate_suite([str(each) for each in models], data, out, **options)
        return list(computed)

    with pytest.raises(KeyboardInterrupt):
        run(model)
    assert computed == ["Tatoeba retrieval", "NTREX retrieval"]
    interrupted.append(False)
    assert run(model) == ["NTREX mine"]
    interrupted += [False] * 9
    assert run(model) == []
    assert run(model, languages=["fr"]) == []
    write(data, {"t/tatoeba.deu-eng.deu": TEXT["de"][::-1]})
    assert run(model) == ["Tatoeba retrieval"]
    assert run(model, pooling="cls") == ["Tatoeba retrieval", "NTREX retrieval", "NTREX mine"]
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    # The model that it was copied from has the scores of the copy before the change.
    assert run(model, tiny.model) == ["Tatoeba retrieval", "NTREX retrieval", "NTREX mine"]


@pytest.mark.parametrize("task", ["nli", "qa"])
def test_a_fine_tuned_model_is_scored_on_its_task(tiny: Tiny, tmp_path: Path, task: str) -> None:
    auto, labels = {
        "nli": ("AutoModelForSequenceClassification", NLI_LABELS),
        "qa": ("AutoModelForQuestionAnswering", ()),
    }[task]
    model = str(tmp_path / "model")
    load_with_head(tiny.model, auto, labels, 0).save_pretrained(model)
    load_tokenizer(str(tiny.model)).save_pretrained(model)
    data = write(tmp_path / "data", {"xnli.test.tsv": xnli("en", "de"), "xquad.de.json": squad("de")})
    write(data, {"eng_Latn/test.tsv": TOPICS, "test-context-de-question-en.json": squad("de")})
    result = evaluate_suite([model], data, tmp_path / "out")
    scores = {f"{row['dataset']} {row['language']}": row["scores"][0] for row in result["scores"]}
    if task == "nli":
        expected = evaluate("nli", model=model, gold=[str(data / "xnli.test.tsv")])["languages"]
        assert scores == {f"XNLI {code}": expected[code] for code in ("en", "de")}
        (reason,) = (reason for reason, names in result["not_scored"].items() if "SIB-200 en" in names)
        assert "id2label in config.json: found entailment, neutral, contradiction, expected sports" in reason
    else:
        mlqa = str(data / "test-context-de-question-en.json")
        crossed = evaluate("qa", model=model, gold=[mlqa])["languages"]["de-en"]
        straight = evaluate("qa", model=model, gold=[f"de:{data / 'xquad.de.json'}"], metric="squad")["languages"]["de"]
        assert scores == {"XQuAD de": straight, "MLQA de-en": crossed}


@pytest.mark.parametrize(("tags", "label"), [(("NOUN", "VERB"), "accuracy"), (("B-LOC", "O"), "entity F1")])
def test_a_tagger_is_scored_on_its_kind_of_tags(tiny: Tiny, tmp_path: Path, tags: tuple[str, str], label: str) -> None:
    model = str(tmp_path / "model")
    load_with_head(tiny.model, "AutoModelForTokenClassification", tags, 0).save_pretrained(model)
    load_tokenizer(str(tiny.model)).save_pretrained(model)
    lines = [line for text in TEXT["de"][:3] for line in (*(f"{w}\t{tags[0]}" for w in text.split()), "")]
    result = evaluate_suite([model], write(tmp_path / "data", {"pud.de.tsv": lines}), tmp_path / "out")
    expected = evaluate("tagging", model=model, gold=[str(tmp_path / "data/pud.de.tsv")])["languages"]
    assert [row["scores"][0] for row in result["scores"]] == list(expected.values())
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert [line.split(" | ")[0] for line in table.splitlines() if "PUD" in line] == [f"| PUD: {label}"]


def test_the_table_has_models_beside_each_other() -> None:
    def row(dataset: str, task: str, language: str, *scores: Any) -> dict[str, Any]:
        return {"dataset": dataset, "task": task, "language": language, "scores": list(scores)}

    def found(share: float) -> dict[str, float]:
        return {"a_to_b": share, "b_to_a": share, "n": 1000}

    result = {
        "models": [{"model": "runs/base"}, {"model": "runs/aligned"}],
        "pivot": "en",
        "scores": [
            row("Tatoeba", "retrieval", "en-de", found(0.5), found(0.75)),
            row("Tatoeba", "retrieval", "en-zh_CN", found(0.25), found(0.35)),
            row("Tatoeba", "retrieval", "en-ur", None, found(1.0)),
            row("XQuAD", "qa", "de", None, {"f1": 60.0, "exact_match": 50.0, "n": 1190}),
        ],
        "not_scored": {"no reason": [f"f{i}" for i in range(22)]},
    }
    lines = [" ".join(line.split()) for line in format_table(result).splitlines()]
    assert lines[1:6] == [
        "score language base aligned difference n",
        "Tatoeba: P@1 en→xx de 50.0 75.0 +25.0 1,000",
        "Tatoeba: P@1 en→xx zh_CN 25.0 35.0 +10.0 1,000",
        "Tatoeba: P@1 en→xx ur – 100.0 – 1,000",
        "Tatoeba: P@1 en→xx mean of 2 37.5 55.0 +17.5 2,000",
    ]
    assert "XQuAD: F1 de – 60.0 – 1,190" in lines
    assert lines[-1].startswith("not scored (no reason): f0, f1,")
    assert lines[-1].endswith("f19 … and 2 more")


def test_what_cannot_be_scored_at_all_is_an_error(tiny: Tiny, tmp_path: Path) -> None:
    model, out = [str(tiny.model)], tmp_path / "out"
    with pytest.raises(UserError, match="found no folder"):
        evaluate_suite(model, tmp_path / "absent", out)
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match="found no files in"):
        evaluate_suite(model, tmp_path / "data", out)
    data = write(tmp_path / "data", {"notes.txt": ["x"], "t/tatoeba.deu-eng.deu": ["a"], "t/tatoeba.deu-eng.eng": [""]})
    with pytest.raises(
        UserError, match=r"can be scored:\nnot scored \(not a file .*notes\.txt\nnot scored \(.*deu-eng\.eng"
    ):
        evaluate_suite(model, data, out)
    assert not out.exists()
    with pytest.raises(UserError, match=r"^languages: found 'klingonese', expected a BCP-47 code"):
        evaluate_suite(model, data, out, languages=["klingonese"])
    with pytest.raises(UserError, match="no such folder"):
        evaluate_suite([str(tmp_path / "no-model")], data, out)
