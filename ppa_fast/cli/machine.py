"""The command on this machine: ``ppa-fast doctor`` and ``completion``; argument parsing only."""

from __future__ import annotations

import argparse

from ppa_fast.cli.verb import Verbs, add_verb

SHELLS = ("bash", "zsh", "tcsh")


def _doctor(arguments: argparse.Namespace) -> None:
    from ppa_fast import doctor

    doctor.main()


def _completion(arguments: argparse.Namespace) -> None:
    import shtab

    from ppa_fast.cli import build_parser

    parser = build_parser()
    _complete_files(parser)
    print(shtab.complete(parser, shell=arguments.shell))


def _complete_files(parser: argparse.ArgumentParser) -> None:
    """Marks each argument of a parser and its verbs that takes text: its value may be a file or folder."""
    import shtab

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                _complete_files(verb)
        elif action.nargs != 0 and action.choices is None and action.type not in (int, float):
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds ``doctor`` and ``completion``."""
    add_verb(
        verbs,
        "doctor",
        "tell what is installed and built, what runs where, and what to do next",
        "ppa-fast doctor",
        _doctor,
    )
    p = add_verb(
        verbs,
        "completion",
        "print the script that makes a shell complete verbs, flags and files",
        "ppa-fast completion bash > ~/.local/share/bash-completion/completions/ppa-fast\n"
        "ppa-fast completion zsh > ~/.zfunc/_ppa-fast",
        _completion,
    )
    p.add_argument("shell", choices=SHELLS)
