"""benchmarks/peers.py: the comparison runs, is resumed, and its tables say what was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.benchmarks.test_real_text import SCRIPT, TRAIN, data

sys.path.insert(0, str(SCRIPT.parent))
import peers_report

__all__ = ["data"]


def points(*scores: float) -> list[dict[str, float]]:
    return [{"step": i, "seconds": 10.0 * i, "held_out": s, "tatoeba": s / 2} for i, s in enumerate(scores)]


def test_time_to_a_score_is_linear_between_points() -> None:
    assert peers_report.time_to(points(0, 20, 40), "held_out", 30) == 15
    assert peers_report.time_to(points(0, 20, 40), "held_out", 20) == 10
    assert peers_report.time_to(points(0, 20, 40), "held_out", 41) is None
    assert peers_report.time_to(points(0, 20, 15, 40), "tatoeba", 5) == 5


def test_the_table_compares_with_the_best_peer_of_the_same_seed() -> None:
    p_at_1 = {
        "MNRL": [(10, 20), (10, 30), (10, 25)],
        "ours, retrieval": [(20, 40), (30, 50), (25, 45)],
        "ours, paper": [(1, 2)] * 3,
    }
    runs = {
        name: {str(seed): {"points": points(0, *values)} for seed, values in enumerate(seeds)}
        for name, seeds in p_at_1.items()
    }
    speed = {"MNRL": {"pairs_per_s": 100.4, "peak_bytes": 2**21}}
    table = peers_report.markdown(runs, speed)
    assert "| ours, retrieval | 45.0 (40.0 to 50.0) | 22.5 (20.0 to 25.0) | 20 | 0.50× | 0.50× |" in table
    assert "| ours, paper | 2.0 | 1.0 | 20 | not reached | not reached |" in table
    assert "| MNRL | 100 | 2 |" in table
    del runs["ours, retrieval"]["0"], runs["ours, retrieval"]["1"]
    runs["ours, retrieval"]["2"]["points"] = points(0, 12.5, 25)
    assert "| ours, retrieval | 25.0 | 12.5 | 20 | 1.00× | 1.00× |" in peers_report.markdown(runs, speed)
    del runs["MNRL"]
    assert "| ours, retrieval | 25.0 | 12.5 | 20 | – | – |" in peers_report.markdown(runs, speed)


def test_the_time_without_the_store_is_in_parentheses() -> None:
    peer, ours = points(0, 20, 40), [{**point, "seconds": point["seconds"] / 2 + 5} for point in points(0, 20, 40)]
    runs = {"MNRL": {"0": {"points": peer}}, "ours, retrieval": {"0": {"points": ours}}}
    assert "| ours, retrieval | 40.0 | 20.0 | 15 | 0.75× (0.50×) | 0.75× (0.50×) |" in peers_report.markdown(runs, {})


@pytest.mark.slow
def test_a_toy_comparison(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The languages are those of the folder; a second call runs nothing again."""
    pytest.importorskip("sentence_transformers")
    import peers

    sizes = {"rows": TRAIN, "batch": 8, "hidden": 32, "vocab-size": 300, "steps": 5, "seeds": 0}
    command = [str(data), "--out", str(tmp_path), "--only", "MNRL", "ours, retrieval"]
    command += [f"--{name}={value}" for name, value in sizes.items()]
    assert peers.main(command) == 0
    folder = tmp_path / "random"
    result = json.loads((folder / "random.json").read_text(encoding="utf-8"))
    assert set(result["runs"]) == set(result["speed"]) == {"MNRL", "ours, retrieval"}
    theirs, ours = (result["runs"][name]["0"]["points"] for name in ("MNRL", "ours, retrieval"))
    assert [point["step"] for point in ours] == [point["step"] for point in theirs] == [0, 1, 2, 3, 4, 5]
    assert {key: ours[0][key] for key in ("held_out", "tatoeba")} == pytest.approx(
        {key: theirs[0][key] for key in ("held_out", "tatoeba")}, abs=2
    )
    assert (folder / "random.svg").is_file()
    capfd.readouterr()
    assert peers.main(command) == 0
    assert "steps" not in capfd.readouterr().out
