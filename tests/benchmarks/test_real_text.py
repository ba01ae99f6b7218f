"""benchmarks/real_text.py: training and test text are disjoint, and the complete job runs."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "real_text.py"
ROWS, TRAIN = 60, 40


def load() -> ModuleType:
    sys.path.insert(0, str(SCRIPT.parent))  # it imports measuring from its own folder
    spec = importlib.util.spec_from_file_location("real_text", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    sys.path.remove(str(SCRIPT.parent))
    return module


real_text = load()


def sentence(code: str, number: int) -> str:
    """Sentence ``number`` of a language: equal numbers are translations."""
    words = random.Random(number).choices(range(50), k=6)
    return " ".join(f"{code}{chr(97 + w % 25)}{chr(97 + w // 25)}" for w in words)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Groups of three rows share a premise. Rows 57 to 59 repeat the premise and hypotheses of rows 0 to 2. Row 56 has
    the German (not the English) hypothesis of row 55."""
    folder = tmp_path / "data"
    (folder / "nli").mkdir(parents=True)
    (folder / "tatoeba").mkdir()
    for code in ("en", "de", "zh"):
        lines = ["premise\thypo\tlabel"]
        for row in range(ROWS):
            source = row % 57
            hypothesis = 1055 if (code, row) == ("de", 56) else 1000 + source
            lines.append(f"{sentence(code, source // 3)}\t{sentence(code, hypothesis)}\tneutral")
        (folder / "nli" / f"multinli.{code}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for code, name in (("de", "deu"), ("zh", "cmn")):
        for side, own in (("eng", "en"), (name, code)):
            text = "".join(f"{sentence(own, 5000 + i)}\n" for i in range(10))
            (folder / "tatoeba" / f"tatoeba.{name}-eng.{side}").write_text(text, encoding="utf-8")
    return folder


def test_held_out_pairs_contain_no_training_sentences(data: Path) -> None:
    nli, _ = real_text.find_data(data)
    splits = real_text.split_all(nli, TRAIN)
    assert list(splits) == ["de", "zh"]
    for code, split in splits.items():
        # 40 rows: 14 premises and 40 hypotheses.
        assert (len(split.train), split.repeated) == (54, 26)
        assert split.train[:3] == [(sentence("en", n), sentence(code, n)) for n in (0, 1000, 1001)]
        # 20 rows: premises 13 (known), 14 … 18 and 0 again; hypotheses 40 … 56 and 0 … 2 again.
        hypotheses = 16 if code == "de" else 17
        assert (len(split.held_out), split.known) == (5 + hypotheses, 40 - 5 - hypotheses)
        for side in (0, 1):
            trained = {pair[side] for pair in split.train}
            scored = [pair[side] for pair in split.held_out]
            assert not trained & set(scored)
            assert len(scored) == len(set(scored))
        assert set(split.held_out) <= {
            (sentence("en", n), sentence(code, n)) for n in (*range(14, 19), *range(1040, 1057))
        }


def test_split_keeps_the_first_candidates() -> None:
    english = [(f"p{i}", f"h{i}") for i in range(5)]
    other = [(f"q{i}", f"k{i}") for i in range(5)]
    split = real_text.split(english, other, rows=2, candidates=3)
    assert split.held_out == [("p2", "q2"), ("h2", "k2"), ("p3", "q3")]
    assert (split.repeated, split.known) == (0, 0)


def test_tatoeba_sets_are_named_by_our_language_codes(data: Path) -> None:
    _, tatoeba = real_text.find_data(data)
    folder = data / "tatoeba"
    assert tatoeba == {
        "de": f"en-de:{folder}/tatoeba.deu-eng.eng,{folder}/tatoeba.deu-eng.deu",
        "zh": f"en-zh:{folder}/tatoeba.cmn-eng.eng,{folder}/tatoeba.cmn-eng.cmn",
    }


def test_written_pairs_are_line_parallel(tmp_path: Path) -> None:
    spec = real_text.write_pairs(tmp_path, "train", "de", [("one", "eins"), ("two", "zwei")])
    assert spec == f"en-de:{tmp_path}/train.en-de.en,{tmp_path}/train.en-de.de"
    assert (tmp_path / "train.en-de.en").read_text(encoding="utf-8") == "one\ntwo\n"
    assert (tmp_path / "train.en-de.de").read_text(encoding="utf-8") == "eins\nzwei\n"


def remove(path: str) -> Callable[[Path], object]:
    return lambda data: (data / path).unlink()


def append(path: str, text: str) -> Callable[[Path], object]:
    return lambda data: (data / path).write_text((data / path).read_text(encoding="utf-8") + text, encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "no nli/multinli.en.tsv"),
        (remove("nli/multinli.en.tsv"), "no nli/multinli.en.tsv"),
        (lambda data: [remove(f"nli/multinli.{x}.tsv")(data) for x in ("de", "zh")], "no nli/multinli.de.tsv"),
        (remove("tatoeba/tatoeba.cmn-eng.eng"), "tatoeba.cmn-eng.eng: no such file"),
        (lambda data: shutil.copy(data / "nli/multinli.de.tsv", data / "nli/multinli.xx.tsv"), "unknown language 'xx'"),
        (append("nli/multinli.zh.tsv", "a\tb\tc\n"), "multinli.zh.tsv: found 61 rows, expected 60"),
        (append("nli/multinli.zh.tsv", "a\t\tc\n"), "multinli.zh.tsv:62: found 'a\\t\\tc'"),
    ],
)
def test_unusable_data_is_a_one_line_error(
    spoil: Callable[[Path], object], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(data)
    out = tmp_path / "out"
    assert real_text.main([str(data), "--out", str(out), "--rows", str(TRAIN)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_an_existing_output_and_too_few_rows_are_errors(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert real_text.main([str(data), "--out", str(data)]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert real_text.main([str(data), "--out", str(tmp_path / "out")]) == 2
    assert "--rows: found 11000, expected 1 to 59" in capsys.readouterr().err


@pytest.mark.slow
def test_the_complete_job_runs(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out = tmp_path / "config.json", tmp_path / "out"
    config.write_text(json.dumps({"train_batch_size": 16, "gradient_clipping": 1.0}), encoding="utf-8")
    sizes = {"rows": TRAIN, "vocab-size": 300, "layers": 1, "hidden": 32, "steps": 3, "deepspeed_config": config}
    flags = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    assert real_text.main([str(data), "--out", str(out), *flags]) == 0

    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    for when in ("before", "after"):
        scores = result[when]
        assert {name: scores["held_out"]["pairs"][name]["n"] for name in ("en-de", "en-zh")} == {
            "en-de": 21,
            "en-zh": 22,
        }
        assert [scores["tatoeba"]["pairs"][name]["n"] for name in ("en-de", "en-zh")] == [10, 10]
    assert result["before"]["held_out"]["model"] != result["after"]["held_out"]["model"]
    assert (out / "export" / "model.safetensors").is_file()
    assert "en-zh" in (out / "report.html").read_text(encoding="utf-8")
    assert [line.split()[0] for line in result["commands"]] == [*["ppa-fast"] * 5, "deepspeed", *["ppa-fast"] * 4]
    parts = {name: seconds for name, seconds in result["seconds"].items() if name != "total"}
    assert len(parts) == 1 + len(result["commands"])
    assert sum(parts.values()) <= result["seconds"]["total"] + 1
    assert result["settings"]["pooling"] == "mean"
    printed = capsys.readouterr().out
    assert all(f"$ {line}" in printed for line in result["commands"])
    assert "XTREME's Tatoeba accuracy" in printed
