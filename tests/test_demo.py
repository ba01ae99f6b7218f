import json
from pathlib import Path

from ppa_fast import cli, demo
from ppa_fast.data.sample import LANGUAGES


def pretend(*command):
    """Parses a ``ppa-fast`` command and leaves its scores: 0.9 of what was exported, else 0.1, in English always 1."""
    words = [str(word) for word in command]
    if words[0] != "ppa-fast":
        return
    arguments = cli.build_parser().parse_args(words[1:])
    if words[1] not in ("evaluate", "finetune"):
        return
    score = 0.9 if Path(arguments.model).name == "export" else 0.1
    if words[1] == "evaluate":
        pairs = {spec.split(":")[0]: {"a_to_b": score, "b_to_a": score} for spec in arguments.pairs}
        Path(arguments.json).write_text(json.dumps({"pairs": pairs}))
    else:
        test = {code: {"accuracy": score} for code in (spec.split(":")[0] for spec in arguments.test)}
        test["en"] = {"accuracy": 1.0}
        Path(arguments.out).mkdir()
        Path(arguments.out, "result.json").write_text(json.dumps({"runs": [{"test": test}]}))


def test_the_demo_types_valid_commands_and_ends_with_scores_before_and_after(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["demo", "--out", str(tmp_path)])
    monkeypatch.setattr(demo, "run", pretend)
    demo.main()

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["before"]["pairs"]["en-zh"]["a_to_b"] == 0.1
    assert summary["after"]["pairs"]["en-zh"]["a_to_b"] == 0.9
    for time, score in (("before", 0.1), ("after", 0.9)):
        assert summary["topic"][time] == {x: {"accuracy": 1.0 if x == "en" else score} for x in LANGUAGES}

    text = capsys.readouterr().out
    assert text.rstrip().endswith(str(tmp_path / "report.html"))
    assert "English itself: 100.0 before, 100.0 after." in text
    assert "most frequent topic is 15.2 %" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == "| language | before | after |"
    # The mean is of the languages that were not trained on: with English it would be 18.2.
    assert sorted(rows[2:]) == sorted(f"| {x} | 10.0 | 90.0 |" for x in ({*LANGUAGES} - {"en"} | {"mean"}))
