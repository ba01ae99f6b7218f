import json
import re
from pathlib import Path

import pytest

pytest.importorskip("babel", reason="Babel is not installed")
pytest.importorskip("num2words", reason="num2words is not installed")

from ppa_fast import cli
from ppa_fast.sample import demo
from ppa_fast.sample.corpus import LANGUAGES
from ppa_fast.settings import Settings, read_yaml
from tests.reporting.conftest import evaluation, write_run


def pretend(self, words, line):
    """Parses a ``ppa-fast`` command and leaves its scores: 0.9 of what was aligned, else 0.1, in English always 1."""
    assert words[0] == "ppa-fast"
    arguments = cli.build_parser().parse_args(words[1:])
    if words[1] == "align":
        Settings(**read_yaml(Settings, arguments.train_settings))
        codes = [spec.split(":")[0].split("-")[1] for spec in arguments.dev]
        records = [evaluation(step, **dict.fromkeys(codes, share)) for step, share in ((0, 0.1), (9, 0.9))]
        write_run(Path(arguments.out) / "run", [], records)
    if words[1] == "finetune":
        score = 0.9 if Path(arguments.model).name == "aligned" else 0.1
        test = {code: {"accuracy": score} for code in (spec.split(":")[0] for spec in arguments.test)}
        test["en"] = {"accuracy": 1.0}
        Path(arguments.out).mkdir()
        Path(arguments.out, "result.json").write_text(json.dumps({"runs": [{"test": test}]}))
    return 0


@pytest.fixture
def start(monkeypatch, tmp_path):
    def run(*flags):
        monkeypatch.setattr("sys.argv", ["demo", "--out", str(tmp_path), *flags])
        demo.main()

    monkeypatch.setattr(demo, "probe", lambda: 1.5)
    return run


def test_the_demo_has_valid_commands_and_ends_with_scores_before_and_after(start, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo.Stages, "execute", pretend)
    start()

    summary = json.loads((tmp_path / "summary.json").read_text())
    for time, score in enumerate((0.1, 0.9)):
        assert summary["retrieval"][time] == dict.fromkeys({*LANGUAGES} - {"en"}, score)
        assert summary["topic"][time] == {x: 1.0 if x == "en" else score for x in LANGUAGES}

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 48  # two screens of 24 lines
    minutes = round(1.5 * demo.TOTAL_TO_PROBE / 60)
    assert lines[0] == f"The demo takes about {minutes} minutes on this machine. Commands and log: {tmp_path}/demo.log"
    assert [line.split()[0] for line in lines[1:7]] == [f"[{n}/6]" for n in range(1, 7)]
    rows = [line.split() for line in lines if line.split()[:1] and line.split()[0] in {*LANGUAGES, "mean"}]
    # The mean is of the languages that were not trained on: with English it would be 18.2.
    assert sorted(rows) == sorted([x, *["10.0", "90.0"] * 2] for x in ({*LANGUAGES} - {"en"} | {"mean"}))
    text = "\n".join(lines)
    assert "(English: 100.0 before, 100.0 after)" in text
    assert "most frequent topic is 15.2 %" in text
    assert f"report:  {tmp_path}/aligned/report.html" in text


def test_output_goes_to_the_log_and_a_failure_shows_its_end(tmp_path, capfd):
    run = demo.Stages(tmp_path / "demo.log")
    run("Speak", "python", "-c", "print('aside')")
    with pytest.raises(SystemExit) as stopped:
        run("Fail", "python", "-c", "import sys; print('because'); sys.exit(3)")
    assert stopped.value.code == 3
    out = capfd.readouterr().out
    assert re.fullmatch(r"\[1/6\] Speak \(\d+ s\)", out.splitlines()[0])
    assert "because\n" in out
    assert f"the complete log is {tmp_path}/demo.log" in out
    assert "aside\n" in (tmp_path / "demo.log").read_text()


def test_debug_shows_all(capfd):
    demo.Stages(None)("Speak", "python", "-c", "print('aside')")
    out = capfd.readouterr().out
    assert "$ python -c 'print('" in out
    assert "\naside\n" in out
