"""The command line: help, one line for bad input, and nothing but the package's own functions behind it."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ppa_fast
from ppa_fast import cli
from ppa_fast.data.corpus import ReadOptions
from ppa_fast.data.filters import Filters
from tests.conftest import write_config

VERBS = [
    ["sample"],
    ["tokenizer"],
    ["init"],
    ["pretrain"],
    ["prepare"],
    ["evaluate"],
    ["evaluate", "retrieval"],
    ["evaluate", "qa"],
    ["evaluate", "nli"],
    ["evaluate", "classify"],
    ["evaluate", "align"],
    ["evaluate", "mine"],
    ["finetune"],
    ["finetune", "nli"],
    ["finetune", "qa"],
    ["finetune", "classify"],
    ["export"],
    ["ablate"],
    ["doctor"],
]
PACKAGE = Path(ppa_fast.__file__).parent


def stopped(arguments: list[str], entry=cli.main) -> int:
    """The status with which argparse ends the process."""
    with pytest.raises(SystemExit) as caught:
        entry(arguments)
    return caught.value.code


def error_of(arguments: list[str], capsys, entry=cli.main) -> str:
    """The one line that bad input gives."""
    assert entry(arguments) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], err
    assert "Traceback" not in err + out
    return lines[-1]


@pytest.mark.parametrize("verb", [[], *VERBS], ids=" ".join)
def test_help(verb, capsys):
    assert stopped([*verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: ppa-fast")
    if verb not in ([], ["evaluate"], ["finetune"]):
        assert f"example:\n  ppa-fast {' '.join(verb)}" in text


def test_examples_parse(capsys):
    """The examples in a verb's help are command lines of that verb."""
    for verb in VERBS:
        stopped([*verb, "--help"])
        _, _, examples = capsys.readouterr().out.partition("example:\n")
        for example in examples.splitlines():
            arguments = cli.build_parser().parse_args(example.split()[1:])
            assert callable(arguments.work)


def test_version_is_in_one_place(capsys):
    assert stopped(["--version"]) == 0
    assert capsys.readouterr().out == f"ppa-fast {ppa_fast.__version__}\n"
    project = (PACKAGE.parent / "pyproject.toml").read_text()
    assert 'version = { attr = "ppa_fast.__version__" }' in project
    assert ppa_fast.__version__ not in project


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["align"],
        ["evaluate"],
        ["evaluate", "xnli"],
        ["evaluate", "qa", "--gold", "g.json"],
        ["evaluate", "nli", "--gold", "g.tsv", "--predictions", "p.txt", "--model", "m"],
        ["evaluate", "qa", "--gold", "g.json", "--predictions", "p.json", "--metric", "rouge"],
        ["sample", "--out", "x"],
        ["sample", "--out", "x", "--pairs", "many"],
        ["prepare", "--pairs", "en-de:a,b"],
        ["export"],
        ["init", "--tokenizer", "t", "--out", "o", "--family", "t5"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line(arguments, capsys):
    assert stopped(arguments) == 2
    assert "error: " in capsys.readouterr().err


@pytest.fixture
def here(tiny, tmp_path, monkeypatch):
    """A folder with two line-parallel files and one that is not, and a model without its tokenizer's files."""
    monkeypatch.chdir(tmp_path)
    for name, text in {"en": "a\nb\n", "de": "c\nd\n", "fr": "e\n", "one": "x\n"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "bare").mkdir()
    shutil.copy(tiny.model / "config.json", tmp_path / "bare")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sample --out new --pairs 0", "error: 0 train lines"),
        ("sample --out new --pairs -3", "error: -3 train lines"),
        ("sample --out new --pairs 5 --dev-pairs -1", "dev"),
        ("sample --out new --pairs 5 --languages de xx", "xx"),
        ("sample --out en --pairs 5", "en"),
        ("tokenizer --files absent --out new", "absent"),
        ("tokenizer --files full --out new", "full"),
        ("tokenizer --files en --out full", "full"),
        ("tokenizer --files en --out new --vocab-size 0", "vocab"),
        ("tokenizer --files en --out new --vocab-size -8", "vocab"),
        ("init --tokenizer ./absent --out new", "absent"),
        ("init --tokenizer ./bare --out new", "bare: has no vocabulary"),
        ("init --tokenizer TOKENIZER --out full", "full"),
        ("init --tokenizer TOKENIZER --out new --layers 0", "layers"),
        ("init --tokenizer TOKENIZER --out new --heads 0", "heads"),
        ("init --tokenizer TOKENIZER --out new --hidden 10 --heads 3", "heads"),
        ("init --tokenizer TOKENIZER --out new --dropout 1", "dropout"),
        ("init --tokenizer TOKENIZER --out new --dropout nan", "dropout"),
        ("init --tokenizer TOKENIZER --out new --intermediate 0", "intermediate"),
        ("prepare --pairs en-de:en,de --tokenizer ./absent --out new", "absent"),
        ("prepare --pairs en-de:en,de --tokenizer ./bare --out new", "bare: has no vocabulary"),
        ("prepare --pairs en-de:en,absent --tokenizer TOKENIZER --out new", "absent: no such file"),
        ("prepare --pairs en-de:en,fr --tokenizer TOKENIZER --out new", "en has 2 lines, fr has 1"),
        ("prepare --pairs en-qqqqq:en,de --tokenizer TOKENIZER --out new", "unknown language code 'qqqqq'"),
        ("prepare --pairs en,de --tokenizer TOKENIZER --out new", "expected 'en-de:train.en,train.de'"),
        ("prepare --pairs en-de:en,de --tokenizer TOKENIZER --out full", "full"),
        ("prepare --pairs en-de:en,de --tokenizer TOKENIZER --out new --max-tokens 0", "max.tokens"),
        ("prepare --pairs en-de:en,de --tokenizer TOKENIZER --out new --workers 0", "workers"),
        ("prepare --pairs en-de:en,de --tokenizer TOKENIZER --out new --max-rejected nan", "max.rejected"),
        ("prepare --pairs en-de:en,de --tokenizer TOKENIZER --out new --max-rejected 2", "max.rejected"),
        ("evaluate retrieval --model ./absent --pairs en-de:en,de", "absent"),
        ("evaluate retrieval --model MODEL --pairs en-de:en,fr", "en has 2 lines, fr has 1"),
        ("evaluate retrieval --model MODEL --pairs en-de:en,de --layer 9", "layer"),
        ("evaluate retrieval --model MODEL --pairs en-de:en,de --layer -1", "layer"),
        ("evaluate retrieval --model MODEL --pairs en-de:en,de --json no/such/scores.json", "--json no/such"),
        ("evaluate retrieval --model MODEL --pairs en-de:en,de --json full", "--json full"),
        ("evaluate qa --gold absent.json --predictions en --language zh", "absent.json"),
        ("evaluate qa --gold en --predictions de --language zh", "en:1: not JSON"),
        ("evaluate qa --gold en --predictions de", "--gold en: expected LANG:FILE"),
        ("evaluate qa --gold en --predictions de --language zh --json full", "--json full"),
        ("evaluate nli --gold en --predictions de", "en:1: expected JSON lines or a header"),
        ("evaluate classify --gold en:absent --model MODEL", "--gold en:absent: absent: no such file"),
        ("export absent --out new", "absent"),
        ("export full --out new", "full: not a run folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tiny, here, capsys, arguments, message):
    paths = {"TOKENIZER": str(tiny.tokenizer), "MODEL": str(tiny.model)}
    before = sorted(path.name for path in here.iterdir())
    line = error_of([paths.get(word, word) for word in arguments.split()], capsys)
    assert re.search(message, line), line
    assert not (here / "new" / "manifest.json").exists()
    assert sorted(path.name for path in here.iterdir() if path.name != "new") == before


def test_evaluate_writes_the_scores(tiny, here, capsys):
    command = ["evaluate", "retrieval", "--model", str(tiny.model), "--pairs", "en-de:en,de", "--json", "scores.json"]
    assert cli.main(command) == 0
    scores = json.loads((here / "scores.json").read_text())
    assert scores["pairs"]["en-de"]["n"] == 2
    assert 0 <= scores["mean"] <= 1
    assert "en-de" in capsys.readouterr().out


def test_predictions_in_files_are_scored_without_torch(here):
    questions = [{"id": "1", "answers": [{"text": "北京 大学"}]}]
    (here / "gold.json").write_text(json.dumps({"data": [{"paragraphs": [{"qas": questions}]}]}))
    (here / "answers.json").write_text(json.dumps({"1": "北京大学。"}))
    command = ["evaluate", "qa", "--gold", "gold.json", "--predictions", "answers.json", "--language", "zh"]
    command += ["--json", "scores.json"]
    script = f"import sys\nfrom ppa_fast import cli\nassert cli.main({command}) == 0\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], cwd=here, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].split() == ["zh", "100.0", "100.0", "1"]
    scores = json.loads((here / "scores.json").read_text())
    assert (scores["exact_match"], scores["f1"]) == (100.0, 100.0)

    (here / "gold.tsv").write_text("premise\thypo\tlabel\na\tb\tneutral\nc\td\tentailment\n")
    (here / "labels.txt").write_text("neutral\nneutral\n")
    assert cli.main(["evaluate", "nli", "--gold", "gold.tsv", "--predictions", "labels.txt", "--json", "n.json"]) == 0
    assert json.loads((here / "n.json").read_text())["accuracy"] == 0.5


# The functions behind it.


@pytest.mark.parametrize("name", ["prepare", "train", "export", "evaluate"])
def test_the_four_functions_are_attributes_of_the_package(name):
    function = getattr(ppa_fast, name)
    assert callable(function)
    assert function.__name__ == name
    assert name in ppa_fast.__all__


def test_another_attribute_is_not_there():
    with pytest.raises(AttributeError, match="module 'ppa_fast' has no attribute 'align'"):
        _ = ppa_fast.align


def test_how_files_are_read(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr("ppa_fast.data.prepare.prepare", lambda *_, **options: calls.append(options["options"]))
    command = ["prepare", "--pairs", "en-de:a", "--tokenizer", "t", "--out", "o"]
    assert cli.main([*command, "--format", "csv", "--columns", "src,tgt", "--score-column", "laser"]) == 0
    assert calls == [ReadOptions("csv", ("src", "tgt"), "laser")]
    assert cli.main([*command, "--columns", "src"]) == 2
    assert "--columns src: expected two names, A,B" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("prepare", ["prepare", "--pairs", "en-de:a,b", "--tokenizer", "t", "--out", "o"]),
        ("evaluate", ["evaluate", "retrieval", "--model", "m", "--pairs", "en-de:a,b"]),
        ("export", ["export", "run", "--out", "o", "--checkpoint", "best"]),
    ],
)
def test_the_command_calls_the_packages_function(monkeypatch, capsys, name, command):
    calls = []

    def fake(*arguments, **options):
        calls.append((arguments, options))
        return {"pairs": {"en-de": {"a_to_b": 0.5, "b_to_a": 1.0, "n": 2}}, "mean": 0.75}

    monkeypatch.setattr(importlib.import_module(ppa_fast._HOME[name]), name, fake)
    assert getattr(ppa_fast, name) is fake
    assert cli.main(command) == 0
    assert len(calls) == 1
    given = {*map(str, calls[0][0]), *map(str, calls[0][1].values())}
    expected = {
        "prepare": {
            "['en-de:a,b']",
            "t",
            "o",
            "126",
            "None",
            "0.05",
            "[]",
            str(Filters()),
            "False",
            str(ReadOptions()),
        },
        "evaluate": {"retrieval", "m", "['en-de:a,b']", "None"},
        "export": {"run", "o", "best"},
    }
    assert given == expected[name]


def test_filters_are_flags_of_prepare(monkeypatch):
    calls = []
    monkeypatch.setattr(
        importlib.import_module("ppa_fast.data.prepare"), "prepare", lambda *_, **named: calls.append(named)
    )
    command = "prepare --multi en:a de:b --multi en:c fr:d --pivots en de --tokenizer t --out o --length-ratio 3"
    command += " --min-length 2 --max-length 9 --drop-identical --keep-match a b --keep-match c --drop-match d"
    assert cli.main([*command.split(), "--min-score", "-1.5", "--deduplicate"]) == 0
    (named,) = calls
    filters = Filters(3.0, 2, 9, True, ("a", "b", "c"), ("d",), -1.5)
    assert (named["filters"], named["deduplicate"], named["pivots"]) == (filters, True, ["en", "de"])
    assert named["multi"] == [["en:a", "de:b"], ["en:c", "fr:d"]]


def test_train_calls_the_packages_function(monkeypatch):
    calls = []
    monkeypatch.setattr("ppa_fast.training.loop.train", calls.append)
    assert ppa_fast.train == calls.append
    command = ["--local_rank=0", "--deepspeed_config", "ds.json", "--model", "m", "--data", "d", "--output", "o"]
    assert cli.main_train([*command, "--epochs", "2"]) == 0
    (settings,) = calls
    assert (settings.deepspeed_config, settings.model, settings.data, settings.output) == ("ds.json", "m", ["d"], "o")
    assert (settings.epochs, settings.steps) == (2.0, None)


# Training's own entry.


def test_a_signal_before_the_loop_ends_training_by_an_exception(monkeypatch):
    """What is under way, such as DeepSpeed's first compilation, can let go of its lock."""
    monkeypatch.setattr("ppa_fast.training.loop.train", lambda settings: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    try:
        command = ["--deepspeed_config", "ds.json", "--model", "m", "--data", "d", "--output", "o"]
        assert stopped(command, cli.main_train) == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "model: not given"),
        ("--model MODEL --data STORE --output run", "deepspeed_config: not given"),
        ("--model MODEL --data STORE --output run --deepspeed_config absent.json", "absent.json: No such file"),
        ("--model MODEL --data ./absent --output run --deepspeed_config ds.json", "absent: no such store"),
        ("--model ./absent --data STORE --output run --deepspeed_config ds.json", "absent"),
        ("--model MODEL --data STORE --output full --deepspeed_config ds.json", "full holds thesis.tex"),
        ("--model MODEL --data STORE --output run --deepspeed_config ds.json --queue-size 3", "queue_size: found 3"),
        ("--settings absent.yaml", "settings: absent.yaml: No such file"),
        ("--steps 3 --epochs 1", "steps and epochs: found both"),
        ("--momentum 1.5", "momentum: found 1.5"),
        ("--learning-rate fast", "learning_rate: found 'fast'"),
    ],
)
def test_train_says_what_is_wrong_in_one_line(tiny, here, capsys, monkeypatch, arguments, message):
    monkeypatch.delenv("RANK", raising=False)
    write_config(here / "ds.json")
    paths = {"STORE": str(tiny.store), "MODEL": str(tiny.model)}
    line = error_of([paths.get(word, word) for word in arguments.split()], capsys, cli.main_train)
    assert message in line
    assert not (here / "run").exists()


def test_other_ranks_leave_the_message_to_rank_0(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert cli.main_train([]) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("arguments", [["--optimizer", "adam"], ["--pooling", "max"], ["--deepspeed", "x"], ["extra"]])
def test_train_with_a_wrong_command_line(arguments, capsys):
    assert stopped(arguments, cli.main_train) == 2
    assert "error: " in capsys.readouterr().err


def test_train_as_a_script_imports_the_package_and_nothing_of_it_as_top_level(tmp_path):
    """``deepspeed ppa_fast/train.py`` puts ppa_fast/ first on sys.path, where settings.py, data/ … would shadow."""
    script = os.path.relpath(PACKAGE / "train.py", tmp_path)
    spy = "import atexit, sys\natexit.register(lambda: print('sys.path:', *sys.path, sep='\\n', file=sys.stderr))\n"
    (tmp_path / "sitecustomize.py").write_text(spy)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{PACKAGE.parent}"}
    command = [sys.executable, "-X", "importtime", script, "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "--deepspeed-config" in done.stdout
    assert "--eval-every" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time:" in line}
    assert {"ppa_fast.cli", "ppa_fast.settings"} <= imported
    own = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()} - {"__init__"}
    assert {"settings", "errors", "data", "training"} <= own
    assert not {name.partition(".")[0] for name in imported} & own
    _, found, path = done.stderr.rpartition("sys.path:\n")
    assert found
    assert PACKAGE not in {(tmp_path / entry).resolve() for entry in path.splitlines()}
    assert PACKAGE.parent in {(tmp_path / entry).resolve() for entry in path.splitlines()}


def test_train_as_a_script_ends_with_status_2_for_bad_input(tmp_path):
    done = subprocess.run(
        [sys.executable, str(PACKAGE / "train.py"), "--steps", "0"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "RANK"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: steps: found 0, expected more than 0"]
