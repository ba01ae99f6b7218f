"""Builds the harness, and runs the tests of the operations on it, or the tests that the arguments name."""

import sys

from tests.csrc.simt import build, run

build()
sys.exit(run(sys.argv[1:] or ["tests/ops"]).returncode)
