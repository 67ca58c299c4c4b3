"""Databases of earlier schemas: what is in them is found again, whatever its table or column is called now."""

from __future__ import annotations

import io
import json
import math
import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import repo_store.database.engine
from repo_store.database.tables import SCHEMA
from repo_store.records import RunStatus
from repo_store.store import PolicyRepository
from schedagent.core.approval import ApprovalRequest, ApprovalStage, Decision
from schedagent.core.errors import RepositoryError
from schedagent.core.policies.policy import CandidatePolicy, Plan, PolicyInfo
from schedagent.core.policies.proposal import DerivedPolicy, Origin
from schedagent.core.recommendation import (
    MACHINE,
    ApplyRequest,
    Baseline,
    Progress,
    Reading,
    Recommendation,
    RecommendationKind,
    Standing,
)
from schedagent.core.trials.lesson import Antipattern, Insight, Meaning
from schedagent.core.trials.trial import DEFAULT_ARM, Block, Hardware, Outcome, Sample, Verdict
from schedagent.core.trials.workload import CommandStats, Goal, WorkloadClass, WorkloadCommand, WorkloadProfile
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
from schedagent.core.welch import Spread
from tests.support.paths import ROOT

ROWS_OF_0004 = Path(__file__).with_name("rows_of_0004.sql")
"""What schedagent with schema 0004 stored for `store_all`."""

ADDED_BY = {
    "0003": ("approvals",),
    "0004": ("looks", "baselines", "recommendations", "requests"),
    "0008": ("costs",),
}
"""The tables that came with a schema."""
NEW_COLUMNS = {
    "runs": {"failure": None},
    "samples": {"values": "{}", "usage": None},
    "verdicts": {"guards": "[]", "expected": None},
    "insights": {"claims": "[]"},
    "candidates": {"program": None},
}
"""Columns that came later, with what they hold in the rows that were there."""
NAMES_NOW = {"looks": "readings", "made_policies": "derived_policies", "way": "origin", "mends": "repairs"}
DROPPED = {"verifications": {"artifact_digest", "kernel_release", "token_text"}}
"""Columns that are copies of what the report contains."""

LARGEST = 2**64 - 1
WORKLOAD = WorkloadCommand("make -j ü", "/src", Goal.LATENCY, "make clean", r"(\d+)", 12.5)
HARDWARE = Hardware("some CPU", 2, 1024, "vm-tcg", "7.3.4")
SETTINGS = {"iterations": 3, "approve": ["deploy"], "nothing": None}
COMMAND = CommandStats("cc1", LARGEST, "cc1", 12, 1, 2, 3, 4, 5, 6, 7, 8, 9)
PROFILE = WorkloadProfile(
    2.5, 4.5, 2, ((0.0, 1), (0.25, 9)), 0.9, (COMMAND,), (COMMAND,), 0.1, -1.0, math.inf,
    WorkloadClass.BATCH_LONG_TAIL, ("the longest takes 7 times the median",), 3,
)  # fmt: skip
PLANNED = CandidatePolicy(
    "longest_first", (("slice_us", 5000),), ((LARGEST, 10**12), (7, 1)), ((LARGEST, 3),), "the tail is long",
    Origin.CONFIGURE, "shorter", "not shorter",
)  # fmt: skip
REPAIR = CandidatePolicy("mine", (("slice_us", 1),), reason="it stalled", origin=Origin.PATCH)
PLAN = Plan((PLANNED,), "the profile shows a long tail", "it was better before")
FINDING = Finding(3, Severity.WARNING, "enqueue", "mine.bpf.c", 7, "may stall", (Step("a.h", 3, "here"),), "kick")
REPORT = VerificationReport(
    "longest_first", PLANNED.key, "ab" * 32, "7.3.4",
    (GateResult("load", GateStatus.PASSED, "fine", 0.27), GateResult("logic", GateStatus.FAILED, "", 1.0, (FINDING,))),
    (KernelResult("7.3.4", GateStatus.PASSED, "", {"enqueue": {"insns": 120}}),),
    (OracleResult("kick", 3, True, 0.5, 1.0, "s", "kicked"),), "v1", "s1", "sat2.a.b.c", "the service at /x",
)  # fmt: skip
SAMPLES = (
    Sample(PLANNED.key, 1.5, 2**62, 5, 0, "2026-08-01", 9, "ok ü", ""),
    Sample(DEFAULT_ARM, 2.0, 7, 5, None, "2026-08-02", 9, "", "runnable task stall"),
)
ARGV = ["sh", "-c", "make -j"]
VERDICT = Verdict(Outcome.BETTER, 0.81, 0.78, 0.84, 0.975, 6, 1, "19 % lower")
FAILED = Verdict(Outcome.FAILED, math.nan, math.nan, math.nan, 0.0, 0, 0, "it stalled")
ANTIPATTERN = Antipattern(
    "mine", REPAIR.key, REPAIR.tunables, WORKLOAD.key, HARDWARE.key, "stress", "stall", "2026-08-03", "cd" * 32
)
ASKED = ApprovalRequest(ApprovalStage.PLAN, 0, {"run": "r1", "candidates": [{"policy": "longest_first"}]})
WAITING = ApprovalRequest(ApprovalStage.DEPLOY, 0, {"run": "r1", "token": "t"})
DECISION = Decision(False, "ada", "2026-08-04", "too long")
INSIGHT = Insight("a long tail wants this", (PLANNED.key,), "r1", "2026-08-05")
COMPOSED = DerivedPolicy("six", Origin.COMPOSE, "", "c", "m", {"name": "six", "cpus": LARGEST}, "r1", "2026-08-06")
PATCHED = DerivedPolicy("mine", Origin.PATCH, "fair", "c", "m", None, "", "2026-08-07")
INFO = PolicyInfo("fair", "Fair for all", ("cpu-batch", "mixed"), "Orders.", "None", (), (), Path("fair.bpf.c"))
READINGS = [
    Reading(MACHINE, 60.0, 60.0, 0.004, 0.2, {"cc1": 30.0, "ld": 0.5}),
    Reading(MACHINE, 120.0, 60.0, None, 0.0, {}),
]
BASELINE = Baseline(MACHINE, 60.0, 120.0, {"delay": Spread(2, 0.004, 0.001)}, {"cc1": 0.75})
RECOMMENDATION = Recommendation(
    "0a1b2c3d", RecommendationKind.DEPLOY, WORKLOAD.key, "six", "schedagent deploy", "It is better.",
    {"run": "r1", "ratio": 0.81}, WORKLOAD, "/canary", 130.0, 1e10, Standing.WITHDRAWN, "a newer one",
)  # fmt: skip
REQUEST = ApplyRequest(1, "0a1b2c3d", "/canary", "ada", 140.0, 150.0, 160.0, Progress.KEEPING, "r1", 7, "runs")


def store_all(repository):
    """Store something in every table."""
    repository.create_run(WORKLOAD, HARDWARE, settings=SETTINGS, seed=LARGEST, run_id="r1")
    repository.save_profile("r1", PROFILE)
    repository.save_meaning("r1", Meaning("a build", "shorter"))
    repository.save_plan("r1", 0, PLAN)
    repository.save_verification("r1", REPORT)
    repository.save_repair("r1", 0, PLANNED.key, REPAIR)
    repository.add_block("r1", 0, Block(1, SAMPLES), argv=ARGV)
    repository.save_verdict("r1", 0, PLANNED.key, VERDICT)
    repository.save_verdict("r1", 0, REPAIR.key, FAILED)
    repository.add_antipattern(ANTIPATTERN)
    repository.ask_approval("r1", ASKED)
    repository.decide_approval("r1", ASKED.digest, DECISION)
    repository.ask_approval("r1", WAITING)
    repository.add_insight(INSIGHT)
    repository.keep_policy(COMPOSED)
    repository.keep_policy(PATCHED)
    repository.sync_policies([INFO])
    repository.finish_run("r1", RunStatus.FINISHED, {"best": 0.81, "tried": [1]})
    repository.service.add_readings(READINGS, keep_since=0)
    repository.service.save_baseline(BASELINE)
    repository.service.recommend(RECOMMENDATION)
    repository.service.save_request(REQUEST)


def repeat(repository):
    """Do once more what a resumed run and the service may do again: nothing changes."""
    repository.create_run(WORKLOAD, HARDWARE, settings=SETTINGS, seed=LARGEST, run_id="r1")
    repository.save_profile("r1", PROFILE)
    repository.save_plan("r1", 0, PLAN)
    repository.save_verification("r1", REPORT)
    repository.save_repair("r1", 0, PLANNED.key, REPAIR)
    repository.add_block("r1", 0, Block(1, SAMPLES), argv=ARGV)
    repository.save_verdict("r1", 0, REPAIR.key, FAILED)
    repository.add_antipattern(ANTIPATTERN)
    repository.add_insight(INSIGHT)
    repository.keep_policy(COMPOSED)
    repository.sync_policies([INFO])
    repository.finish_run("r1", RunStatus.FINISHED, {"best": 0.81, "tried": (1,)})
    repository.service.add_readings(READINGS, keep_since=0)
    repository.service.save_baseline(BASELINE)
    repository.service.save_request(REQUEST)


def require_all(repository):
    """Find all of it again."""
    run = repository.run("r1")
    assert (run.workload, run.hardware, run.settings, run.seed) == (WORKLOAD, HARDWARE, SETTINGS, LARGEST)
    assert (run.status, run.report) == (RunStatus.FINISHED, {"best": 0.81, "tried": [1]})
    assert repository.profile("r1") == PROFILE
    assert repository.meaning("r1") == Meaning("a build", "shorter")
    assert repository.plan("r1", 0) == PLAN
    assert repository.candidates("r1", 0) == [PLANNED, REPAIR]
    assert repository.repaired("r1", 0) == {REPAIR.key: PLANNED.key}
    assert repository.verification("r1", PLANNED.key) == REPORT
    assert repository.blocks("r1", 0) == [Block(1, SAMPLES)]
    verdicts = repository.verdicts("r1", 0)
    assert verdicts[PLANNED.key] == VERDICT
    assert all(math.isnan(getattr(verdicts[REPAIR.key], name)) for name in ("ratio", "low", "high"))
    assert [lesson.policy for lesson in repository.lessons(WORKLOAD.key, HARDWARE.key)] == ["mine", "longest_first"]
    assert repository.antipatterns(WORKLOAD.key, HARDWARE.key) == [ANTIPATTERN]
    assert repository.approvals("r1") == [(ASKED, DECISION), (WAITING, None)]
    assert repository.insights(WORKLOAD.key, HARDWARE.key) == [INSIGHT]
    assert repository.derived_policies() == [PATCHED, COMPOSED]
    assert [match.name for match in repository.search_policies("fair")] == ["fair"]
    assert repository.service.readings(MACHINE) == READINGS
    assert repository.service.baseline(MACHINE) == BASELINE
    assert repository.service.recommendation("0a1b2c3d") == RECOMMENDATION
    assert repository.service.requests() == [REQUEST]


def rows(path):
    """Return the rows of every table as the database has them, but for the search's own tables."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        listed = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        tables = [name for (name,) in listed if not name.startswith(("policy_search_", "alembic"))]
        return {table: [dict(row) for row in connection.execute(f"SELECT * FROM {table}")] for table in tables}


def old(path, monkeypatch, revision):
    """Make a database of an earlier schema, with what schedagent stored in it then."""
    with monkeypatch.context() as patch:
        patch.setattr(repo_store.database.engine, "SCHEMA", revision)
        PolicyRepository(path).close()
    later = {table for schema, tables in ADDED_BY.items() if schema > revision for table in tables}
    statements = re.split(r"^(?=INSERT)", ROWS_OF_0004.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("".join(line for line in statements if line.split()[2] not in later))
    return rows(path)


def renamed(before):
    """Return rows of an earlier schema under the names that tables and columns have now, with the keys of now."""
    return {
        NAMES_NOW.get(table, table): [
            {
                NAMES_NOW.get(name, name): HARDWARE.key if name == "hardware_key" else value
                for name, value in row.items()
                if name not in DROPPED.get(table, ())
            }
            for row in stored
        ]
        for table, stored in before.items()
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "repository.sqlite"


@pytest.mark.parametrize("revision", ["0002", "0003", "0004"])
def test_every_row_of_an_earlier_schema_is_there_under_its_name_of_today(path, monkeypatch, revision):
    before = old(path, monkeypatch, revision)
    assert all(before.values()), "something is in every table"
    PolicyRepository(path).close()
    after = rows(path)
    new = {table for schema, tables in ADDED_BY.items() if schema > revision for table in tables}
    for table, columns in NEW_COLUMNS.items():
        assert [{name: row.pop(name) for name in columns} for row in after[table]] == [columns] * len(after[table])
    assert after == renamed(before) | {NAMES_NOW.get(table, table): [] for table in new}


def test_everything_that_0004_stored_is_read_again(path, monkeypatch):
    old(path, monkeypatch, "0004")
    with PolicyRepository(path) as repository:
        require_all(repository)
        repeat(repository)
        require_all(repository)


def test_what_is_stored_today_is_what_0004_stored(path, tmp_path, monkeypatch):
    """The names are other ones, the text of every value is the same: canonical JSON, enums by value, nan as NULL."""
    before = renamed(old(path, monkeypatch, "0004"))
    with PolicyRepository(tmp_path / "new.sqlite") as repository:
        store_all(repository)
        require_all(repository)
    stored = timeless(rows(tmp_path / "new.sqlite"))
    assert [run.pop("failure") for run in stored["runs"]] == [None]
    assert stored.pop("costs") == []
    for table in ("samples", "verdicts", "insights", "candidates"):
        assert [{name: row.pop(name) for name in NEW_COLUMNS[table]} for row in stored[table]] == [
            NEW_COLUMNS[table]
        ] * len(stored[table])
    for table in ("runs", "recommendations"):
        for row in stored[table]:
            row["workload"] = without(row["workload"], WORKLOAD_FIELDS_AFTER_0004)
    for row in stored["verifications"]:
        row["report"] = without(row["report"], REPORT_FIELDS_AFTER_0004)
    assert stored == timeless(before)


REPORT_FIELDS_AFTER_0004 = (
    *("tunables", "declares", "reads", "depth", "coverage", "verified_at", "lacks", "needs"),
    *("classed", "word", "tolerable", "topologies", "topology"),
)
WORKLOAD_FIELDS_AFTER_0004 = (
    *("objective", "metrics", "guards", "preset", "shell", "ignore_failure", "setup", "cleanup", "units", "running"),
)


def without(stored, later):
    """Return a stored value without the fields that it had not yet in 0004; one without them can be read."""

    def earlier(fields):
        return {name: value for name, value in fields.items() if name not in later}

    return json.dumps(
        json.loads(stored, object_hook=earlier), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )


def timeless(stored):
    """Return rows without the times at which they were stored."""
    clock = {"runs": ("started_at", "finished_at"), "verdicts": ("at",), "approvals": ("asked_at",)}
    return {
        table: [{name: value for name, value in row.items() if name not in clock.get(table, ())} for row in content]
        for table, content in stored.items()
    }


def test_a_migration_that_fails_leaves_everything_as_it_was(path, monkeypatch):
    before = old(path, monkeypatch, "0004")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE INDEX in_the_way ON verifications (token_text)")
    with pytest.raises(RepositoryError, match="cannot be used"):
        PolicyRepository(path)
    assert rows(path) == before
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("0004",)]
        connection.execute("DROP INDEX in_the_way")
    with PolicyRepository(path) as repository:
        require_all(repository)


@pytest.mark.parametrize("revision", ["0002", "0003", "0004", "0005", "0008", "0009"])
def test_migrations_fit_postgresql(revision):
    text = io.StringIO()
    context = MigrationContext.configure(dialect_name="postgresql", opts={"as_sql": True, "output_buffer": text})
    with Operations.context(context):
        ScriptDirectory(str(ROOT / "repo_store" / "migrations")).get_revision(revision).module.upgrade()
    assert "SERIAL" not in text.getvalue()
    if revision == "0005":
        assert "ALTER TABLE candidates RENAME mends TO repairs" in text.getvalue()


def test_a_program_that_is_older_than_the_database_refuses(path, monkeypatch):
    PolicyRepository(path).close()
    monkeypatch.setattr(repo_store.database.engine, "SCHEMA", "0004")
    with pytest.raises(RepositoryError, match=rf"newer schedagent \(schema {SCHEMA}, known here: 0004\)") as caught:
        PolicyRepository(path)
    assert "install the newer schedagent" in caught.value.hint


def test_a_program_that_runs_while_a_newer_one_migrates_is_told_to_restart(path):
    with PolicyRepository(path) as repository:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("ALTER TABLE readings RENAME TO intervals")
            connection.execute("ALTER TABLE candidates RENAME COLUMN origin TO source")
        for read in (lambda: repository.service.readings(MACHINE), lambda: repository.candidates("r1", 0)):
            with pytest.raises(RepositoryError, match=r"no such (table|column)") as caught:
                read()
            assert "restart" in caught.value.hint


def test_machines_of_another_memory_have_another_key(path, monkeypatch):
    before = old(path, monkeypatch, "0004")
    keys = {row["hardware_key"] for table in ("runs", "antipatterns") for row in before[table]}
    assert HARDWARE.key not in keys, "the memory was no part of it"
    assert len({replace(HARDWARE, memory_mib=size).key for size in (1024, 2048)}) == 2
