"""Runs that are killed where a test wants it: children of a server process that has imported what they need."""

from __future__ import annotations

import multiprocessing
import time

from schedagent.core.approval import Decision
from tests.support.scripted_lab import Script

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    ["tests.support.scripted_lab", "langgraph.checkpoint.sqlite", "schedagent.run.graph", "scipy.special"]
)
ANSWER_S = 30


def held_child(script: Script, run_id: str, *answers: Decision):
    """Drive the run in another process until it holds where the script says."""
    child = FORKSERVER.Process(target=script.in_child, args=(run_id, *answers))
    child.start()
    deadline = time.monotonic() + ANSWER_S
    while not (script.folder / "held").exists():
        output = script.folder / "output"
        said = output.read_text() if output.exists() else ""
        assert child.is_alive(), f"it ended before {script.hold!r}: {said}"
        assert time.monotonic() < deadline, f"it never reached {script.hold!r}: {script.log[-5:]}"
        time.sleep(0.01)
    return child


def kill_where_held(script: Script, run_id: str, *answers: Decision) -> None:
    child = held_child(script, run_id, *answers)
    child.kill()
    child.join()
