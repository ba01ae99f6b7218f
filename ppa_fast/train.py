"""Entry of ``deepspeed ppa_fast/train.py --deepspeed_config FILE --model M --data STORE --output RUN …``."""

import sys
from pathlib import Path

# A script's own folder comes first on sys.path; there, modules of this package would shadow installed ones.
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]

from ppa_fast.cli import main_train  # noqa: E402

if __name__ == "__main__":
    sys.exit(main_train())
