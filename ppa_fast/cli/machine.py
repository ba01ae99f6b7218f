"""``ppa-fast doctor`` and ``completion``: argument parsing only."""

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

    print(shtab.complete(build_parser(), shell=arguments.shell))


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds ``doctor`` and ``completion``."""
    add_verb(
        verbs,
        "doctor",
        "show installed packages, built libraries, the backend of each device, and the next step",
        "ppa-fast doctor",
        _doctor,
    )
    p = add_verb(
        verbs,
        "completion",
        "print the shell script that completes verbs, flags and files",
        "ppa-fast completion bash > ~/.local/share/bash-completion/completions/ppa-fast\n"
        "ppa-fast completion zsh > ~/.zfunc/_ppa-fast",
        _completion,
    )
    p.add_argument("shell", choices=SHELLS)
