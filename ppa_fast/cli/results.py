"""``ppa-fast report`` and ``ablate``: argument parsing only."""

from __future__ import annotations

import argparse

from ppa_fast.cli.verb import Verbs, add_verb_of, calling
from ppa_fast.settings import AblateSettings, ReportSettings


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds ``report`` and ``ablate``."""
    add_verb_of(
        ReportSettings,
        verbs,
        "report",
        "write a self-contained HTML report of one or several runs, finished or in progress",
        "ppa-fast report runs/mine runs/other --out report.html",
        calling("ppa_fast.reporting.page.report", "report in {result}"),
    )

    add_verb_of(
        AblateSettings,
        verbs,
        "ablate",
        "run the ablation of a plan: alignment with and without its components, then the tasks, over several seeds",
        "ppa-fast ablate benchmarks/plans/small.yaml --out runs/ablation/small",
        calling("ppa_fast.ablation.runner.ablate"),
    )
