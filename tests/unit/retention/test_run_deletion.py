"""Deleting runs: each whole with its files, none that is deployed or worked on."""

from __future__ import annotations

import pytest

from agents.llm.transcript import transcript_path
from schedagent.core.errors import DaemonAbsent, SetupError, StillNeeded, UsageError
from schedagent.retention.deletion import delete_runs
from schedagent.run.lifecycle import CHECKPOINTS, only_one
from tests.support.deploy_orders import order_of
from tests.support.finished_runs import win
from tests.support.scripted_lab import Script


class Daemon:
    """Answers `status` as schedagentd does."""

    def __init__(self, digest: str = "", error: Exception | None = None) -> None:
        self.digest, self.error = digest, error

    def ask(self, verb, **_fields):
        assert verb == "status"
        if self.error:
            raise self.error
        active = {"digest": self.digest, "deployment": 7} if self.digest else None
        return {"active": active, "waiting": None}


ABSENT = Daemon(error=DaemonAbsent("schedagentd is not running"))


@pytest.fixture
def script(tmp_path):
    script = Script(tmp_path)
    script.settings.state_dir.mkdir()
    return script


def runs_of(script):
    with script.repository() as repository:
        return [run.id for run in repository.list_runs()]


def test_a_run_goes_with_its_transcript_and_its_steps(script):
    script.drive(script.create())
    [first] = runs_of(script)
    path = transcript_path(script.settings.state_dir, first)
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}\n")
    second = script.create()
    delete_runs(script.settings, [first, first], ABSENT)
    assert runs_of(script) == [second]
    assert not path.exists()


def test_steps_of_a_run_that_was_cut_short_are_forgotten(script):
    from langgraph.checkpoint.base import empty_checkpoint
    from langgraph.checkpoint.sqlite import SqliteSaver

    from schedagent.run.state import first_state

    run_id = script.create()
    checkpoints = script.settings.state_dir / CHECKPOINTS
    config = {"configurable": {"thread_id": run_id, "checkpoint_ns": ""}}
    with SqliteSaver.from_conn_string(str(checkpoints)) as saver:
        saver.put(config, {**empty_checkpoint(), "channel_values": first_state(run_id)}, {}, {})
    delete_runs(script.settings, [run_id], ABSENT)
    with SqliteSaver.from_conn_string(str(checkpoints)) as saver:
        assert list(saver.list(config)) == []


def test_what_is_deployed_stays(script):
    with script.repository() as repository:
        run_id, other = win(repository, run_id="a"), win(repository, policy="other", run_id="b")
    deployed = Daemon(order_of("good").digest)
    with pytest.raises(StillNeeded, match="deployment 7"):
        delete_runs(script.settings, [other, run_id], deployed)
    assert len(runs_of(script)) == 2
    delete_runs(script.settings, [other], deployed)
    assert runs_of(script) == [run_id]


def test_where_it_cannot_be_known_what_is_deployed_nothing_goes(script):
    run_id = script.create()
    with pytest.raises(SetupError, match="may not ask"):
        delete_runs(script.settings, [run_id], Daemon(error=SetupError("this user may not ask schedagentd")))
    assert runs_of(script) == [run_id]


def test_what_a_process_works_on_stays(script):
    run_id = script.create()
    with only_one(script.settings, run_id), pytest.raises(UsageError, match="another process is working on run"):
        delete_runs(script.settings, [run_id], ABSENT)
    assert runs_of(script) == [run_id]
