"""`schedagent prune` on a state folder in which a thousand runs have piled up."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from agents.planner.rules import plan as plan_by_rules
from agents.planning import propose
from kernel_bpf.policies.library import load_library
from repo_store.records import RunStatus
from repo_store.retention.unneeded import Stays
from repo_store.store import PolicyRepository
from schedagent.core.approval import ApprovalRequest, ApprovalStage
from schedagent.core.recommendation import ApplyRequest, Progress
from schedagent.core.settings import load_settings
from schedagent.report.build import read_report
from schedagent.retention import prune as pruning
from schedagent.retention.plan import make_plan
from schedagent.run.lifecycle import only_one
from schedagent.run.progress import LineReporter
from tests.support import old_state
from tests.support.command_line import refused
from tests.support.finished_runs import HARDWARE, optimise, profile
from tests.support.old_state import DAY_S, files, pile
from tests.support.paths import ROOT

pytestmark = pytest.mark.timeout(120)
KEPT_DAYS = 30
SILENT = LineReporter(lambda _text: None)


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """A state folder with a thousand runs, made once: each test works on a copy."""
    return make_pile(tmp_path_factory.mktemp("thousand") / "state", 1000)


@pytest.fixture(scope="module")
def hundred(tmp_path_factory):
    """The same with a hundred runs."""
    return make_pile(tmp_path_factory.mktemp("hundred") / "state", 100)


def make_pile(state, count):
    now = time.time()
    runs = pile(count, days=250, now=now)
    old_state.store(state / "repository.sqlite", runs)
    old_state.add_files(state, runs)
    return state, runs, now


class Pile:
    """A copy of the state folder, and a cache folder."""

    def __init__(self, thousand, folder):
        source, self.runs, self.now = thousand
        self.state, self.cache = folder / "state", folder / "cache"
        shutil.copytree(source, self.state)
        self.old_cache = old_state.add_cache(self.cache, self.now)
        self.settings = load_settings(
            {"SCHEDAGENT_STATE": str(self.state), "SCHEDAGENT_CACHE": str(self.cache)}, folder / "config.toml"
        )

    def repository(self):
        return PolicyRepository(self.state / "repository.sqlite")

    @property
    def old(self):
        return [run for run in self.runs if run.at + 600 < self.now - KEPT_DAYS * DAY_S]

    def plan(self):
        return make_plan(self.settings, KEPT_DAYS * DAY_S)

    def prune(self):
        return pruning.carry_out(self.settings, self.plan(), SILENT)


@pytest.fixture
def alone(folders, monkeypatch):
    """The folders of the command line, on a machine that never had schedagentd."""
    (folders / "config.toml").write_text(f'[daemon]\nsocket = "{folders}/nobody.sock"\n')
    monkeypatch.setenv("SCHEDAGENT_CONFIG", str(folders / "config.toml"))
    monkeypatch.setattr("schedagent.retention.deployed.RECORD", folders / "schedagentd" / "record.sqlite")
    return folders


@pytest.fixture
def piled(alone, request):
    wanted = "thousand" if request.cls is TestThousandRuns else "hundred"
    return Pile(request.getfixturevalue(wanted), alone)


def present(piled):
    with piled.repository() as repository:
        return set(repository.statuses())


def deploy(folders, run, days_later=1.0):
    """Have schedagentd's record contain a deployment of what a run found better."""
    folder = folders / "schedagentd"
    folder.mkdir(exist_ok=True)
    body = {"order": {"digest": run.digest, "policy": "longest_first"}, "created_at": run.at + days_later * DAY_S}
    with closing(sqlite3.connect(folder / "record.sqlite")) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS deployments (body TEXT)")
        database.execute("INSERT INTO deployments VALUES (?)", (json.dumps(body),))


class TestThousandRuns:
    def test_dry_run_and_run_agree_and_nothing_else_goes(self, piled, run):
        runs_before, files_before = present(piled), files(piled.state) | files(piled.cache)
        size = (piled.state / "repository.sqlite").stat().st_size
        shown = json.loads(run("prune", "--dry-run", "--json").stdout)
        assert files(piled.state) | files(piled.cache) == files_before, "a dry run"
        assert present(piled) == runs_before
        done = json.loads(run("prune", "--json").stdout)

        assert done["kinds"] == shown["kinds"]
        assert (done["count"], done["bytes"]) == (shown["count"], shown["bytes"])
        assert done["removed"] == {kind: planned["count"] for kind, planned in shown["kinds"].items()}
        names = {kind: set(planned["names"]) for kind, planned in shown["kinds"].items()}
        assert runs_before - present(piled) == names["runs"]
        assert len(names["runs"]) > 600

        gone = files_before - files(piled.state) - files(piled.cache)
        in_files = {
            "transcripts",
            "locks",
            "snapshots",
            "objects",
            "reports",
            "headers",
            "types",
            "kernels",
            "apt",
            "leftovers",
        }
        planned_files = set().union(*(names[kind] for kind in in_files))
        policy_files = {
            str(piled.state / "policies" / f"{name}{end}") for name in names["policies"] for end in (".bpf.c", ".toml")
        }
        assert {
            path for path in gone if not any(path.startswith(f"{other}/") for other in gone)
        } == planned_files | policy_files
        assert {kind: {str(path)} for kind, path in piled.old_cache.items()} == {
            kind: names[kind] for kind in piled.old_cache
        }
        assert done["repository_bytes"] == {"before": size, "after": (piled.state / "repository.sqlite").stat().st_size}
        assert done["repository_bytes"]["after"] < size / 2, "the space is given back"

    def test_running_it_again_removes_nothing(self, piled, run):
        run("prune")
        state = files(piled.state), files(piled.cache), present(piled)
        again = run("prune")
        assert again.exit_code == 0
        assert "Nothing to remove" in again.stdout
        assert (files(piled.state), files(piled.cache), present(piled)) == state

    def test_nothing_that_is_needed_goes(self, piled, run, folders):
        """What is needed is worked out here by other means than there."""
        deployed = next(run for run in piled.old if run.won)
        deploy(folders, deployed)
        waiting = next(run for run in piled.old if run.status is RunStatus.INTERRUPTED)
        recommended, requested = [run for run in piled.old if not run.won and run.status is RunStatus.FINISHED][20:22]
        with piled.repository() as repository:
            repository.ask_approval(waiting.id, ApprovalRequest(ApprovalStage.PLAN, 0, {"run": waiting.id}))
            repository.service.recommend(optimise(key="a", now=piled.now, run=recommended.id))
            asked = repository.service.recommend(optimise(key="b", now=1.0, lasts_s=1.0))
            repository.service.save_request(
                ApplyRequest(1, asked.id, "/c", "ada", 1.0, progress=Progress.KEEPING, run_id=requested.id)
            )
        needed = {deployed.id, waiting.id, recommended.id, requested.id}
        needed |= {run.id for run in piled.runs if run not in piled.old}
        needed |= {run.id for run in piled.old if run.status is not RunStatus.FINISHED and run.observed}
        newest_proofs = {run.workload.key: run.id for run in piled.runs if run.won}
        needed |= set(newest_proofs.values())
        before = reports(piled, needed)
        plans, transcripts = planned(piled), {run_id: transcript(piled, run_id).exists() for run_id in needed}

        run("prune")

        assert needed <= present(piled)
        assert len(needed) < len(present(piled)) < 400
        assert reports(piled, needed) == before
        assert planned(piled) == plans, "planning learned the same"
        assert {run_id: transcript(piled, run_id).exists() for run_id in needed} == transcripts
        with piled.repository() as repository:
            assert repository.winners() == {"longest_first"}
            assert repository.service.requests(Progress.KEEPING)
        unfinished = {run.id for run in piled.runs if run.number % 25 in (7,) and run.number % 50 == 7}
        assert old_state.threads(piled.state / "checkpoints.sqlite") >= unfinished

    def test_a_run_that_planning_learns_from_keeps_its_figures_only(self, piled):
        plan = piled.plan()
        learned_from = {run_id for run_id, why in plan.stays.items() if why is Stays.LESSON}
        assert learned_from
        with piled.repository() as repository:
            before = {run_id: figures(repository, run_id) for run_id in learned_from}
        pruning.carry_out(piled.settings, plan, SILENT)
        with piled.repository() as repository:
            assert {run_id: figures(repository, run_id) for run_id in learned_from} == before
            printed = {
                s.output_tail for run_id in learned_from for b in repository.blocks(run_id, 0) for s in b.samples
            }
        assert printed == {""}
        assert not any(transcript(piled, run_id).exists() for run_id in learned_from)

    def test_what_has_figures_only_is_not_just_said_to_have_asked_no_model(self, piled, run):
        learned_from = [run_id for run_id, why in piled.plan().stays.items() if why is Stays.LESSON]
        thin = next(run_id for run_id in learned_from if transcript(piled, run_id).exists())
        piled.prune()
        for words in (("runs", "replay", thin), ("runs", "show", thin, "--transcript")):
            refused(run(*words), f"run {thin} has asked no model, or prune kept only its figures")

    def test_policies_that_nothing_came_of_go_and_those_of_runs_that_stay_do_not(self, piled):
        piled.prune()
        left = present(piled)
        with piled.repository() as repository:
            names = {made.name for made in repository.derived_policies()}
        assert names == {run.derived for run in piled.runs if run.derived and run.id in left}
        assert {path.name for path in (piled.state / "policies").glob("*.bpf.c")} == {f"{name}.bpf.c" for name in names}

    def test_the_repository_is_sound_afterwards(self, piled):
        piled.prune()
        with closing(sqlite3.connect(piled.state / "repository.sqlite")) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert database.execute("PRAGMA foreign_key_check").fetchall() == []
            assert database.execute("PRAGMA freelist_count").fetchall() == [(0,)]

    def test_progress_in_a_pipe_is_few_lines(self, piled, run):
        shown = run("prune").stderr.splitlines()
        assert "deleting runs: 100 done, at most" in "\n".join(shown)
        assert len(shown) < 60

    def test_what_it_shows_fits_80_columns_and_a_pipe(self, piled, run):
        for words in ((), ("--limits",)):
            shown = run("prune", "--dry-run", *words).stdout
            assert max(map(len, shown.splitlines())) <= 80, shown
        assert re.search(
            r"^ +\d+ +[\d.]+ MB  20\d\d-\d\d-\d\d  runs, with plans", run("prune", "--dry-run").stdout, re.M
        )


def reports(piled, ids):
    """All that the repository knows of runs."""
    with piled.repository() as repository:
        return {
            run_id: (read_report(repository, run_id, transcript(piled, run_id)), repository.blocks(run_id, 0))
            for run_id in ids
        }


def planned(piled):
    """What the rules would try next on each workload."""
    with piled.repository() as repository:
        return [
            propose(
                plan_by_rules, repository, load_library(), workload=workload, hardware=HARDWARE, profile=profile(),
                iteration=0,
            )
            for workload in old_state.WORKLOADS
        ]  # fmt: skip


def figures(repository, run_id):
    samples = [(s.arm, s.value, s.cpu_ns) for block in repository.blocks(run_id, 0) for s in block.samples]
    return repository.plan(run_id, 0), str(repository.verdicts(run_id, 0)), samples


def transcript(piled, run_id):
    return piled.state / "runs" / f"{run_id}.transcript.jsonl"


class TestCutShort:
    @pytest.mark.parametrize("step", ["prune_runs", "prune_policies", "give_back_space", "remove_transcripts"])
    def test_a_prune_that_was_killed_is_repeated(self, piled, step, monkeypatch):
        """Killed at its second batch, before its policies, ...: what is left goes the next time, as if uncut."""
        expected = {kind: {entry.name for entry in entries} for kind, entries in piled.plan().kinds.items()}
        code = KILL.format(step=step, older=KEPT_DAYS * DAY_S)
        environment = {**os.environ, "SCHEDAGENT_CONFIG": str(piled.settings.config_path)}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=False, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        with closing(sqlite3.connect(piled.state / "repository.sqlite")) as database:
            assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        rest = piled.plan()
        left = {kind: {entry.name for entry in entries} for kind, entries in rest.kinds.items()}
        assert all(left[kind] <= expected[kind] for kind in left)
        assert {entry for names in left.values() for entry in names}, "it was cut short"
        piled.prune()
        assert not piled.plan().kinds
        assert not expected["runs"] & present(piled)
        assert not any(transcript(piled, run_id).exists() for run_id in expected["runs"])

    def test_ctrl_c_leaves_the_rest_for_the_next_time(self, piled, run, monkeypatch):
        monkeypatch.setattr(pruning, "_AT_ONCE", 20)
        real, calls = PolicyRepository.prune_runs, []

        def interrupted(repository, ids, question):
            calls.append(len(ids))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return real(repository, ids, question)

        monkeypatch.setattr(PolicyRepository, "prune_runs", interrupted)
        stopped = run("prune")
        assert stopped.exit_code == 130
        assert "What is left goes the next time: schedagent prune" in stopped.stderr
        assert len(present(piled)) == len(piled.runs) - calls[0] - calls[1]
        monkeypatch.setattr(PolicyRepository, "prune_runs", real)
        assert run("prune").exit_code == 0
        assert "Nothing to remove" in run("prune", "--dry-run").stdout

    def test_of_two_at_once_the_second_is_refused(self, piled, run):
        with pruning._only_prune(piled.settings):
            refused(run("prune"), "another prune works on")
            assert run("prune", "--dry-run").exit_code == 0
        assert run("prune").exit_code == 0


KILL = """
import os, signal, sys
from repo_store.store import PolicyRepository
from schedagent.core.settings import load_settings
from schedagent.retention import prune, state
from schedagent.retention.plan import make_plan
from schedagent.run.progress import LineReporter

prune._AT_ONCE = 20
place = state if hasattr(state, "{step}") else PolicyRepository
real, calls = getattr(place, "{step}"), []

def killed(*words, **named):
    calls.append(1)
    if len(calls) == 2 or "{step}" != "prune_runs":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*words, **named)

setattr(place, "{step}", killed)
settings = load_settings()
prune.carry_out(settings, make_plan(settings, {older}), LineReporter(lambda _text: None))
"""


class TestBesideOthers:
    def test_a_run_that_somebody_works_on_stays(self, piled):
        begun = next(run for run in piled.old if run.status is RunStatus.FAILED)
        plan = piled.plan()
        assert begun.id in {entry.name for entry in plan.kinds["runs"]}
        with only_one(piled.settings, begun.id):
            pruned = pruning.carry_out(piled.settings, plan, SILENT)
            assert pruned.removed["runs"] == len(plan.kinds["runs"]) - 1
            assert begun.id in present(piled)
            assert (piled.state / "runs" / f"{begun.id}.lock").exists()
        assert begun.id not in piled.prune().removed

    def test_what_became_needed_after_the_plan_stays(self, piled):
        plan = piled.plan()
        run_id = next(run.id for run in piled.old if run.id in {entry.name for entry in plan.kinds["runs"]})
        with piled.repository() as repository:
            repository.service.recommend(optimise(now=piled.now, run=run_id))
        pruning.carry_out(piled.settings, plan, SILENT)
        assert run_id in present(piled)
        assert transcript(piled, run_id).exists()

    def test_a_snapshot_that_is_being_built_stays(self, piled):
        from schedagent.core.retention.lock import locked

        place = piled.old_cache["snapshots"]
        plan = piled.plan()
        with locked(place.with_name(f"{place.name}.lock"), wait=False):
            assert pruning.carry_out(piled.settings, plan, SILENT).removed["snapshots"] == 0
        assert place.exists()

    def test_what_was_used_after_the_plan_stays(self, piled):
        plan = piled.plan()
        os.utime(piled.old_cache["objects"])
        assert pruning.carry_out(piled.settings, plan, SILENT).removed["objects"] == 0
        assert piled.old_cache["objects"].exists()

    def test_the_newest_kernels_stay_however_old_and_so_does_one_that_a_run_needs(self, piled):
        def kernels():
            return {Path(entry.name).name for entry in piled.plan().kinds.get("kernels", ())}

        for release in ("8.0.0-newest", "7.9.9-before", HARDWARE.kernel_release):
            old_state.write(piled.cache / "kernels" / release / "vmlinuz", b"x", piled.now - 99 * DAY_S)
            os.utime(piled.cache / "kernels" / release, (piled.now - 99 * DAY_S,) * 2)
        assert kernels() == {"6.1.0-test"}
        (piled.state / "repository.sqlite").unlink()
        assert kernels() == {"6.1.0-test", HARDWARE.kernel_release}


class TestHostile:
    def test_links_are_not_followed_and_foreign_files_not_touched(self, piled, run, tmp_path):
        precious = old_state.write(tmp_path / "outside" / "precious", b"x", 0)
        links = [
            piled.state / "runs" / "20200101-000000-abcdef.transcript.jsonl",
            piled.state / "runs" / "20200101-000000-abcdef.lock",
            piled.cache / "objects" / ("f" * 32),
            piled.cache / "snapshots" / ("f" * 24),
            piled.cache / "reports" / ("f" * 32 + ".json"),
            piled.cache / "apt-evil",
        ]
        for link in links:
            link.symlink_to(precious.parent if "snapshots" in str(link) or "apt" in link.name else precious)
        foreign = [
            old_state.write(piled.state / name, b"x", 0)
            for name in (
                "notes.txt",
                "runs/notes.lock",
                "runs/my.transcript.jsonl",
                "policies/own.bpf.c",
                "keys/signing.key",
            )
        ] + [
            old_state.write(piled.cache / name, b"x", 0)
            for name in (
                "objects/readme",
                "venv/bin/python",
                "apt-own/file",
                "snapshots/mine/state",
                "kernels/7.0-own.txt",
            )
        ]
        (piled.cache / "snapshots" / ("a" * 24)).mkdir()
        (piled.cache / "snapshots" / ("a" * 24) / "state").symlink_to(precious)
        os.utime(piled.cache / "snapshots" / ("a" * 24), (1, 1))
        run("prune")
        assert precious.read_bytes() == b"x"
        assert all(link.is_symlink() for link in links)
        assert all(path.read_bytes() == b"x" for path in foreign)
        assert not (piled.cache / "snapshots" / ("a" * 24)).exists()

    def test_a_whole_folder_that_is_a_link_is_left_alone(self, piled, run, tmp_path):
        moved = tmp_path / "moved"
        (piled.cache / "objects").rename(moved)
        (piled.cache / "objects").symlink_to(moved)
        before = files(moved)
        run("prune")
        assert files(moved) == before

    def test_without_a_repository_only_the_cache_is_pruned(self, piled, run):
        (piled.state / "repository.sqlite").rename(piled.state / "repository.sqlite.broken")
        before = files(piled.state)
        assert "booted machines" in run("prune").stdout
        assert files(piled.state) - before <= {str(piled.state / "prune.lock")}
        assert before <= files(piled.state)

    def test_a_damaged_repository_is_said_to_be_damaged(self, piled, run):
        (piled.state / "repository.sqlite").write_bytes(b"nothing" * 1000)
        refused(run("prune"), "is damaged", status=1)


class TestDeployed:
    @pytest.mark.parametrize(("days_later", "stays"), [(0.5, True), (6.9, True), (8.0, False), (-1.0, False)])
    def test_a_run_stays_whose_token_may_have_permitted_a_deployment(self, piled, folders, days_later, stays):
        """A token holds for a week at most."""
        run = next(run for run in piled.old if run.won)
        deploy(folders, run, days_later)
        assert (piled.plan().stays.get(run.id) is Stays.DEPLOYED) is stays

    def test_if_the_record_cannot_be_read_every_winner_stays(self, piled, folders, run):
        (folders / "schedagentd").mkdir()
        (folders / "schedagentd" / "record.sqlite").write_bytes(b"no database at all" * 100)
        shown = run("prune", "--dry-run").stdout
        assert "schedagentd's record cannot be read here, so every run with a winner stays." in " ".join(shown.split())
        plan = piled.plan()
        assert all(plan.stays.get(run.id) is Stays.DEPLOYED for run in piled.old if run.won)


@pytest.mark.parametrize("text", ["", "30", "d", "0d", "1m", "1.5h", "-1d", "²d", "999999d", "99999w", "30 d"])
def test_an_age_that_is_none_is_refused(folders, run, text):
    refused(run("prune", "--older-than", text), "accepted: hours, days or weeks")


def test_on_a_machine_without_anything_there_is_nothing_to_do(folders, run):
    result = run("prune")
    assert (result.exit_code, result.stdout) == (
        0,
        "Nothing to remove: all is younger than 30 days, in use, or needed.\n",
    )
    assert json.loads(run("prune", "--json", "--older-than", "2w").stdout)["older_than_s"] == 14 * DAY_S
