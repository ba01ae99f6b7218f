"""How the commands end: exit statuses, and one line for bad input."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from ppa_fast.errors import UserError, input_error

BAD_INPUT = 2  # exit status of a UserError, as of a wrong command line


def guarded(work: Callable[[], object], rank: int = 0) -> int:
    """Runs ``work``; a UserError becomes one line on stderr (of rank 0) and the exit status of bad input."""
    try:
        work()
    except BrokenPipeError:  # the reader of our output (head, say) has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UserError, OSError) as error:
        message = input_error(error)
        if message is None:
            raise
        if rank == 0:
            print(f"error: {message}", file=sys.stderr)
        return BAD_INPUT
    return 0
