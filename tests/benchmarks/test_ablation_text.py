"""benchmarks/ablation_text.py: no test text is used for training."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(FOLDER))  # it imports real_text from its own folder
    spec = importlib.util.spec_from_file_location("ablation_text", FOLDER / "ablation_text.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(FOLDER))
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """20 rows of NLI, three per premise; five articles of XQuAD; two rows of SIB-200; two lines of the other sets."""
    folder = tmp_path / "data"
    for part in ("nli", "ntrex", "qa", "tatoeba", "topic/eng_Latn", "topic/zho_Hans"):
        (folder / part).mkdir(parents=True)

    def write(name: str, lines: list[str]) -> None:
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    for code, long in (("en", "eng_Latn"), ("zh", "zho_Hans")):
        rows = [f"{code} premise {i // 3}\t{code} hypothesis {i}\tneutral" for i in range(20)]
        write(f"nli/multinli.{code}.tsv", ["premise\thypo\tlabel", *rows])
        for part in ("train", "dev", "test"):
            write(f"topic/{long}/{part}.tsv", ["index_id\tcategory\ttext", f"1\tsports\t{code} {part}"])
        articles = [{"title": f"{i}", "paragraphs": [{"context": f"{code} {i}", "qas": []}]} for i in range(10)]
        (folder / f"qa/xquad.{code}.json").write_text(json.dumps({"version": "1.1", "data": articles}))
    write("ntrex/newstest2019-src.eng.txt", ["en news", "en news"])
    write("ntrex/newstest2019-ref.zho-CN.txt", ["zh news"])
    write("ntrex/newstest2019-ref.hin.txt", ["hi news"])
    write("tatoeba/tatoeba.cmn-eng.eng", ["en tatoeba"])
    write("tatoeba/tatoeba.cmn-eng.cmn", ["zh tatoeba"])
    return folder


def read(out: Path, name: str) -> list[str]:
    return (out / name).read_text(encoding="utf-8").splitlines()


def test_training_and_test_rows_are_disjoint(script: ModuleType, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script.write_all(data, out, rows=10, dev_rows=2)
    # Rows 0 to 9: premises 0 to 3 and ten hypotheses, each once, and the news.
    premises, hypotheses = ([f"zh {kind} {i}" for i in range(n)] for kind, n in (("premise", 4), ("hypothesis", 10)))
    assert sorted(read(out, "mlm.zh.txt")) == sorted([*premises, *hypotheses, "zh news"])
    assert read(out, "mlm.hi.txt") == ["hi news"]
    assert read(out, "mlm.en.txt").count("en news") == 1
    assert sorted(read(out, "bitext.en-zh.zh")) == sorted([*premises, *hypotheses])
    assert len(read(out, "bitext.en-zh.en")) == 14

    header, *rows = read(out, "nli.train.zh.tsv")
    assert header == "premise\thypo\tlabel"
    assert [row.split("\t")[1] for row in rows] == hypotheses[:8]
    assert [row.split("\t")[1] for row in read(out, "nli.dev.zh.tsv")[1:]] == hypotheses[8:]
    # Rows 10 and 11 have premise 3, which row 9 has.
    assert [row.split("\t")[1] for row in read(out, "nli.test.zh.tsv")[1:]] == [
        f"zh hypothesis {i}" for i in range(12, 20)
    ]

    def titles(part: str) -> list[str]:
        articles = json.loads((out / f"qa.{part}.en.json").read_text(encoding="utf-8"))["data"]
        return [article["title"] for article in articles]

    assert {part: titles(part) for part in ("train", "dev", "test")} == {
        "train": [*"012567"],
        "dev": [*"38"],
        "test": [*"49"],
    }
    assert read(out, "topic.test.zh.tsv")[1] == "1\tsports\tzh test"
    assert read(out, "tatoeba.en-zh.zh") == ["zh tatoeba"]


def test_missing_data_is_a_one_line_error(
    script: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (data / "qa").iterdir():
        path.unlink()
    out = tmp_path / "out"
    assert script.main([str(data), "--out", str(out), "--rows", "10", "--dev-rows", "2"]) == 2
    assert "no xquad.*.json" in capsys.readouterr().err
    assert script.main([str(data), "--out", str(out), "--rows", "10", "--dev-rows", "10"]) == 2
    assert "--dev-rows: found 10" in capsys.readouterr().err
    assert script.main([str(data), "--out", str(data)]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.skipif("PPA_FAST_TEST_DATA" not in os.environ, reason="PPA_FAST_TEST_DATA is not set")
def test_real_text_has_no_test_sentences_in_training(script: ModuleType, tmp_path: Path) -> None:
    """Neither NLI test sentences nor XQuAD test or dev contexts occur in the training text."""
    out = tmp_path / "out"
    script.write_all(Path(os.environ["PPA_FAST_TEST_DATA"]), out)
    trained = {*read(out, "mlm.en.txt")}
    tests = [row.split("\t")[0] for row in read(out, "nli.test.en.tsv")[1:]]
    assert len(tests) == 944
    assert not trained & {*tests}
    contexts = {}
    for part in ("train", "dev", "test"):
        articles = json.loads((out / f"qa.{part}.en.json").read_text(encoding="utf-8"))["data"]
        contexts[part] = {paragraph["context"] for article in articles for paragraph in article["paragraphs"]}
    assert not contexts["train"] & (contexts["dev"] | contexts["test"])
    assert sum(map(len, contexts.values())) == 240
