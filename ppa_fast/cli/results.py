"""What runs are worth: ``ppa-fast ablate``; argument parsing only."""

from __future__ import annotations

import argparse

from ppa_fast.cli.verb import Verbs, add_verb


def _ablate(arguments: argparse.Namespace) -> None:
    from ppa_fast.ablation.runner import ablate

    ablate(arguments.plan, arguments.out, arguments.seeds, arguments.only, arguments.dry_run)


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds ``ablate``."""
    p = add_verb(
        verbs,
        "ablate",
        "run the ablation of a plan: alignment with and without its parts, then tasks, over seeds",
        "ppa-fast ablate benchmarks/plans/small.yaml --out runs/ablation/small",
        _ablate,
    )
    p.add_argument("plan", metavar="PLAN", help="YAML file, see benchmarks/plans/")
    p.add_argument("--out", required=True, help="folder; the same command goes on where it was cut")
    p.add_argument("--seeds", type=int, metavar="N", help="seeds 0 … N - 1 (default: the plan's)")
    p.add_argument("--only", nargs="+", metavar="ROW", help="these rows (default: the plan's)")
    p.add_argument("--dry-run", action="store_true", help="check the plan and print the commands")
