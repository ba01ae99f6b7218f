"""The command on this machine: ``ppa-fast doctor``; argument parsing only."""

from __future__ import annotations

import argparse

from ppa_fast.cli.verb import Verbs, add_verb


def _doctor(arguments: argparse.Namespace) -> None:
    from ppa_fast import doctor

    doctor.main()


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds ``doctor``."""
    add_verb(verbs, "doctor", "tell what is installed and built, and what runs where", "ppa-fast doctor", _doctor)
