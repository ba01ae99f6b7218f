"""Tagging: files, windows and labels, scores against hand-computed values and an independent rule, and fine-tuning."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

from ppa_fast.data.store.tokenize import load_tokenizer
from ppa_fast.errors import UserError
from ppa_fast.model.initialise import init_model
from ppa_fast.tasks import evaluate, prediction, tagging
from ppa_fast.tasks.finetuning import finetune
from ppa_fast.tasks.parallel import read_parallel
from ppa_fast.tasks.tag_files import TaggedSentence, read_tagged, read_tags
from ppa_fast.tasks.tag_metrics import entities, has_entities, score_tags
from ppa_fast.tasks.tagging import IGNORED, EntityTask, TaggingTask, format_table
from tests.conftest import Tiny
from tests.model.configs import PACKED, PADDED
from tests.tasks import toy

CONLL_2003 = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
# # I-NP O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""
CONLLU = """# newdoc id = d
# sent_id = s1
# text = Vámonos al mar.\tNow
1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tVamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
2.1\tx\tx\tX\t_\t_\t_\t_\t_\t_
3\t#\t#\tSYM\t_\t_\t1\tdep\t_\t_

# sent_id = s2
1\tmar\tmar\tNOUN\t_\t_\t0\troot\t_\t_
"""
PANX = "de:Bad\tB-LOC\nde:Ems\tI-LOC\n\nde::\tO\n"
TSV = "# n01\n10 000\tNUM\n#\tSYM\n\n\n# n02\nb\tX\r\n"


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def sentence(words: str, tags: str, row: int, line: int, index: str = "") -> TaggedSentence:
    return TaggedSentence(tuple(words.split("|")), tuple(tags.split("|")), row, line, index)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CONLL_2003, [("EU|rejects|#", "B-ORG|O|O", 0, 3), ("Peter|Blackburn", "B-PER|I-PER", 1, 7)]),
        (CONLLU, [("Vamos|nos|#", "VERB|PRON|SYM", 0, 1, "s1"), ("mar", "NOUN", 1, 10, "s2")]),
        (PANX, [("Bad|Ems", "B-LOC|I-LOC", 0, 1), (":", "O", 1, 4)]),
        (TSV, [("10 000|#", "NUM|SYM", 0, 1, "n01"), ("b", "X", 1, 6, "n02")]),
        ("de:a\tX\nen:b\tX\n", [("de:a|en:b", "X|X", 0, 1)]),  # words with colons, not PAN-X
    ],
    ids=["conll", "conllu", "panx", "tsv", "colons"],
)
def test_every_layout_is_read(tmp_path: Path, text: str, expected: list[tuple[str, str, int, int]]) -> None:
    sentences = [sentence(*each) for each in expected]
    assert read_tagged(write(tmp_path / "file", text)) == (sentences, [])
    (tmp_path / "file.gz").write_bytes(gzip.compress(text.encode()))
    assert read_tagged(tmp_path / "file.gz") == (sentences, [])
    assert read_tags(tmp_path / "file") == [each.tags for each in sentences]


def test_bad_sentences_are_listed_with_their_first_bad_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "a\tX\nb\nc\n\n\tX\n\nd\tX\n\ne\tY\n\nf\t\n")
    good, rejected = read_tagged(path, ["X"])
    assert good == [sentence("d", "X", 2, 7)]
    assert [(reject.row, str(reject)) for reject in rejected] == [
        (0, f"{path}:2: no tag"),
        (1, f"{path}:5: no word"),
        (3, f"{path}:9: label 'Y', expected one of X"),
        (4, f"{path}:11: no tag"),
    ]
    (tmp_path / "b.tsv").write_bytes(b"a\tX\n\xff\tX\n\nb\tX\n")
    assert [str(reject) for reject in read_tagged(tmp_path / "b.tsv")[1]] == [f"{tmp_path / 'b.tsv'}:2: not UTF-8"]
    path = write(tmp_path / "c.conllu", "1 a a X\n\n1\ta\ta\t_\t_\t_\t0\troot\t_\t_\n")
    assert [str(reject) for reject in read_tagged(path)[1]] == [
        f"{path}:1: found 1 columns, expected 10 as in CoNLL-U",
        f"{path}:3: no tag",
    ]
    with pytest.raises(UserError, match="found no rows"):
        read_tagged(write(tmp_path / "d", "\n-DOCSTART- O\n"))


def test_entities_follow_the_rules_of_conlleval() -> None:
    for tags, found in {
        "B-A I-A O B-A": [("A", 0, 1), ("A", 3, 3)],
        "I-A I-A I-B B-B": [("A", 0, 1), ("B", 2, 2), ("B", 3, 3)],  # IOB1, and a change of type
        "O I-A O": [("A", 1, 1)],
        "B-A I-B": [("A", 0, 0), ("B", 1, 1)],
        "B-A I-A E-A S-A E-A I-A": [("A", 0, 2), ("A", 3, 3), ("A", 4, 4), ("A", 5, 5)],  # IOBES, then not allowed
        "B-A-B I-A-B I-A": [("A-B", 0, 1), ("A", 2, 2)],
        "O": [],
    }.items():
        assert entities(tags.split()) == found, tags


def test_scores_equal_hand_computed_values() -> None:
    gold = [tags.split() for tags in ("O O O B-MISC I-MISC I-MISC O", "B-PER I-PER O")]
    predicted = [tags.split() for tags in ("O O B-MISC I-MISC I-MISC I-MISC O", "B-PER I-PER O")]
    # The example of seqeval's documentation: one of two entities on either side.
    expected = {"f1": 0.5, "precision": 0.5, "recall": 0.5, "entities": 2, "n": 2}
    assert score_tags(gold, predicted, of_entities=True) == expected
    assert score_tags(gold, predicted, of_entities=False) == {"accuracy": 0.8, "words": 10, "n": 2}
    # Four predicted entities, one of which is one of the two: P 1/4, R 1/2, F1 2 · 1 / (4 + 2).
    predicted[0] = ["B-A", "O", "O", "B-A", "I-MISC", "I-MISC", "O"]
    predicted[1] = ["B-PER", "I-PER", "O"]
    scores = score_tags(gold, predicted, of_entities=True)
    assert (scores["precision"], scores["recall"], scores["f1"]) == (0.25, 0.5, pytest.approx(1 / 3))
    assert score_tags([["O"]], [["O"]], of_entities=True)["f1"] == 0.0


def brute_force(tags: list[str]) -> set[tuple[str, int, int]]:
    """All spans that conlleval's two tables of ends and starts of chunks delimit, tested one by one."""
    padded = [(tag[0], tag[2:]) for tag in ["O", *tags, "O"]]
    ends = {("B", "B"), ("B", "O"), ("B", "S"), ("I", "B"), ("I", "O"), ("I", "S")}
    ends |= {(first, second) for first in "ES" for second in "BIESO"}
    starts = {(first, second) for first in "BIESO" for second in "BS"}
    starts |= {(first, second) for first in "ESO" for second in "IE"}

    def is_end(place: int) -> bool:
        (first, kind), (second, other) = padded[place : place + 2]
        return first != "O" and ((first, second) in ends or kind != other)

    def is_start(place: int) -> bool:
        (first, kind), (second, other) = padded[place - 1 : place + 1]
        return second != "O" and ((first, second) in starts or kind != other)

    found = set()
    for i in range(1, len(tags) + 1):
        for j in range(i, len(tags) + 1):
            inside = any(is_start(k) for k in range(i + 1, j + 1)) or any(is_end(k) for k in range(i, j))
            if is_start(i) and is_end(j) and not inside:
                found.add((tags[j - 1][2:], i - 1, j - 1))
    return found


TAGS = st.lists(st.sampled_from(["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in "AB")]), max_size=9)


@settings(deadline=None)
@given(TAGS)
def test_entities_equal_an_independent_rule(tags: list[str]) -> None:
    assert {*entities(tags)} == brute_force(tags)
    assert len(entities(tags)) == len(brute_force(tags))


@settings(deadline=None)
@given(st.lists(TAGS.filter(bool), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_scores_equal_seqevals(gold: list[list[str]], rng: random.Random) -> None:
    metrics = pytest.importorskip("seqeval.metrics")
    predicted = [[rng.choice([tag, "O", "I-A", "B-B", "E-A"]) for tag in tags] for tags in gold]
    scores = score_tags(gold, predicted, of_entities=True)
    for name, function in (("f1", "f1_score"), ("precision", "precision_score"), ("recall", "recall_score")):
        assert scores[name] == pytest.approx(getattr(metrics, function)(gold, predicted))


def test_a_mixture_of_entities_and_parts_of_speech_is_an_error() -> None:
    assert has_entities({"O", "B-LOC", "I-LOC"})
    assert not has_entities({"NOUN", "O"})
    with pytest.raises(UserError, match="tags: found U-PER together with B-LOC, expected either only entity tags"):
        has_entities({"B-LOC", "U-PER", "O"})


@pytest.fixture(scope="module")
def task(tiny: Tiny) -> TaggingTask:
    return TaggingTask(load_tokenizer(str(tiny.tokenizer)), 16, tuple("ABCDEFGH"))


def sentences_of(rng: random.Random, count: int) -> list[TaggedSentence]:
    """Sentences of 1 to 30 words; some have many subwords, more than fit into a window, or none."""
    words = [*(word[rng.randrange(3)] for word in toy.meanings()), "\u200b", "x" * 20, "ab" * 30, "kalo pune"]
    rows = [rng.choices(words, k=rng.randint(1, 30)) for _ in range(count)]
    return [TaggedSentence(tuple(row), tuple(rng.choices("AB", k=len(row))), i, 1) for i, row in enumerate(rows)]


def test_every_word_is_labelled_once_at_its_first_subword(task: TaggingTask) -> None:
    examples = sentences_of(random.Random(0), 40)
    pieces = task.pieces(task.lengths(examples)).tolist()
    assert max(pieces) > 2
    assert min(pieces) == 1
    first = {}
    for word in {word for example in examples for word in example.words}:
        ids = task.tokenizer(word, add_special_tokens=False)["input_ids"]
        first[word] = ids[0] if ids else task.tokenizer.unk_token_id
    assert task.tokenizer.unk_token_id in first.values()
    for example, count in zip(examples, pieces, strict=True):
        batch = task.collate([(example, piece) for piece in range(count)])
        assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
        assert batch["input_ids"].shape[1] <= 16
        labelled = batch["labels"] != IGNORED
        assert labelled.any(1).all()
        assert [task.labels[label] for label in batch["labels"][labelled]] == [*example.tags]
        assert batch["input_ids"][labelled].tolist() == [first[word] for word in example.words]
        assert labelled[:, 1].all()  # a window begins with a word
        assert not labelled[:, 0].any()  # [CLS]


@pytest.mark.parametrize("family", [*PACKED, *PADDED])
def test_predictions_equal_those_of_single_windows(
    task: TaggingTask, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = (PACKED | PADDED)[family].to_dict() | {"vocab_size": len(task.tokenizer), "num_labels": 8}
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_config(AutoConfig.for_model(**values)).eval()
    if getattr(model.config, "type_vocab_size", 1) < 2:
        monkeypatch.setattr(task.tokenizer, "model_input_names", ["input_ids", "attention_mask"])
    monkeypatch.setattr(prediction, "TOKENS_PER_BATCH", 100)
    monkeypatch.setattr(tagging, "CHUNK", 4)
    examples = sentences_of(random.Random(1), 6)
    predicted = task.predict(model, examples, None)
    assert len({tag for tags in predicted for tag in tags}) > 1
    for example, tags in zip(examples, predicted, strict=True):
        expected = []
        for piece in range(int(task.pieces(task.lengths([example])))):
            batch = task.collate([(example, piece)])
            with torch.no_grad():
                output = model(**batch)
            assert output.loss.isfinite()
            places = (batch["labels"][0] != IGNORED).nonzero()[:, 0]
            expected += [task.labels[number] for number in output.logits[0, places].argmax(1)]
        assert tags == expected


def test_translations_of_a_sentence_have_one_id_and_row(tmp_path: Path) -> None:
    files = {
        "en": write(tmp_path / "en", "# a\none\tX\n\n# b\ntwo\tX\nb\tY\n\n# c\nthree\tX\n\n# d\nfour\n"),
        "de": write(tmp_path / "de", "# a\neins\tX\nx\tY\n\n# B\nzwei\tX\n\n# c\n\tX\n\n# d\nvier\tX\n"),
    }
    data = read_parallel(files, TaggingTask.read, max_rejected=0.9)
    assert data.rows == [0]
    assert [data.examples[code][0].tags for code in files] == [("X",), ("X", "Y")]
    assert sorted(map(str, data.rejected)) == [
        f"{files['de']}:5: index 'B', expected 'b' as in {files['en']}",
        f"{files['de']}:9: no word",
        f"{files['en']}:12: no tag",
    ]
    files["de"] = write(tmp_path / "de", "eins\tX\n")
    with pytest.raises(UserError, match=r"--train: found files of unequal length: .*en has 4 rows, .*de has 1"):
        read_parallel(files, TaggingTask.read)


def test_files_of_predictions_are_scored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = {
        "en": "a NOUN\nb VERB\n\nc NOUN\n",
        "es": CONLLU,
        "en.txt": "NOUN\nNOUN\n\nNOUN\n",
        "es.txt": CONLLU.replace("PRON", "X"),
    }
    files = {name: write(tmp_path / name, text) for name, text in texts.items()}
    gold = [f"{code}:{files[code]}" for code in ("en", "es")]
    predictions = [f"{code}:{files[f'{code}.txt']}" for code in ("es", "en")]
    result = evaluate("tagging", gold=gold, predictions=predictions)
    assert result == {
        "accuracy": pytest.approx((2 / 3 + 3 / 4) / 2),
        "languages": {
            "en": {"accuracy": pytest.approx(2 / 3), "words": 3, "n": 2},
            "es": {"accuracy": 0.75, "words": 4, "n": 2},
        },
    }
    assert format_table(result).splitlines()[-1].split() == ["mean", "70.8", "4"]
    assert caplog.messages == [f"{tmp_path / 'es.txt'}: tags that do not occur in the gold sentences: X"]

    named = str(write(tmp_path / "ner", PANX))
    result = evaluate("tagging", gold=[named], predictions=[str(write(tmp_path / "ner.txt", "B-LOC\nO\n\nO\n"))])
    assert result["languages"] == {"und": {"f1": 0.0, "precision": 0.0, "recall": 0.0, "entities": 1, "n": 2}}
    assert format_table(result).splitlines()[1].split() == ["language", "f1", "precision", "recall", "n"]

    for text, message in {
        "B-LOC\nO\n": "found 1 sentences, expected 2 as in the gold file",
        "B-LOC\nO\n\nO\nO\n": "sentence 2: found 2 tags, expected 1, one for each word of the gold sentence at line 4",
        "B-LOC\nO\n\nx\t\n": "bad:4: no tag",
        "B-LOC\nO\n\nNOUN\n": "found NOUN together with B-LOC",
    }.items():
        with pytest.raises(UserError, match=message):
            evaluate("tagging", gold=[named], predictions=[str(write(tmp_path / "bad", text))])


def test_a_tagger_of_entities_is_trained_saved_and_evaluated(tiny: Tiny, tmp_path: Path) -> None:
    """XLM-R, which has no token types, with sentences of several windows; a tag occurs only in German."""
    model = tmp_path / "model"
    init_model(model, str(tiny.tokenizer), family="xlm-roberta", layers=1, hidden=32, heads=2, max_positions=64, seed=1)
    words = [word[0] for word in toy.meanings()]
    text = "".join(f"{word}\t{tag}\n" for word, tag in zip(words[:30], ["O", "B-A", "I-A"] * 10, strict=True))
    files = {code: write(tmp_path / f"{code}.tsv", f"{text}\n" * 8) for code in ("en", "de")}
    write(files["de"], f"{text}\n" * 7 + text.replace("B-A", "B-B"))
    specs = [f"{code}:{path}" for code, path in files.items()]
    options = {"epochs": 2, "batch": 4, "learning_rate": 3e-3, "max_tokens": 16, "code_switch": 0.5}
    result = finetune("tagging", str(model), train=specs, dev=specs[:1], test=specs, out=tmp_path / "out", **options)
    assert [*result["mean"]] == ["f1", "precision", "recall"]
    assert [entry["epoch"] for entry in result["runs"][0]["dev"]] == [1, 2]
    assert result["n"] == {"en": 8, "de": 8}

    folder = str(tmp_path / "out" / "seed-0" / "model")
    tagger = AutoModelForTokenClassification.from_pretrained(folder)
    assert tagger.config.id2label == {0: "B-A", 1: "B-B", 2: "I-A", 3: "O"}
    assert "token_type_ids" not in AutoTokenizer.from_pretrained(folder)("a")
    again = evaluate("tagging", model=folder, gold=specs, max_tokens=16)
    for code, scores in result["languages"].items():
        for metric, values in scores.items():
            assert again["languages"][code][metric] == pytest.approx(values["mean"])

    unknown = write(tmp_path / "unknown.tsv", "a\tO\n\nb\tO\nc\tB-C\n")
    with pytest.raises(UserError, match=r"unknown.tsv:4: label 'B-C', expected one of B-A, B-B, I-A, O"):
        evaluate("tagging", model=folder, gold=[str(unknown)])
    with pytest.raises(UserError, match=r"unknown.tsv:4: label 'B-C', expected one of B-A, B-B, I-A, O"):
        finetune("tagging", str(model), train=specs, test=[f"en:{unknown}"], out=tmp_path / "other")


def test_tasks_for_labels() -> None:
    assert TaggingTask.for_labels(["NOUN", "O"]) is TaggingTask
    assert TaggingTask.for_labels(["B-LOC", "O"]) is EntityTask
