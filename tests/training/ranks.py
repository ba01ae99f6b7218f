r"""Runs training jobs one after another in this rank: ``python ranks.py JOBS.json``; the environment holds the rank.

Starting Python, torch and DeepSpeed takes longer than a job of a tiny model, so a test module starts its ranks once.
"""

import json
import sys

from ppa_fast.settings import Settings
from ppa_fast.training.trainer import train

if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as f:
        jobs = json.load(f)
    for job in jobs:
        train(Settings(**job))
