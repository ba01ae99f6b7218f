"""The command line: help, one-line errors for invalid input, and calls of the functions of the package."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ppa_fast
from ppa_fast import cli, progress
from ppa_fast.errors import UserError
from ppa_fast.settings import Filters, ReadOptions
from tests.conftest import write_config

VERBS = [
    ["align"],
    ["sample"],
    ["tokenizer"],
    ["init"],
    ["pretrain"],
    ["prepare"],
    ["train"],
    ["evaluate"],
    ["evaluate", "retrieval"],
    ["evaluate", "qa"],
    ["evaluate", "nli"],
    ["evaluate", "classify"],
    ["evaluate", "tagging"],
    ["evaluate", "align"],
    ["evaluate", "mine"],
    ["evaluate", "suite"],
    ["finetune"],
    ["export"],
    ["report"],
    ["ablate"],
    ["doctor"],
    ["completion"],
]
PACKAGE = Path(ppa_fast.__file__).parent


def stopped(arguments: list[str], entry=cli.main) -> int:
    """Returns the status with which argparse exits."""
    with pytest.raises(SystemExit) as caught:
        entry(arguments)
    return caught.value.code


def error_of(arguments: list[str], capsys, entry=cli.main) -> str:
    """Returns the error line of an invalid command."""
    assert entry(arguments) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], err
    assert "Traceback" not in err + out
    return lines[-1]


@pytest.mark.parametrize("verb", [[], *VERBS], ids=" ".join)
def test_help_lists_the_verbs(verb, capsys):
    assert stopped([*verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: ppa-fast")
    if verb:
        assert re.search(rf"\nexamples?:\n  ppa-fast {' '.join(verb)}", text)
        assert "--quiet" in text
        assert "--debug" in text


def test_every_verb_is_tested_here():
    def leaves(parser, path):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, verb in action.choices.items():
                    yield [*path, name]
                    yield from leaves(verb, [*path, name])

    assert sorted(leaves(cli.build_parser(), [])) == sorted(VERBS)


def test_examples_parse(capsys):
    """The examples in a verb's help are command lines of that verb."""
    for verb in ([], *VERBS):
        stopped([*verb, "--help"])
        *_, examples = re.split(r"\n(?:examples?|a first run):\n", capsys.readouterr().out)
        for example in examples.partition("\n\n")[0].splitlines():
            words = shlex.split(example.partition(" > ")[0])
            assert words[0] == "ppa-fast"
            assert words[1 : 1 + len(verb)] == verb
            assert callable(cli.build_parser().parse_args(words[1:]).work)


def test_the_version_is_defined_once(capsys):
    assert stopped(["--version"]) == 0
    assert capsys.readouterr().out == f"ppa-fast {ppa_fast.__version__}\n"
    project = (PACKAGE.parent / "pyproject.toml").read_text()
    assert 'version = { attr = "ppa_fast.version.__version__" }' in project
    assert ppa_fast.__version__ not in project


@pytest.mark.parametrize(
    "arguments",
    [
        ["align"],
        ["evaluate"],
        ["evaluate", "xnli"],
        ["finetune", "--model", "m"],
        ["finetune", "xnli", "--model", "m"],
        ["evaluate", "qa", "--gold", "g.json", "--predictions", "p.json", "--metric", "rouge"],
        ["sample", "--out", "x"],
        ["prepare", "--pairs", "en-de:a,b"],
        ["export"],
        ["init", "--tokenizer", "t", "--out", "o", "--family", "t5"],
    ],
    ids=" ".join,
)
def test_an_invalid_command_line_is_an_error(arguments, capsys):
    assert stopped(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"error: .* \(see ppa-fast.* --help\)", line)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [("qa --gold g", "neither"), ("nli --gold g --predictions p --model m", r"both \(\['p'\] and m\)")],
)
def test_predictions_and_a_model_are_exclusive(arguments, found, capsys):
    message = error_of(["evaluate", *arguments.split()], capsys)
    assert re.fullmatch(rf"error: predictions and model: found {found}, expected one of them", message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trian --model m", "argument VERB: found 'trian' (did you mean train?), expected one of sample, tokenizer"),
        ("evaluate retreival", "found 'retreival' (did you mean retrieval?)"),
        ("train --modle m", "unknown flag --modle (did you mean --model?) (see ppa-fast train --help)"),
        ("prepare --tokeniser=t", "unknown flag --tokeniser (did you mean --tokenizer?)"),
        ("init --family robert", "found 'robert' (did you mean bert?), expected one of bert, xlm-roberta"),
        ("finetune nli --local_rank=0 --modle m", "unknown flag --modle (did you mean --model?)"),
        ("export run --zzz 1 --out o", "error: unknown flag --zzz (see ppa-fast export --help)"),
    ],
)
def test_a_similar_word_is_suggested(arguments, message, capsys):
    assert stopped(arguments.split()) == 2
    assert message in capsys.readouterr().err


def test_without_a_verb_the_overview_is_printed(capsys):
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    for line in ("a first run:", "  ppa-fast align ", "exit status:", "    prepare "):
        assert line in text


@pytest.fixture
def here(tiny, tmp_path, monkeypatch):
    """A folder with two line-parallel files, one file that is not parallel, and a model without tokenizer files."""
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
        ("sample --out new --pairs many", "error: pairs: found 'many', expected a whole number"),
        ("sample --out new --pairs 0", "error: train: found 0 lines, expected 1 to"),
        ("sample --out new --pairs -3", "error: train: found -3 lines, expected 1 to"),
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
        ("evaluate nli --gold en --predictions de", "en:1: found .*, expected JSON lines or a header"),
        ("evaluate classify --gold en:absent --model MODEL", "--gold en:absent: absent: no such file"),
        ("export absent --out new", "absent"),
        ("export full --out new", "full: not a run folder"),
    ],
)
def test_invalid_input_gives_a_one_line_error_and_status_2(tiny, here, capsys, arguments, message):
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


# The functions of the package.


@pytest.mark.parametrize("name", ["align", "prepare", "train", "export", "evaluate"])
def test_the_functions_are_attributes_of_the_package(name):
    function = getattr(ppa_fast, name)
    assert callable(function)
    assert function.__name__ == name
    assert name in ppa_fast.__all__


def test_an_unknown_attribute_is_an_error():
    with pytest.raises(AttributeError, match="module 'ppa_fast' has no attribute 'realign'"):
        _ = ppa_fast.realign


def test_read_options_are_passed_to_prepare(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr("ppa_fast.data.store.prepare.prepare", lambda *_, **options: calls.append(options["options"]))
    command = ["prepare", "--pairs", "en-de:a", "--tokenizer", "t", "--out", "o"]
    assert cli.main([*command, "--format", "csv", "--columns", "src,tgt", "--score-column", "laser"]) == 0
    assert calls == [ReadOptions("csv", ("src", "tgt"), "laser")]
    assert cli.main([*command, "--columns", "src"]) == 2
    assert "columns: found 'src', expected two names, A,B" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("prepare", ["prepare", "--pairs", "en-de:a,b", "--tokenizer", "t", "--out", "o"]),
        ("evaluate", ["evaluate", "retrieval", "--model", "m", "--pairs", "en-de:a,b"]),
        ("export", ["export", "run", "--out", "o", "--checkpoint", "best"]),
    ],
)
def test_the_command_calls_the_function_of_the_package(monkeypatch, capsys, name, command):
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
            "0.5",
            "1.0",
            "[]",
            str(ReadOptions()),
            str(Filters()),
            "False",
        },
        "evaluate": {"retrieval", "m", "['en-de:a,b']", "None"},
        "export": {"run", "o", "best", "None"},
    }
    assert given == expected[name]


def test_filters_are_flags_of_prepare(monkeypatch):
    calls = []
    monkeypatch.setattr(
        importlib.import_module("ppa_fast.data.store.prepare"), "prepare", lambda *_, **named: calls.append(named)
    )
    command = "prepare --multi en:a de:b --multi en:c fr:d --pivots en de --tokenizer t --out o --length-ratio 3"
    command += " --min-length 2 --max-length 9 --drop-identical --keep-match a b --keep-match c --drop-match d"
    command += " --exclude en-de:e,f"
    assert cli.main([*command.split(), "--min-score", "-1.5", "--deduplicate"]) == 0
    (named,) = calls
    filters = Filters(3.0, 2, 9, True, ("a", "b", "c"), ("d",), -1.5, ("en-de:e,f",))
    assert (named["filters"], named["deduplicate"], named["pivots"]) == (filters, True, ["en", "de"])
    assert named["multi"] == [["en:a", "de:b"], ["en:c", "fr:d"]]


def test_train_calls_the_function_of_the_package(monkeypatch):
    calls = []
    monkeypatch.setattr("ppa_fast.training.trainer.train", calls.append)
    assert ppa_fast.train == calls.append
    command = ["--local_rank=0", "--deepspeed_config", "ds.json", "--model", "m", "--data", "d", "--output", "o"]
    assert cli.main_train([*command, "--epochs", "2"]) == 0
    (settings,) = calls
    assert (settings.deepspeed_config, settings.model, settings.data, settings.output) == ("ds.json", "m", ["d"], "o")
    assert (settings.epochs, settings.steps) == (2.0, None)


# The exit of a command.


def failing(error):
    def work():
        raise error

    return work


@pytest.fixture
def doctor(monkeypatch, tmp_path):
    """Replaces the work of ``ppa-fast doctor``."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("RANK", raising=False)
    return lambda work: monkeypatch.setattr("ppa_fast.doctor.main", work)


def test_an_internal_error_is_one_line_and_its_traceback_is_saved(doctor, capsys, tmp_path):
    doctor(failing(KeyError("tokens")))
    assert cli.main(["doctor"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    (file,) = tmp_path.iterdir()
    assert line == f"internal error: KeyError: 'tokens'; see the traceback in {file}, or run again with --debug"
    assert file.read_text().splitlines()[0] == "Traceback (most recent call last):"
    assert "in work" in file.read_text()


@pytest.mark.parametrize("arguments", [["doctor", "--debug"], ["--debug", "doctor"]], ids=" ".join)
@pytest.mark.parametrize(("error", "status"), [(KeyError("tokens"), 1), (UserError("--out: bad"), 2)])
def test_debug_shows_the_traceback(doctor, capsys, tmp_path, arguments, error, status):
    doctor(failing(error))
    assert cli.main(arguments) == status
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == "Traceback (most recent call last):"
    assert last in ("internal error: KeyError: 'tokens'; the traceback is above", "error: --out: bad")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError("1 TiB"), 1, "error: out of memory (1 TiB); reduce train_micro_batch_size_per_gpu in the "),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), 1, "error: out of memory (CUDA out of memory.); "),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "error: out of memory (DefaultCPUAllocator"),
        (PermissionError(13, "Permission denied", "store"), 2, "error: store: Permission denied"),
        (UserError("--out: bad"), 2, "error: --out: bad"),
    ],
)
def test_each_error_has_a_status_and_a_line(doctor, capsys, tmp_path, error, status, message):
    doctor(failing(error))
    assert cli.main(["doctor"]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["doctor", "--quiet"], ["--quiet", "doctor"], ["doctor"]], ids=" ".join)
def test_quiet_keeps_results_and_errors(doctor, capsys, arguments):
    def work():
        logging.getLogger("ppa_fast.subject").info("worth knowing")
        print("the result")
        raise UserError("--out: bad")

    doctor(work)
    assert cli.main(arguments) == 2
    notes = [] if "--quiet" in arguments else ["worth knowing"]
    out, err = capsys.readouterr()
    assert (out, err.splitlines()) == ("the result\n", [*notes, "error: --out: bad"])
    assert progress.QUIET not in os.environ


SCRIPT = """
import argparse, os, signal, sys
from ppa_fast.cli.status import run
def work(arguments):
    try:
        print("ready", flush=True)
        {work}
    finally:
        print("undone", file=sys.stderr)
sys.exit(run(work, argparse.Namespace(quiet=False, debug=False)))
"""


@pytest.mark.parametrize(
    ("number", "status", "errors"),
    [(signal.SIGINT, 130, ["undone", "interrupted"]), (signal.SIGTERM, 143, ["undone"])],
)
def test_a_signal_undoes_incomplete_work(number, status, errors):
    command = [sys.executable, "-c", SCRIPT.format(work="signal.pause()")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err.splitlines()) == (status, errors)


def test_a_closed_stdout_is_not_an_error():
    command = [sys.executable, "-c", SCRIPT.format(work="print('x\\n' * 1_000_000)")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == "undone\n"
    assert process.returncode == 0


def test_another_broken_pipe_is_an_error():
    """For example of a worker that has exited: the command has not done its work."""
    work = "r, w = os.pipe(); os.close(r); os.write(w, b'x')"
    command = [sys.executable, "-c", SCRIPT.format(work=work)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "internal error: BrokenPipeError" in done.stderr


# Completion.


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_bash_completes_verbs_flags_choices_and_files(tmp_path, capsys):
    assert cli.main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "store").mkdir()
    (tmp_path / "stored.tsv").touch()
    lines = {
        "ppa-fast tok": {"tokenizer"},
        "ppa-fast evaluate re": {"retrieval"},
        "ppa-fast train --data sto": {"store", "stored.tsv"},
        "ppa-fast export sto": {"store", "stored.tsv"},
        "ppa-fast train --deepspeed-c": {"--deepspeed-config"},
        "ppa-fast init --family x": {"xlm-roberta"},
        "ppa-fast completion z": {"zsh"},
    }
    asked = "source ./script\n"
    for line in lines:
        words = line.split()
        asked += f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMPREPLY=()\n"
        asked += f'_shtab_ppa_fast ppa-fast {words[-1]} {words[-2]}; echo "${{COMPREPLY[*]}}"\n'
    done = subprocess.run(["bash", "--norc"], input=asked, cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""
    assert [set(line.split()) for line in done.stdout.splitlines()] == list(lines.values())


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_a_completion_script(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    assert "retrieval" in capsys.readouterr().out


# The entry point of training.


def test_a_signal_before_the_training_loop_raises_an_exception(monkeypatch):
    """Work in progress, such as DeepSpeed's first compilation, can then release its lock."""
    monkeypatch.setattr("ppa_fast.training.trainer.train", lambda settings: os.kill(os.getpid(), signal.SIGTERM))
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
def test_train_reports_an_error_in_one_line(tiny, here, capsys, monkeypatch, arguments, message):
    monkeypatch.delenv("RANK", raising=False)
    write_config(here / "ds.json")
    paths = {"STORE": str(tiny.store), "MODEL": str(tiny.model)}
    line = error_of([paths.get(word, word) for word in arguments.split()], capsys, cli.main_train)
    assert message in line
    assert not (here / "run").exists()


def test_only_rank_0_prints_the_error(capsys, monkeypatch):
    def fail(settings):
        raise UserError("model: not given")

    monkeypatch.setattr("ppa_fast.training.trainer.train", fail)
    for rank, printed in ((0, "error: model: not given\n"), (1, "")):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert cli.main_train([]) == 2
        assert capsys.readouterr().err == printed


@pytest.mark.parametrize("arguments", [["--optimizer", "adam"], ["--pooling", "max"], ["--deepspeed", "x"], ["extra"]])
def test_train_with_an_invalid_command_line_is_an_error(arguments, capsys):
    assert stopped(arguments, cli.main_train) == 2
    assert "error: " in capsys.readouterr().err


def test_train_as_a_script_imports_no_module_of_the_package_as_top_level(tmp_path):
    """``deepspeed ppa_fast/train.py`` puts ppa_fast/ first on sys.path, where settings/, data/ and others would shadow
    installed packages."""
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


def test_train_as_a_script_exits_with_status_2_for_invalid_input(tmp_path):
    done = subprocess.run(
        [sys.executable, str(PACKAGE / "train.py"), "--steps", "0"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "RANK"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: steps: found 0, expected more than 0"]


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], [], ["completion", "bash"]])
def test_a_full_disk_behind_stdout(words):
    """One line and status 2; the interpreter adds nothing when it exits."""
    program = "import sys; from ppa_fast import cli; sys.exit(cli.main())"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program, *words], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.stderr == (
        "error: the output cannot be written: no space is left on the device; free some space and run the same command "
        "again\n"
    )
    assert done.returncode == 2


def test_help_shows_on_a_terminal_of_any_encoding():
    program = "import sys; from ppa_fast import cli; sys.exit(cli.main())"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for words in VERBS:
        done = subprocess.run(
            [sys.executable, "-c", program, *words, "--help"], env=environment, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, ""), words


@pytest.mark.parametrize(("rank", "ranks", "shown"), [("1", "2", False), ("1", None, True), ("x", "2", True)])
def test_only_an_error_that_the_first_rank_shows_too_is_hidden(monkeypatch, capsys, rank, ranks, shown):
    monkeypatch.setenv("RANK", rank)
    if ranks:
        monkeypatch.setenv("WORLD_SIZE", ranks)
    assert cli.main(["init", "--tokenizer", "/absent", "--out", "new"]) == 2
    assert ("no such folder" in capsys.readouterr().err) == shown
