"""What runs are worth: ``ppa-fast report`` and ``ablate``; argument parsing only."""

from __future__ import annotations

import argparse

from ppa_fast.cli.verb import Verbs, add_verb


def _report(arguments: argparse.Namespace) -> None:
    from ppa_fast.reporting.page import report

    print(f"report in {report(arguments.runs, arguments.out, arguments.pairs)}")


def _ablate(arguments: argparse.Namespace) -> None:
    from ppa_fast.ablation.runner import ablate

    ablate(arguments.plan, arguments.out, arguments.seeds, arguments.only, arguments.jobs, arguments.dry_run)


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds ``report`` and ``ablate``."""
    p = add_verb(
        verbs,
        "report",
        "write a page (HTML, one file) of one or several runs, finished or in progress",
        "ppa-fast report runs/mine runs/other --out report.html",
        _report,
    )
    p.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
    p.add_argument("--out", metavar="FILE", help="(default: report.html in the first run folder)")
    p.add_argument(
        "--pairs",
        nargs="+",
        action="extend",
        metavar="SPEC",
        help="evaluation sets of the sentence vectors, if not the run's own: en-de:dev.en,dev.de …",
    )

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
    p.add_argument("--jobs", type=int, default=1, metavar="N", help="stages under way at once (default %(default)s)")
    p.add_argument("--dry-run", action="store_true", help="check the plan and print the commands")
