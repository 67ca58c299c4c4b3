"""The verification report: on the terminal, as HTML, as JSON with its schema; hostile text in it steers nothing."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from html.parser import HTMLParser
from importlib.metadata import version

import pytest
from pydantic import TypeAdapter
from typer.testing import CliRunner

from agents.plain_text import oracle_line, report_summary
from schedagent import api
from schedagent.cli.app import app
from schedagent.core.rules import GATES, LOGIC, PROVING
from schedagent.core.token import TOKEN_PREFIX, DeploymentToken, Scope, encode
from schedagent.core.verification import (
    Coverage,
    Finding,
    GateResult,
    GateStatus,
    KernelResult,
    OracleResult,
    Place,
    Severity,
    Step,
    VerificationReport,
)
from schedagent.verification.html import to_html
from schedagent.verification.text import GatePrinter, finding_lines, json_schema, show_end, to_json
from verifier.proving.prove import ORACLES

HOSTILE = "\x1b[2J<script>alert(1)</script>[bold]:100:[/bold]"
LOST = Finding(
    18, Severity.ERROR, "enqueue", "fifo.bpf.c", 57, "a path loses the task", (Step("fifo.bpf.c", 45, f"if {HOSTILE}"),)
)
NO_KICK = Finding(20, Severity.WARNING, "enqueue", "fifo.bpf.c", 60, "no kick", cleared_by="work conservation")
STARVED = Finding(29, Severity.ERROR, "starvation", "", 0, "hog waited 5 s")
KICKED = OracleResult("work conservation", 20, True, 0.094, 0.25, "ratio", "0.09 idle beside waiting hogs")
UNFAIR = OracleResult("weights", 22, False, 0.6827, 0.2, "ratio", "0.97 to 1: a deviation of 0.68")
TOKEN = encode(
    DeploymentToken(
        "ab" * 32, (("slice_us", 20000),), "cd" * 32, "ef" * 32, "7.3.4", "ab" * 20, Scope.PARTIAL, "/build.slice",
        1_796_006_564, 1_796_092_964, "0" * 32, "ddcd676b107947bb",
    ),
    lambda _signed: b"s" * 64,
)  # fmt: skip
GOOD, BAD, LEFT, UNASKED = GateStatus.PASSED, GateStatus.FAILED, GateStatus.SKIPPED, GateStatus.NOT_REQUESTED
OUTCOMES = [
    ((GOOD,) * 7, "passed", True, 0, "passed: every gate let it through, on kernel 7.3.4"),
    ((GOOD, GOOD, BAD, LEFT, LEFT, LEFT, LEFT), "failed", False, 3, "failed: gate 'scheduling logic'"),
    ((GOOD,) * 3 + (UNASKED,) * 4, "static only", None, 0, "static only: the gates that need no VM passed; the others"),
    ((GOOD, GOOD, BAD, *(UNASKED,) * 4), "failed", False, 3, "failed: gate 'scheduling logic'"),
    ((GOOD,) * 4 + (LEFT,) * 3, "incomplete", None, 1, "incomplete: gate 'attach' has no verdict"),
    ((GOOD,) * 6 + (LEFT,), "incomplete", None, 1, "incomplete: gate 'overhead' has no verdict"),
]
"""What the gates said, the outcome, `passed` of the JSON, the exit status, and the line for people."""


def report(*findings: Finding, status=GateStatus.FAILED, oracles=(), token="", **fields) -> VerificationReport:
    gates = tuple(
        GateResult(gate, status, HOSTILE, 0.5, tuple(findings))
        if gate == LOGIC
        else GateResult(gate, GateStatus.PASSED, "")
        for gate in GATES
    )
    kernels = (KernelResult("7.3.4", GateStatus.PASSED, "", {"fifo_enqueue": {"verified_instructions": 12}}),)
    return VerificationReport("fifo", "key", "ab" * 32, "7.3.4", gates, kernels, oracles, token=token, **fields)


def report_of(statuses) -> VerificationReport:
    """A report whose gates, or the first of them, ended so."""
    gates = tuple(GateResult(gate, status, "") for gate, status in zip(GATES, statuses, strict=False))
    return VerificationReport("fifo", "key", "ab" * 32, "7.3.4", gates)


def shown(capsys, verified):
    printer = GatePrinter(quiet=False)
    for gate in verified.gates:
        printer(gate)
    show_end(verified)
    return capsys.readouterr().out


@pytest.mark.parametrize(("statuses", "word", "passed", "status", "line"), OUTCOMES)
def test_the_outcome_is_the_same_word_in_every_face(capsys, monkeypatch, statuses, word, passed, status, line):
    verified = report_of(statuses)
    assert f"fifo: {line}" in shown(capsys, verified)
    assert f"<title>fifo: {word}</title>" in to_html(verified)
    assert f'<h1>fifo: <span class="{word.replace(" ", "-")}">{word}</span></h1>' in to_html(verified)
    values = to_json(verified)
    assert (values["outcome"], values["passed"]) == (word, passed)
    assert f": {line}" in report_summary(verified), "what a model, ours or over MCP, is told"
    monkeypatch.setattr(api, "verify", lambda *_arguments, **_options: verified)
    assert CliRunner().invoke(app, ["verify", "fifo"]).exit_code == status
    assert json.loads(CliRunner().invoke(app, ["verify", "fifo", "--json"]).stdout)["outcome"] == word


def test_a_finding_tells_place_path_why_and_how_to_repair(capsys):
    text = " ".join(shown(capsys, report(LOST)).split())
    assert "error unsafe: fifo.bpf.c:57: rule 18 (in enqueue): a path loses the task" in text
    assert "by fifo.bpf.c:45: if" in text
    assert "why: a task on the other path is lost" in text
    assert "fix: end such a path with an insert" in text
    assert "fifo: failed: gate 'scheduling logic' did not let it through No token was issued." in text


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
    assert "│ 0.09     │ 0.25    │" in text
    assert "fifo: passed: every gate let it through, on kernel 7.3.4" in text
    assert "token: sat2.a.b.c" in text


def test_without_a_key_there_is_no_token(capsys):
    assert "No token: no key to sign with." in shown(capsys, report(status=GateStatus.PASSED))


def test_an_oracle_that_was_declared_away_is_excused_in_every_face(capsys):
    excused = report(status=GateStatus.PASSED, oracles=(KICKED, UNFAIR), declares=("weights",))
    text = shown(capsys, excused)
    assert "│ excused │ 0.68     │ 0.20    │" in text
    assert "excused: it is declared or accepted that the policy does not seek 'weights'" in text
    assert [oracle["excused"] for oracle in to_json(excused)["oracles"]] == [False, True]
    page = to_html(excused)
    assert '<span class="excused">excused</span>' in page
    assert "the policy declares that it does not seek what the oracle checks" in page
    assert '<span class="no">' not in page
    assert "is excused" in oracle_line(excused, UNFAIR)
    broken = dataclasses.replace(excused, declares=())
    assert '<span class="no">no</span>' in to_html(broken)
    assert "excused" not in shown(capsys, broken)
    assert "DOES NOT HOLD" in oracle_line(broken, UNFAIR)


@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_tables_of_the_proving_ground_keep_headings_and_names_whole(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    named = tuple(OracleResult(name, 29, True, 2.3, 2.4, "s", "") for name in ORACLES)
    lines = shown(capsys, report(status=GateStatus.PASSED, oracles=named)).splitlines()
    [headings] = [line for line in lines if line.startswith("┃")]
    assert headings.replace("┃", " ").split() == ["oracle", "rule", "holds", "measured", "at", "most"]
    rows = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    assert rows == list(ORACLES)
    assert max(map(len, lines)) <= int(columns)


def test_json_carries_what_follows_and_fits_its_schema():
    values = to_json(report(LOST, NO_KICK, oracles=(KICKED,)))
    assert (values["version"], values["passed"], values["safe"]) == (1, False, False)
    lost, no_kick = values["gates"][GATES.index(LOGIC)]["findings"]
    assert lost["why"] == LOST.text.why
    assert (lost["cleared"], no_kick["cleared"]) == (False, True)
    assert (lost["class"], no_kick["class"]) == ("unsafe", "unfair")
    assert (lost["accepted_as"], no_kick["accepted_as"]) == ("", "work conservation")
    properties = json_schema()
    assert set(values) == set(properties["properties"])
    assert set(lost) == set(properties["$defs"]["Finding"]["properties"])
    for gate in values["gates"]:
        for finding in gate["findings"]:
            del finding["why"], finding["repair"], finding["cleared"]
    for oracle in values["oracles"]:
        del oracle["excused"]
    del values["version"], values["outcome"], values["passed"], values["safe"]
    assert TypeAdapter(VerificationReport).validate_python(values) == report(LOST, NO_KICK, oracles=(KICKED,))


@pytest.mark.parametrize(
    ("verified", "safe"),
    [
        (report(status=GateStatus.PASSED), True),
        (report(NO_KICK, status=GateStatus.PASSED), True),
        (report(LOST), False),
        (report_of((GOOD, GOOD, GOOD, BAD, LEFT, LEFT, LEFT)), False),
        (report_of((GOOD, GOOD, BAD, LEFT, LEFT, LEFT, LEFT)), None),
        (report_of((GOOD,) * 6 + (BAD,)), True),
        (report_of((GOOD,) * 5 + (LEFT, LEFT)), None),
        (report_of((GOOD,) * 3 + (UNASKED,) * 4), None),
        (report_of(()), None),
    ],
    ids=["all passed", "cleared or not", "an unsafe finding", "refused by the kernel", "no object that can be read",
         "only costly", "no verdict", "static only", "nothing ran"],
)  # fmt: skip
def test_safe_is_what_was_shown_to_be_so(verified, safe):
    assert (verified.safe, to_json(verified)["safe"]) == (safe, safe)


def test_an_unfair_policy_says_what_it_takes_in_every_face(capsys):
    unfair = Finding(22, Severity.ERROR, "sleeper's return", "", 0, "0.68 s")
    gates = tuple(
        GateResult(gate, BAD if gate == PROVING else GOOD, "", 0.1, (unfair,) * (gate == PROVING), gate == PROVING)
        for gate in GATES
    )
    verified = dataclasses.replace(report_of(()), gates=gates, needs=("sleeper's return",), lacks="It lacks a map.")
    line = """it is safe to be tried in the lab; a token takes --accept 'sleeper'"'"'s return'"""
    text = " ".join(shown(capsys, verified).split())
    assert line in text
    assert "accept it by name: --accept" in text
    assert "unfair, as everybody is served, but not by weight" in text
    assert "It lacks a map." in text
    assert html.escape(line) in to_html(verified)
    assert to_html(verified).index("It lacks a map.") < to_html(verified).index("<h2>Gates")
    summary = report_summary(verified)
    assert summary.startswith("It lacks a map.")
    assert "safe to be tried" in summary
    assert (to_json(verified)["lacks"], to_json(verified)["needs"]) == ("It lacks a map.", ["sleeper's return"])
    passed = dataclasses.replace(report(status=GateStatus.PASSED), needs=("reads:comm",))
    assert "No token: it needs what nobody declared or accepted." in shown(capsys, passed)


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
        "fifo: failed",
        "rule 18",
        "warning (cleared)",
        "work conservation",
        "0.09 idle beside waiting hogs",
        "7.3.4",
        "ab" * 32,
    ):
        assert told in reader.text
    assert f"{TOKEN_PREFIX}." not in reader.text


class Elements(HTMLParser):
    """Collects every element with its attributes."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def facts(page):
    """The names and facts of all lists of a page."""
    pairs = re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page)
    return dict(pairs)


def test_html_says_when_with_what_and_who_signed_until_when():
    page = to_html(
        report(
            status=GateStatus.PASSED,
            token=TOKEN,
            tunables=(("slice_us", 20000), ("x", 1)),
            verified_at="2026-11-30T02:43:00+00:00",
            verifier_version="3a542b1655885b18",
        )
    )
    assert facts(page) == {
        "Verified": "2026-11-30 02:43:00 UTC",
        "By": "the process that asked",
        "Kernel": "7.3.4",
        "Tunables": "slice_us=20000 x=1",
        "Object, SHA-256": "ab" * 32,
        "Verifier": "3a542b1655885b18",
        "Signed by key": "ddcd676b107947bb",
        "Valid from": "2026-11-30 02:42:44 UTC",
        "Expires": "2026-12-01 02:42:44 UTC",
        "Allows": "this object once, on kernel 7.3.4, scope partial /build.slice",
    }
    assert f'<pre class="token">{TOKEN}</pre>' in page
    assert f"Written by schedagent {version('schedagent')}." in page


def test_html_of_a_token_that_cannot_be_read_says_so():
    assert "It cannot be read" in to_html(report(status=GateStatus.PASSED, token="sat1.a.b"))


def test_html_shows_the_figures_that_the_terminal_shows(capsys):
    verified = report(status=GateStatus.PASSED, oracles=(KICKED, UNFAIR), declares=("weights",))
    text, page = shown(capsys, verified), to_html(verified)
    for oracle in verified.oracles:
        for value in (oracle.measured, oracle.bound):
            assert f"│ {oracle.figure(value)} " in text
            assert f'<span class="number">{oracle.figure(value)}</span>' in page
        assert oracle.figure(oracle.measured) in oracle.detail, "measured and told are one figure"


def test_html_fits_a_phone_and_both_colour_schemes_and_asks_for_nothing():
    page = to_html(report(LOST, NO_KICK, oracles=(KICKED, UNFAIR), token=TOKEN))
    elements = Elements(page).found
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in elements
    assert not {tag for tag, _ in elements} & {"script", "link", "img", "iframe", "object", "form", "base"}
    assert not [attrs for _, attrs in elements if {"src", "href", "style", "onclick"} & attrs.keys()]
    assert "url(" not in page
    assert "@import" not in page
    assert "@media (prefers-color-scheme: dark)" in page
    assert "overflow-wrap: anywhere" in page, "a token or a digest is broken instead of scrolling the page"
    cells = [attrs for tag, attrs in elements if tag == "td"]
    assert cells
    assert all(cell.get("data-heading") for cell in cells), "on a phone each cell carries its heading"
    assert page.count("<table>") == page.count("<thead>")


RAN = Coverage(12, 9, (Place("fifo.bpf.c", 31), Place("include/<b>.h", 4)), 3, 2)


def test_what_ran_is_said_in_every_face(capsys):
    verified = report(status=GateStatus.PASSED, coverage=RAN)
    line = "9 of 12 branches ran, 2 of 3 queues were used; never: fifo.bpf.c:31, include/<b>.h:4"
    assert f"coverage: {line}" in " ".join(shown(capsys, verified).split())
    page = to_html(verified)
    assert html.escape(line) in page
    assert "every line that never ran" in page
    assert to_json(verified)["coverage"]["never"] == [
        {"file": "fifo.bpf.c", "line": 31},
        {"file": "include/<b>.h", "line": 4},
    ]
    assert set(to_json(verified)["coverage"]) == set(json_schema()["$defs"]["Coverage"]["properties"])
    assert f"coverage: {line}" in report_summary(verified)


def test_a_long_list_of_lines_is_cut_and_what_was_not_measured_is_said():
    many = dataclasses.replace(RAN, never=tuple(Place("a.c", number) for number in range(40)))
    assert many.summary.endswith("a.c:11 and 28 more")
    assert (
        dataclasses.replace(RAN, why="no register is free").summary
        == "what of it runs was not measured: no register is free"
    )


def test_reports_of_before_keep_their_digests():
    assert report().digest != report(coverage=RAN).digest
    assert report().digest == report(coverage=None).digest
