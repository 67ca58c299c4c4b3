"""The verification report: on the terminal, as HTML, as JSON with its schema; hostile text in it steers nothing."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser

import pytest
from pydantic import TypeAdapter

from schedagent.core.rules import GATES, LOGIC
from schedagent.core.verification import (
    Finding,
    GateResult,
    GateStatus,
    KernelResult,
    OracleResult,
    Severity,
    Step,
    VerificationReport,
)
from schedagent.verification.html import to_html
from schedagent.verification.text import GatePrinter, finding_lines, json_schema, show_end, to_json

HOSTILE = "\x1b[2J<script>alert(1)</script>[bold]:100:[/bold]"
LOST = Finding(
    18, Severity.ERROR, "enqueue", "fifo.bpf.c", 57, "a path loses the task", (Step("fifo.bpf.c", 45, f"if {HOSTILE}"),)
)
NO_KICK = Finding(20, Severity.WARNING, "enqueue", "fifo.bpf.c", 60, "no kick", cleared_by="work conservation")
STARVED = Finding(29, Severity.ERROR, "starvation", "", 0, "hog waited 5 s")
KICKED = OracleResult("work conservation", 20, True, 0.094, 0.25, "ratio", "idle for 9 %")


def report(*findings: Finding, status=GateStatus.FAILED, oracles=(), token="", **fields) -> VerificationReport:
    gates = tuple(
        GateResult(gate, status, HOSTILE, 0.5, tuple(findings))
        if gate == LOGIC
        else GateResult(gate, GateStatus.PASSED, "")
        for gate in GATES
    )
    kernels = (KernelResult("7.3.4", GateStatus.PASSED, "", {"fifo_enqueue": {"verified_instructions": 12}}),)
    return VerificationReport("fifo", "key", "ab" * 32, "7.3.4", gates, kernels, oracles, token=token, **fields)


def shown(capsys, verified, *, static_only=False):
    printer = GatePrinter(quiet=False)
    for gate in verified.gates:
        printer(gate)
    show_end(verified, static_only=static_only)
    return capsys.readouterr().out


def test_a_finding_tells_place_path_why_and_how_to_repair(capsys):
    text = " ".join(shown(capsys, report(LOST)).split())
    assert "error fifo.bpf.c:57: rule 18 (in enqueue): a path loses the task" in text
    assert "by fifo.bpf.c:45: if" in text
    assert "why: a task on the other path is lost" in text
    assert "fix: end such a path with an insert" in text
    assert "fifo is rejected: gate 'scheduling logic' failed. No token was issued." in text


def test_hostile_text_neither_steers_the_terminal_nor_is_markup(capsys):
    text = shown(capsys, report(LOST))
    assert "\x1b[2J" not in text
    assert "[bold]:100:[/bold]" in text


def test_a_symptom_names_its_other_causes():
    assert any("rules 2, 7, 18, 19" in line for line in finding_lines(STARVED))
    assert not any("symptom" in line for line in finding_lines(LOST))


def test_a_cleared_warning_is_said_to_be(capsys):
    good = report(NO_KICK, status=GateStatus.PASSED, oracles=(KICKED,), token="sat2.a.b.c")
    text = shown(capsys, good)
    assert "cleared: rule 20 by the oracle 'work conservation'" in text
    assert "0.094 ratio" in text
    assert "passed every gate on 7.3.4" in text
    assert "token: sat2.a.b.c" in text


@pytest.mark.parametrize(
    ("status", "static_only", "said"),
    [
        (GateStatus.SKIPPED, False, "the VM was lost twice"),
        (GateStatus.SKIPPED, True, "passed the static gates"),
        (GateStatus.PASSED, False, "No token: no key to sign with."),
    ],
)
def test_how_it_ends_is_said(capsys, status, static_only, said):
    assert said in shown(capsys, report(status=status), static_only=static_only)


def test_json_carries_what_follows_and_fits_its_schema():
    values = to_json(report(LOST, NO_KICK, oracles=(KICKED,)))
    assert values["passed"] is False
    lost, no_kick = values["gates"][GATES.index(LOGIC)]["findings"]
    assert lost["why"] == LOST.text.why
    assert (lost["cleared"], no_kick["cleared"]) == (False, True)
    properties = json_schema()
    assert set(values) == set(properties["properties"])
    assert set(lost) == set(properties["$defs"]["Finding"]["properties"])
    for gate in values["gates"]:
        for finding in gate["findings"]:
            del finding["why"], finding["repair"], finding["cleared"]
    del values["passed"]
    assert TypeAdapter(VerificationReport).validate_python(values) == report(LOST, NO_KICK, oracles=(KICKED,))


class Reader(HTMLParser):
    """Collects text and tags."""

    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def test_html_shows_everything_and_runs_nothing():
    reader = Reader()
    reader.feed(to_html(report(LOST, NO_KICK, oracles=(KICKED,))))
    assert "script" not in reader.tags
    assert "<script>alert(1)</script>" in reader.text
    assert "\x1b" not in reader.text
    for told in (
        "fifo did not pass",
        "rule 18",
        "warning (cleared)",
        "work conservation",
        "idle for 9 %",
        "7.3.4",
        "ab" * 32,
    ):
        assert told in reader.text
    assert "sat2." not in reader.text
    passed = to_html(dataclasses.replace(report(status=GateStatus.PASSED), token="sat2.a.b.c"))
    assert "fifo passed every gate" in passed
    assert "sat2.a.b.c" in passed
