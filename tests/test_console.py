"""A command shows its own log, silences other libraries, and restores them afterwards."""

from __future__ import annotations

import io
import logging
import os
import warnings

import pytest

from ppa_fast import console


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in (*console.ENVIRONMENT, console.DEBUG):
        monkeypatch.delenv(name, raising=False)


def logged(caplog, message: str) -> bool:
    """Whether a warning of DeepSpeed's logger reaches a handler."""
    logger = logging.getLogger("DeepSpeed")
    logger.addHandler(caplog.handler)
    caplog.clear()
    logger.warning(message)
    logger.removeHandler(caplog.handler)
    return bool(caplog.messages)


def test_loggers_warnings_and_environment_are_silenced_and_restored(caplog):
    with console.silenced():
        assert not logged(caplog, "Setting accelerator to CPU")
        assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"
        with warnings.catch_warnings(record=True) as caught:
            warnings.warn("old", stacklevel=1)
        assert not caught
    assert logged(caplog, "Setting accelerator to CPU")
    assert not {*console.ENVIRONMENT} & {*os.environ}


def test_the_users_settings_are_kept(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    with console.silenced():
        assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"


def test_the_output_of_a_build_is_hidden(capsys):
    with console.builds_quietly():
        print("op built successfully")
    assert capsys.readouterr().out == ""


def test_debug_silences_nothing(monkeypatch, caplog, capsys):
    monkeypatch.setenv(console.DEBUG, "1")
    with console.silenced(), console.builds_quietly():
        assert logged(caplog, "Setting accelerator to CPU")
        assert "TRANSFORMERS_VERBOSITY" not in os.environ
        print("op built successfully")
    assert capsys.readouterr().out == "op built successfully\n"


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252"])
def test_characters_that_an_encoding_lacks_are_escaped(monkeypatch, encoding):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding))
    console.show_any_character()
    print("en→xx 小 \udcff", flush=True)
    assert written.getvalue() == b"en\\u2192xx \\u5c0f \\udcff\n"
