"""Progress: lines in a log, a bar on a terminal, nothing with --quiet."""

from __future__ import annotations

import io
import logging
import re

import pytest

from ppa_fast import progress
from ppa_fast.console import shown
from ppa_fast.progress import Progress

LOG = logging.getLogger("ppa_fast.subject")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds that ``progress`` reads; tests set it."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_has_a_line_every_ten_seconds_and_one_at_the_end(clock, capsys):
    with Progress("encode", 1000, "lines", initial=100) as bar:
        for clock[0] in (4.0, 10.0, 16.0, 20.0):
            bar.update(100, note="loss 1.5")
    assert capsys.readouterr().err.splitlines() == [
        "encode: 300 of 1,000 lines (30%), 20.0 lines/s, 35 s left | loss 1.5",
        "encode: 500 of 1,000 lines (50%), 20.0 lines/s, 25 s left | loss 1.5",
        "encode: 500 of 1,000 lines (50%), 20.0 lines/s, 25 s left | loss 1.5",
    ]


def test_without_a_total_only_the_rate_is_shown(clock, capsys):
    with Progress("read", None, "lines") as bar:
        clock[0] = 10.0
        bar.update(50)
    assert capsys.readouterr().err.splitlines()[0] == "read: 50 lines, 5.0 lines/s"


def test_short_work_writes_nothing_to_a_log(clock, capsys):
    with Progress("encode", 1000, "lines") as bar:
        clock[0] = 9.0
        bar.update(1000)
    assert capsys.readouterr().err == ""


def test_a_failure_writes_no_last_line(clock, capsys):
    bar = Progress("encode", 1000, "lines")
    clock[0] = 60.0
    bar.__exit__(ValueError, ValueError("bad"), None)
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar_and_notes_above_it(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with shown(), Progress("encode", 10, "lines") as bar:
        bar.update(5)
        LOG.info("worth knowing")
    text = terminal.getvalue()
    assert "encode:" in text
    assert "5/10" in text
    assert re.search(r"\r +\rworth knowing\n", text)  # the bar is erased first, and drawn again below


def test_quiet_disables_log_lines_and_bar(monkeypatch, clock, capsys):
    monkeypatch.setenv(progress.QUIET, "1")
    with Progress("encode", 1000, "lines") as bar:
        clock[0] = 60.0
        bar.update(1)
    with shown():
        LOG.warning("worth knowing")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress("encode", 1000, "lines") as bar:
        bar.update(1)
    with shown():
        LOG.warning("worth knowing")
    assert capsys.readouterr() == ("", "")
    assert terminal.getvalue() == ""


def test_quiet_0_is_not_quiet(monkeypatch, capsys):
    monkeypatch.setenv(progress.QUIET, "0")
    with shown():
        LOG.info("worth knowing")
        LOG.warning("worth more")
    assert capsys.readouterr().err == "worth knowing\nwarning: worth more\n"
    LOG.info("the log is the caller's again")
    assert capsys.readouterr().err == ""
