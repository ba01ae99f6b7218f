"""Parses a shell block without executing it: bash handles the quoting, and the programs' own parsers the arguments."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ppa_fast import cli
from ppa_fast.errors import UserError
from ppa_fast.settings import Settings, from_arguments
from tests.docs.pages import ROOT, Block
from tests.docs.scratch import run, write_programs

NOTE = 'printf "%s\\0" "${0##*/}" "$@" > "$(mktemp "$NOTES/XXXXXXXX")"'
PARSED = ("ppa-fast", "deepspeed", "python", "python3", "make")
FOREIGN = ("pip", "scontrol", "scancel", "sbatch", "squeue", "ssh", "git")  # known programs without a parser of ours
STAND_INS = dict.fromkeys((*PARSED, *FOREIGN), NOTE) | {"srun": 'exec "$@"'}
# Bash calls this function for a program that it does not find.
MISSING = 'command_not_found_handle() { printf "%s\\0" "no such program:" "$@" > "$(mktemp "$NOTES/XXXXXXXX")"; }\n'
MISSING += "export -f command_not_found_handle\n"


class Parsed(BaseException):
    """Stops a program after its parser has accepted the command line."""


def noted_commands(text: str, folder: Path) -> list[list[str]]:
    """Returns the words of the commands that bash finds in a block. Runs it in ``folder`` with stand-ins for the
    programs."""
    syntax = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert not syntax.stderr, syntax.stderr
    programs, notes = folder.with_name(f"{folder.name}.programs"), folder.with_name(f"{folder.name}.notes")
    if not programs.exists():
        write_programs(programs, STAND_INS)
    notes.mkdir()
    run("sh", MISSING + text, folder, programs, NOTES=str(notes))
    found = [file.read_text(encoding="utf-8").split("\0")[:-1] for file in notes.iterdir()]
    for file in notes.iterdir():
        file.unlink()
    notes.rmdir()
    return found


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises AssertionError for a command that its program would refuse."""
    program, *arguments = words
    assert program != "no such program:", " ".join(words)
    for word in arguments:
        if re.match(r"(ppa_fast|ds_configs|benchmarks|docs|tests)/", word):
            assert (ROOT / word).exists(), f"{' '.join(words)}: {word} is not there"
    if program == "make":
        done = subprocess.run(
            ["make", "--dry-run", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    elif program in PARSED:
        options = _parse_arguments(program, arguments, monkeypatch)
        if hasattr(options, "deepspeed_config"):
            try:
                from_arguments(Settings, options)
            except UserError as error:
                raise AssertionError(f"{' '.join(words)}: {error}") from error


def _parse_arguments(program: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns the result of the program's parser; for ``deepspeed``, the result of the script's parser."""
    if program == "deepspeed":
        options = _run_until_parsed(lambda: _launcher()(arguments), monkeypatch)
        words = [options.user_script, *options.user_args]
        program, *arguments = words if options.no_python else ["python", *words]
        return _parse_arguments(program, arguments, monkeypatch)
    if program == "ppa-fast":
        return _run_until_parsed(lambda: cli.main(arguments), monkeypatch)
    if arguments[0] == "-c":
        return compile(arguments[1], "-c", "exec")
    module = arguments[0] == "-m"
    name, given = (arguments[1], arguments[2:]) if module else (arguments[0], arguments[1:])
    if name in ("pytest", "setup.py"):
        return None
    monkeypatch.setattr(sys, "argv", [name, *given])
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    if module:
        return _run_until_parsed(lambda: runpy.run_module(name, run_name="__main__"), monkeypatch)
    return _run_until_parsed(lambda: runpy.run_path(str(ROOT / name), run_name="__main__"), monkeypatch)


def _launcher() -> Any:
    from deepspeed.launcher import runner

    return runner.main


def _run_until_parsed(program: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        raise Parsed(parse_args(self, args, namespace))

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                program()
        except Parsed as parsed:
            return parsed.args[0]
        except SystemExit as end:
            if end.code in (0, None):  # --help, --version
                return None
            raise AssertionError(f"refused: {said.getvalue().splitlines()[-1]}") from end
    raise AssertionError("ended without parsing its command line")


def parse_block(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises AssertionError, which names the block, for an invalid block."""
    try:
        if block.language == "python":
            compile(block.text, block.where, "exec")
        else:
            for words in noted_commands(block.text, folder):
                parse(words, monkeypatch)
    except (AssertionError, SyntaxError) as error:
        raise AssertionError(f"{block.where}: {error}") from error
