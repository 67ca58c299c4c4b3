"""A model that answers by role, for tests of the whole loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agents.llm.transcript import read_notes, transcript_path
from schedagent.run.options import RunOptions
from tests.support.model_server import ModelServer
from tests.support.model_session import proposed
from tests.support.scripted_endpoint import KEY
from tests.support.scripted_lab import Script

DESCRIBED = {"meaning": "A batch whose longest task decides.", "goal": "Start the longest task first."}
SPEC: dict[str, Any] = {
    "name": "tail_first",
    "goal": "The longest task of a batch first.",
    "classes": [{"name": "all", "order": "longest_first", "slice_us": 10000}],
}
COMPOSED = proposed("tail_first", "compose", spec=SPEC, description="The longest first.")
ONE_PLAN = RunOptions(iterations=1, budget_s=600, candidates=2, rules=Script.options.rules)


def role_of(body) -> str:
    """Which agent asks."""
    return body["messages"][0]["content"].split()[3].lower()


def keys_in(body) -> list[str]:
    """The keys of the candidates that were measured, in a question of Learning."""
    lines = [line for line in body["messages"][1]["content"].splitlines() if " pairs" in line]
    return [line.split()[0] for line in lines]


def claims_in(body) -> list[dict[str, str]]:
    """Claims about the first candidate whose verdict says something, in a question of Learning, as it says it."""
    relations = {"better": "better", "worse": "worse", "no difference": "same"}
    for line in body["messages"][1]["content"].splitlines():
        for outcome, relation in relations.items():
            if f": {outcome}, candidate / default" in line:
                return [{"arm": line.split()[0], "relation": relation, "than": "default", "metric": "wall time"}]
    return []


def plan(*proposals, reason="One long task decides.", **turn):
    return {"content": {"reason": reason, "proposals": list(proposals)}, **turn}


def decided(decision, reason="slices were too long", **changed):
    return {"content": {"decision": decision, "reason": reason, **changed}}


class Mind:
    """A model that answers by role: `plans` and `decisions` in turn, an insight on what was measured.

    Args:
        turn: what else stands in each answer: {"usage": None} reports no tokens, so that all of a request is counted.
    """

    def __init__(self, plans=(), decisions=(), described=DESCRIBED, **turn) -> None:
        self.plans = iter(plans)
        self.decisions = iter(decisions)
        self.described = described
        self.turn = turn
        self.asked: list[str] = []

    def __call__(self, body):
        role = role_of(body)
        self.asked.append(role)
        return {**self.turn, **self._answer(role, body)}

    def _answer(self, role: str, body):
        match role:
            case "observation":
                return {"content": self.described}
            case "planning":
                return next(self.plans)
            case "execution":
                return next(self.decisions)
        claims = claims_in(body)
        return {"content": {"insights": [{"text": "The order decides.", "claims": claims}] if claims else []}}


def on(script: Script, server: ModelServer | None, **changed) -> Script:
    """Return the script with a model."""
    url = server.url if server else "http://127.0.0.1:9/v1"
    told = {"model_base_url": url, "model_name": "small", "model_api_key": KEY, "model_timeout_s": 10}
    return replace(script, model=told | changed)


def notes(script: Script, run_id: str) -> list[str]:
    return [note.text for note in read_notes(transcript_path(script.settings.state_dir, run_id))]


def by_policy(report, iteration=0):
    return {found["policy"]: found for found in report["iterations"][iteration]["candidates"]}
