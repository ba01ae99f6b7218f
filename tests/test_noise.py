"""Other libraries are silent inside the commands, and as they were behind them."""

from __future__ import annotations

import logging
import os
import warnings

import pytest

from ppa_fast import noise


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in (*noise.ENVIRONMENT, noise.DEBUG):
        monkeypatch.delenv(name, raising=False)


def logged(caplog, message: str) -> bool:
    """Whether a warning of DeepSpeed's logger reaches a handler."""
    logger = logging.getLogger("DeepSpeed")
    logger.addHandler(caplog.handler)
    caplog.clear()
    logger.warning(message)
    logger.removeHandler(caplog.handler)
    return bool(caplog.messages)


def test_loggers_warnings_and_environment(caplog):
    with noise.silenced():
        assert not logged(caplog, "Setting accelerator to CPU")
        assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"
        with warnings.catch_warnings(record=True) as caught:
            warnings.warn("old", stacklevel=1)
        assert not caught
    assert logged(caplog, "Setting accelerator to CPU")
    assert not {*noise.ENVIRONMENT} & {*os.environ}


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    with noise.silenced():
        assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"


def test_prints_of_a_build(capsys):
    with noise.builds_quietly():
        print("op built successfully")
    assert capsys.readouterr().out == ""


def test_debug_silences_nothing(monkeypatch, caplog, capsys):
    monkeypatch.setenv(noise.DEBUG, "1")
    with noise.silenced(), noise.builds_quietly():
        assert logged(caplog, "Setting accelerator to CPU")
        assert "TRANSFORMERS_VERBOSITY" not in os.environ
        print("op built successfully")
    assert capsys.readouterr().out == "op built successfully\n"
