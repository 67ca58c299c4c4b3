"""What the programs that `make` calls have in common."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from schedagent.core.errors import SchedagentError
from schedagent.core.terminal.foreign import marked


def exit_status(step: Callable[[], object]) -> int:
    """Take a step, with its progress on stderr; return 0, or 1 after telling what failed and what to do next."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        step()
    except SchedagentError as error:
        sys.stderr.write(f"{marked(f'error: {error.message}')}\n")
        if error.hint:
            sys.stderr.write(f"{marked(f'  hint: {error.hint}')}\n")
        return 1
    return 0
