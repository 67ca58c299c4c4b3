"""Runs that are killed where a test wants it: children of a server process that has imported what they need."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable

from schedagent.core.approval import Decision
from schedagent.core.policies.proposal import Proposal
from schedagent.mcp.workbench import open_services
from tests.support.scripted_lab import Script

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    ["tests.support.scripted_lab", "langgraph.checkpoint.sqlite", "schedagent.run.graph", "scipy.special"]
)
ANSWER_S = 30


def held_child(script: Script, run_id: str, *answers: Decision):
    """Drive the run in another process until it holds where the script says."""
    return held(script, script.in_child, run_id, *answers)


def held(script: Script, work: Callable[..., None], *arguments: object):
    """Do something in another process until the script holds it."""
    child = FORKSERVER.Process(target=work, args=arguments)
    child.start()
    deadline = time.monotonic() + ANSWER_S
    while not (script.folder / "held").exists():
        output = script.folder / "output"
        said = output.read_text() if output.exists() else ""
        assert child.is_alive(), f"it ended before {script.hold!r}: {said}"
        assert time.monotonic() < deadline, f"it never reached {script.hold!r}: {script.log[-5:]}"
        time.sleep(0.01)
    return child


def measure_over_mcp(script: Script, run_id: str, proposal: Proposal) -> None:
    """Measure as a slow tool call does, in the place of its process."""
    with script.in_place(), open_services(script.settings, {}, measures=True) as services:
        services().bench.measure(proposal, run_id, 600)


def kill_where_held(script: Script, run_id: str, *answers: Decision) -> None:
    child = held_child(script, run_id, *answers)
    child.kill()
    child.join()
