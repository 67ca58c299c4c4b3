"""Derived policies in the repository and in the library: kept, found after a restart, promoted by a verdict; words
beside numbers; repairs; similar runs; and a database of the schema before.
"""

import dataclasses
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import repo_store.database.engine
from agents.observation import build_profile
from agents.planner.builder import PolicyBuilder
from kernel_bpf.policies.library import load_library
from repo_store.database.tables import SCHEMA
from repo_store.similar import distance
from repo_store.store import PolicyRepository
from schedagent.cli import app as cli
from schedagent.core.errors import NameTaken, PolicyError, RepositoryError, SetupError, UsageError
from schedagent.core.policies.policy import CandidatePolicy, Plan
from schedagent.core.policies.proposal import DerivedPolicy, Origin, Proposal
from schedagent.core.settings import Settings
from schedagent.core.trials.lesson import Insight, Meaning
from schedagent.core.trials.trial import Hardware, Outcome, Verdict
from schedagent.core.trials.workload import WorkloadClass, WorkloadCommand
from schedagent.run import opening
from schedagent.run.library import Library, worth_trying
from schedagent.run.lifecycle import resume_run
from schedagent.run.progress import PlainReporter
from schedagent.verification.files import find
from tests.support import scripted_lab as scripted
from tests.support.older_repository import failures_kept

HARDWARE = Hardware("some CPU", 2, 1024, "vm-tcg", "7.3.4")
WORKLOAD = WorkloadCommand("make -j", "/src")
PROFILE = build_profile(scripted.long_tail())
BETTER = Verdict(Outcome.BETTER, 0.8, 0.75, 0.85, 0.975, 6, 0, "20 % lower")
BUNDLED = load_library()
MANIFEST = """\
name = "mine"
description = "Mine."
target_workloads = ["mixed"]
algorithm = "a"
limitations = "l"
inputs = []
"""
MADE = DerivedPolicy("mine", Origin.GENERATE, "", "int x;\n", MANIFEST, None, "r1", "2026-01-01T00:00:00.000+00:00")
SPEC = {"name": "two", "goal": "g", "classes": [{"name": "a", "match": {"programs": ["ü"]}}, {"name": "b"}]}


def named(name, **fields):
    return dataclasses.replace(MADE, name=name, manifest=MANIFEST.replace("mine", name), **fields)


@pytest.fixture
def state(tmp_path):
    return Settings(cache_dir=tmp_path / "cache", state_dir=tmp_path / "state")


@pytest.fixture
def repository(state):
    with PolicyRepository(state.state_dir / "repository.sqlite") as opened:
        yield opened


def library(repository, state, *wanted):
    return Library(BUNDLED, repository, state.state_dir / "policies", *wanted)


def run(repository, name, workload=WORKLOAD, hardware=HARDWARE, policy="fair", verdict=None, profile=None):
    """Store a run with one candidate; return the candidate's key."""
    repository.create_run(workload, hardware, run_id=name)
    candidate = CandidatePolicy(policy)
    repository.save_plan(name, 0, Plan((candidate,), "r"))
    if profile:
        repository.save_profile(name, profile)
    if verdict:
        repository.save_verdict(name, 0, candidate.key, verdict)
    return candidate.key


# --- policies


def test_a_derived_policy_survives_the_repository(repository):
    composed = named("two", origin=Origin.COMPOSE, spec=SPEC)
    patched = named("fair_1", origin=Origin.PATCH, parent="fair", source="/* ü */\n")
    for made in (MADE, composed, patched):
        assert repository.keep_policy(made) == made
    assert repository.derived_policies() == [patched, MADE, composed]
    assert [made.origin for made in repository.derived_policies()] == ["patch", "generate", "compose"]


def test_the_same_content_is_kept_once_and_other_content_not_at_all(repository):
    repository.keep_policy(MADE)
    again = dataclasses.replace(MADE, run_id="r2", created_at="2027-01-01")
    assert again.digest == MADE.digest
    assert repository.keep_policy(again) == MADE
    for changed in ({"source": "int y;\n"}, {"manifest": f"{MANIFEST}\n"}):
        with pytest.raises(NameTaken, match="another policy is called mine"):
            repository.keep_policy(dataclasses.replace(MADE, **changed))
    assert repository.derived_policies() == [MADE]


def test_the_library_has_bundled_and_derived_policies(repository, state):
    opened = library(repository, state)
    assert dict(opened) == BUNDLED
    info = opened.keep(named("fair_1", origin=Origin.PATCH, parent="fair"))
    assert (info.origin, info.parent) == (Origin.PATCH, "fair")
    assert opened["fair_1"] == info
    assert list(opened) == sorted([*BUNDLED, "fair_1"])
    assert library(repository, state)["fair_1"] == info, "the next process finds it, too"
    assert info.source.read_text() == "int x;\n"
    assert info.source_digest
    assert {path.stat().st_mode & 0o777 for path in info.source.parent.iterdir()} == {0o600}


def test_the_repository_is_the_truth_and_files_are_not(repository, state):
    info = library(repository, state).keep(MADE)
    outside = state.state_dir / "outside"
    outside.write_text("int x;\n")
    info.source.unlink()
    info.source.symlink_to(outside)
    info.source.with_name("mine.toml").write_text("changed")
    info.source.with_name("stray.bpf.c").write_text("int z;\n")
    info.source.with_name("stray.toml").write_text(MANIFEST.replace("mine", "stray"))
    opened = library(repository, state)
    assert "stray" not in opened
    assert info.source.read_text() == "int x;\n"
    assert not info.source.is_symlink(), "even if it says the same now"
    assert info.source.with_name("mine.toml").read_text() == MANIFEST


def test_names_and_manifests_that_cannot_be(repository, state):
    opened = library(repository, state)
    with pytest.raises(NameTaken, match="a bundled policy is called fair"):
        opened.keep(named("fair"))
    with pytest.raises(PolicyError, match="calls it 'mine'"):
        opened.keep(dataclasses.replace(MADE, name="yours"))
    with pytest.raises(PolicyError, match="cannot be the name of a policy"):
        opened.keep(named("../up"))
    with pytest.raises(PolicyError, match="not valid TOML"):
        opened.keep(dataclasses.replace(MADE, manifest="="))
    with pytest.raises(RepositoryError):
        opened.keep(dataclasses.replace(MADE, source="\ud800"))
    assert repository.derived_policies() == []
    assert not (state.state_dir / "policies").exists()


def test_what_another_version_stored_is_left_out(repository, state, caplog):
    for made in (named("fair"), dataclasses.replace(named("newer"), manifest="="), MADE):
        repository.keep_policy(made)
    opened = library(repository, state)
    assert set(opened) == {*BUNDLED, "mine"}
    assert opened["fair"] == BUNDLED["fair"]
    assert "the policy fair that was generated is hidden by a bundled one" in caplog.text
    assert "the policy newer that was generated cannot be used" in caplog.text


def test_a_folder_that_cannot_be_written(repository, state):
    (state.state_dir / "policies").write_text("a file")
    with pytest.raises(SetupError, match=r"mine\.bpf\.c cannot be written"):
        library(repository, state).keep(MADE)


def test_a_verdict_promotes_and_nothing_else_does(repository, state):
    for name in ("winner", "loser", "idle", "own", "shared"):
        repository.keep_policy(named(name, run_id="own run" if name == "own" else "r1"))
    run(repository, "r1", policy="winner", verdict=BETTER)
    run(repository, "r2", policy="loser", verdict=dataclasses.replace(BETTER, outcome=Outcome.WORSE))
    run(repository, "own run", policy="shared")
    assert repository.winners() == {"winner"}

    def made(run_id):
        return set(library(repository, state, worth_trying(repository, run_id))) - set(BUNDLED)

    assert made("") == {"winner"}
    assert made("own run") == {"winner", "own", "shared"}
    assert made("r2") == {"winner", "loser"}


def test_only_promoted_policies_are_found_by_words(state):
    for verdict in (dataclasses.replace(BETTER, outcome=Outcome.NO_DIFFERENCE), BETTER):
        with opening.open_repository(state) as repository:
            repository.keep_policy(dataclasses.replace(MADE, manifest=MANIFEST.replace("Mine.", "Zebras first.")))
            assert [found.name for found in repository.search_policies("zebras")] == []
            run(repository, f"run {verdict.outcome}", policy="mine", verdict=verdict)
    with opening.open_repository(state) as repository:
        assert [found.name for found in repository.search_policies("zebras")] == ["mine"]


# --- a run with a derived policy, and the command line


def test_a_resumed_run_finds_the_policy_that_it_made(state, monkeypatch, tmp_path):
    script = scripted.Script(tmp_path, ratios={"two": 0.7})
    monkeypatch.setattr(opening, "open_lab", lambda _settings: scripted.Lab(script))
    monkeypatch.setattr(opening, "open_verifier", lambda _settings: scripted.Verifier(script))
    with opening.open_repository(state) as repository:
        options = dataclasses.asdict(dataclasses.replace(scripted.OPTIONS, iterations=1))
        run_id = repository.create_run(scripted.WORKLOAD, scripted.HARDWARE, settings=options, seed=7)
        repository.save_profile(run_id, PROFILE)
        shop = PolicyBuilder(opening.open_run_library(state, repository, run_id), run_id)
        asked = Proposal(Origin.COMPOSE, "two", spec={"goal": "g", "classes": [{"name": "all"}]}, expected="less")
        repository.save_plan(run_id, 0, Plan((shop.make(asked, PROFILE),), "r"))
    with (tmp_path / "said").open("w") as said:
        report = resume_run(state, run_id, PlainReporter(Console(file=said)))
    best = report.best.candidate
    assert (best.policy, best.origin, best.expected) == ("two", "compose", "less")
    with opening.open_repository(state) as repository:
        assert "two" in opening.open_run_library(state, repository), "it has won, so other runs may use it"


@pytest.fixture
def command(state, monkeypatch):
    monkeypatch.setattr("schedagent.cli.policies.settings", lambda: state)
    return lambda *words: CliRunner().invoke(cli.app, words)


def test_the_command_line_knows_derived_policies(repository, state, command):
    library(repository, state).keep(named("fair_1", origin=Origin.PATCH, parent="fair"))
    listed = {entry["name"]: entry for entry in json.loads(command("policies", "list", "--json").stdout)}
    assert {name for name, entry in listed.items() if entry["origin"] != "program"} == {*BUNDLED, "fair_1"}
    assert listed["scx_lavd"]["origin"] == "program"
    assert "Latency-criticality" in command("policies", "show", "scx_lavd").stdout
    assert (listed["fair_1"]["origin"], listed["fair"]["origin"]) == ("patch", "bundled")
    shown = command("policies", "show", "fair_1").stdout
    assert "Origin:\n  patched from fair" in shown
    assert "patched" in command("policies", "list").stdout
    assert "did you mean fair_1?" in command("policies", "show", "fair_11").stderr
    assert find(state, Path("fair_1")).origin is Origin.PATCH
    assert find(state, Path("fifo")) == BUNDLED["fifo"]
    with pytest.raises(UsageError, match="no policy 'fair_2' in the library"):
        find(state, Path("fair_2"))


def test_looking_at_policies_creates_no_repository(state, command):
    listed = json.loads(command("policies", "list", "--json").stdout)
    assert {entry["name"] for entry in listed if entry["origin"] != "program"} == set(BUNDLED)
    assert not state.state_dir.exists()


# --- candidates and repairs

PLANNED = CandidatePolicy(
    "mine", (("slice_us", 5),), ((1, 2),), ((3, 4),), "r", Origin.GENERATE, "10 % less", "no gain"
)
REPAIR = dataclasses.replace(PLANNED, policy="mine_1")


def test_a_candidate_keeps_what_its_planner_said(repository):
    repository.create_run(WORKLOAD, HARDWARE, run_id="r1")
    repository.save_plan("r1", 0, Plan((PLANNED,), "why"))
    assert repository.plan("r1", 0).candidates == (PLANNED,)
    assert repository.plan("r1", 0).candidates[0].origin is Origin.GENERATE


def test_repairs_follow_the_plan_they_are_not_part_of(repository):
    repository.create_run(WORKLOAD, HARDWARE, run_id="r1")
    plan = Plan((PLANNED, CandidatePolicy("fair")), "why")
    second = dataclasses.replace(PLANNED, policy="mine_2")
    for _ in range(2):
        repository.save_plan("r1", 0, plan)
        repository.save_repair("r1", 0, PLANNED.key, REPAIR)
        repository.save_repair("r1", 0, REPAIR.key, second)
    assert repository.plan("r1", 0) == plan
    assert repository.candidates("r1", 0) == [*plan.candidates, REPAIR, second]
    assert repository.repaired("r1", 0) == {REPAIR.key: PLANNED.key, second.key: REPAIR.key}
    assert repository.candidates("r1", 1) == []
    repository.save_verdict("r1", 0, REPAIR.key, BETTER)
    repository.save_verdict("r1", 0, PLANNED.key, BETTER)
    assert list(repository.verdicts("r1", 0)) == [PLANNED.key, REPAIR.key]


def test_repairs_that_repair_nothing(repository):
    repository.create_run(WORKLOAD, HARDWARE, run_id="r1")
    repository.save_plan("r1", 0, Plan((PLANNED, CandidatePolicy("fair")), "why"))
    with pytest.raises(UsageError, match="iteration 0 has no candidate 'nope'"):
        repository.save_repair("r1", 0, "nope", REPAIR)
    with pytest.raises(UsageError, match="iteration 1 has no candidate"):
        repository.save_repair("r1", 1, PLANNED.key, REPAIR)
    for same in (PLANNED, CandidatePolicy("fair")):
        with pytest.raises(PolicyError, match="is a candidate of this iteration already"):
            repository.save_repair("r1", 0, PLANNED.key, same)
    assert len(repository.candidates("r1", 0)) == 2


# --- words


def test_a_meaning_stands_beside_the_profile(repository):
    repository.create_run(WORKLOAD, HARDWARE, run_id="r1")
    assert repository.meaning("r1") is None
    for _ in range(2):
        repository.save_meaning("r1", Meaning("It builds.", "The link step early."))
    assert repository.meaning("r1") == Meaning("It builds.", "The link step early.")
    with pytest.raises(RepositoryError, match="the meaning of the profile of run r1 is stored already"):
        repository.save_meaning("r1", Meaning("Other.", ""))
    with pytest.raises(RepositoryError):
        repository.save_meaning("nope", Meaning("a", "b"))


def test_insights_rest_on_trials(repository):
    key = run(repository, "r1", verdict=BETTER)
    unjudged = run(repository, "r2", policy="fifo")
    insight = Insight("Long slices help.", (key,), "r1", "2026-01-01")
    for again in (insight, dataclasses.replace(insight, created_at="2026-02-01")):
        repository.add_insight(again)
    newer = Insight("They help much.", (key,), "r2", "2026-03-01")
    repository.add_insight(newer)
    assert repository.insights(WORKLOAD.key, HARDWARE.key) == [newer, insight]
    assert repository.insights("other", HARDWARE.key) == repository.insights(WORKLOAD.key, "other") == []
    for evidence, said in (((), "no trial at all"), ((key, "made-up"), "nobody measured: made-up"),
                           ((unjudged,), f"nobody measured: {unjudged}")):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            repository.add_insight(Insight("x", evidence, "r1", "2026"))
    with pytest.raises(UsageError, match="no run 'nope'"):
        repository.add_insight(dataclasses.replace(insight, run_id="nope"))


# --- similar runs


def test_similar_runs_are_of_other_workloads_nearest_first(repository):
    near = dataclasses.replace(PROFILE, wall_s=99.0, busy_fraction=PROFILE.busy_fraction - 0.1)
    far = dataclasses.replace(PROFILE, kind=WorkloadClass.LATENCY_SENSITIVE, busy_fraction=0.1, predicted_ratio=1.0)
    other = {name: WorkloadCommand(name, "/") for name in ("near", "far", "unjudged", "elsewhere")}
    run(repository, "own", WORKLOAD, verdict=BETTER, profile=PROFILE)
    run(repository, "far", other["far"], verdict=BETTER, profile=far)
    run(repository, "near, before", other["near"], verdict=BETTER, profile=far)
    run(repository, "near", other["near"], verdict=BETTER, profile=near)
    run(repository, "unjudged", other["unjudged"], profile=PROFILE)
    elsewhere = dataclasses.replace(HARDWARE, cpus=4)
    run(repository, "elsewhere", other["elsewhere"], elsewhere, verdict=BETTER, profile=PROFILE)
    found = repository.similar_runs(PROFILE, HARDWARE.key, 5, but_not=WORKLOAD.key)
    assert [(one.run_id, one.workload.command, one.kind) for one in found] == [
        ("near", "near", PROFILE.kind),
        ("far", "far", WorkloadClass.LATENCY_SENSITIVE),
    ]
    assert 0 < found[0].distance < 1 < found[1].distance
    [lesson] = found[0].lessons
    assert (lesson.policy, lesson.outcome, lesson.ratio, lesson.run_id) == ("fair", Outcome.BETTER, 0.8, "near")
    assert [one.run_id for one in repository.similar_runs(PROFILE, HARDWARE.key, 1)] == ["own"]
    assert repository.similar_runs(PROFILE, "nowhere") == []


def test_another_kind_of_work_is_far_away():
    other = dataclasses.replace(PROFILE, kind=WorkloadClass.LATENCY_SENSITIVE)
    assert distance(PROFILE, PROFILE) == 0
    assert distance(PROFILE, other) == distance(other, PROFILE) == 2


def test_a_profile_with_nothing_in_it_can_be_compared(repository):
    empty = dataclasses.replace(
        PROFILE, commands=(), histories=(), parallelism=(), cpu_s=0.0, busy_fraction=float("nan"), cpus=0
    )
    run(repository, "r1", verdict=BETTER, profile=PROFILE)
    [found] = repository.similar_runs(empty, HARDWARE.key)
    assert found.distance > 1


# --- the schema before


@pytest.fixture
def before(state, monkeypatch):
    """A database of schema 0001, with a run in it that ended there."""
    path = state.state_dir / "repository.sqlite"
    with monkeypatch.context() as patch:
        patch.setattr(repo_store.database.engine, "SCHEMA", "0001")
        with PolicyRepository(path) as old, failures_kept(path):
            old.create_run(WORKLOAD, HARDWARE, run_id="old")
            old.save_profile("old", PROFILE)
    key = CandidatePolicy("fair", (("slice_us", 500),), reason="first").key
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("INSERT INTO plans VALUES ('old', 0, 'why', '')")
        candidate = ("old", 0, key, 0, "fair", '[["slice_us",500]]', "[]", "[]", "first")
        connection.execute("INSERT INTO candidates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", candidate)
        verdict = ("old", 0, key, "better", 0.8, 0.75, 0.85, 0.975, 6, 0, "20 % lower", "2026")
        connection.execute(f"INSERT INTO verdicts VALUES ({', '.join('?' * len(verdict))})", verdict)
    connection.close()
    return path


def test_a_database_of_the_schema_before_is_brought_up_to_date(before):
    with PolicyRepository(before) as repository:
        [candidate] = repository.plan("old", 0).candidates
        assert candidate == CandidatePolicy("fair", (("slice_us", 500),), reason="first")
        assert candidate.origin is Origin.CONFIGURE
        assert repository.verdicts("old", 0) == {candidate.key: BETTER}
        assert repository.profile("old") == PROFILE
        assert repository.derived_policies() == []
        assert repository.winners() == {"fair"}
        repository.save_plan("old", 0, Plan((candidate,), "why"))
        repository.save_repair("old", 0, candidate.key, REPAIR)
        repository.keep_policy(MADE)
        repository.save_meaning("old", Meaning("a", "b"))
        repository.add_insight(Insight("x", (candidate.key,), "old", "2026"))
    with closing(sqlite3.connect(before)) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(SCHEMA,)]
