"""What Tab offers: the user's own runs and policies, choices and topics, at once and without ever failing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest

from repo_store.database.names import derived_policies, run_ids
from repo_store.records import RunStatus
from schedagent.cli.guide import completion
from schedagent.cli.guide.topics import topic_names
from schedagent.core.approval import ApprovalStage
from schedagent.core.policies.proposal import DerivedPolicy, Origin
from schedagent.core.trials.workload import Goal
from tests.support.paths import ROOT
from verifier.proving.prove import Depth


@pytest.fixture
def repository(script):
    script.settings.state_dir.mkdir()
    with script.repository() as opened:
        yield opened


def offered(shell, *words, **environment):
    """What the program answers a shell that completes the last of these words."""
    typed = " ".join(["schedagent", *words])
    asked = {
        "_SCHEDAGENT_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(words)),
        "_TYPER_COMPLETE_ARGS": typed,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = subprocess.run(
        [sys.executable, "-m", "schedagent"],
        env={**os.environ, **asked, **environment},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return set(re.findall(r"[\w,.-]+", done.stdout))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_runs_that_a_verb_takes_are_offered(repository, script, shell):
    waiting, finished = script.create(), script.create()
    repository.finish_run(waiting, RunStatus.WAITING)
    repository.finish_run(finished, RunStatus.FINISHED)
    assert {waiting, finished} <= offered(shell, "runs", "show", waiting[:8])
    for verb, expected, other in (("approve", waiting, finished), ("deploy", finished, waiting)):
        words = offered(shell, verb, "")
        assert expected in words
        assert other not in words


def test_runs_of_another_folder_are_not_offered(repository, script, tmp_path):
    run_id = script.create()
    assert run_id in offered("bash", "resume", "")
    assert offered("bash", "resume", "", SCHEDAGENT_STATE=str(tmp_path / "other")) == set()
    assert not (tmp_path / "other").exists()


def test_policies_topics_and_choices_are_offered(repository):
    repository.keep_policy(DerivedPolicy("fair_1", Origin.PATCH, "fair", "c", "m", None, "", "2026-11-30"))
    assert offered("bash", "policies", "show", "fa") == {"fair", "fair_1"}
    assert offered("bash", "verify", "longest") == {"longest_first"}
    assert offered("bash", "optimize", "--goal", "") == {"makespan", "latency", "throughput"}
    assert offered("bash", "runs", "list", "--status", "fa") == {"failed"}
    assert offered("bash", "deploy", "--stage", "") == {"pulse", "canary", "full"}
    assert offered("bash", "help", "") == set(topic_names())


@pytest.mark.parametrize("content", [b"", b"no database at all " * 500], ids=["empty", "damaged"])
def test_what_cannot_be_read_offers_nothing(tmp_path, content):
    path = tmp_path / "repository.sqlite"
    path.write_bytes(content)
    assert run_ids(path, tuple(RunStatus)) == derived_policies(path) == []
    assert run_ids(tmp_path / "none", tuple(RunStatus)) == []
    assert not (tmp_path / "none").exists()
    assert path.read_bytes() == content


def test_settings_that_are_refused_offer_nothing(folders):
    assert offered("bash", "resume", "", SCHEDAGENT_VM_CPUS="many") == set()


def test_a_shell_does_not_wait_for_the_repository_to_open(repository, script):
    script.create()
    program = (
        "import sys; from schedagent.cli.guide import completion; assert completion.runs(''); completion.policies('')\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not {"sqlalchemy", "pydantic", "repo_store.store", "rich"} & set(done.stdout.split())


def test_a_busy_repository_is_not_waited_for(repository, script):
    run_id = script.create()
    path = script.settings.repository_path
    with repository._transaction():
        begun = time.monotonic()
        assert run_ids(path, ("running",)) == [run_id]
        assert time.monotonic() - begun < 5


def test_what_is_offered_is_what_is_accepted():
    assert completion.goals("") == list(Goal)
    assert completion.depths("") == [depth.name.lower() for depth in Depth]
    assert set(completion.statuses("")) == set(RunStatus)
    assert {*completion.approvals("")} >= {"none", *ApprovalStage}
