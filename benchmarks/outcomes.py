"""A pytest plugin that writes the outcome of each test immediately: ``-p benchmarks.outcomes --outcomes FILE``.

Each outcome is a line of JSON, ``{"test": its id, "outcome": "passed", "failed" or "skipped"}``. If a single process
collects the tests, the first line is ``{"collected": number}``. A killed run has the lines of its finished tests.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TextIO

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, metavar="FILE", help="write each test's outcome there, a line each")


def pytest_configure(config: pytest.Config) -> None:
    if (path := config.getoption("outcomes")) and not hasattr(
        config, "workerinput"
    ):  # the workers of xdist report to one process
        config.pluginmanager.register(Outcomes(path.open("w", encoding="utf-8")), "outcomes-file")


class Outcomes:
    """Writes to ``file``."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if session.items:
            self._write({"collected": len(session.items)})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # Setup and teardown count if they failed or skipped the test.
        if report.when == "call" or report.outcome != "passed":
            self._write({"test": report.nodeid, "outcome": report.outcome})

    def pytest_unconfigure(self) -> None:
        self._file.close()
