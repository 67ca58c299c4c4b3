"""until.py EXPRESSION SECONDS: ask schedagentd for its status until a Python expression over it holds.

Names: active, waiting, in_charge, kernel, unsaved ... (of the status), newest (of the history)."""

import sys
import time

from schedagent.client.daemon import DaemonClient
from schedagent.core.errors import SchedagentError

expression, limit_s = sys.argv[1], float(sys.argv[2])
begun = time.monotonic()
status = {}
while time.monotonic() - begun < limit_s:
    try:
        status = DaemonClient().ask("status")
        [status["newest"]] = DaemonClient().ask("history", limit=1)["history"] or [None]
        if eval(expression, {}, status):
            raise SystemExit(0)
    except SchedagentError as error:
        status = {"error": str(error)}
    time.sleep(0.3)
raise SystemExit(f"not within {limit_s:g} s: {expression}; the last answer was {status}")
