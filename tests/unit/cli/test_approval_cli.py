"""Approvals at the command line: what it prints, its exit statuses, and the question at a terminal."""

from __future__ import annotations

import json
import multiprocessing
import os
import pty
import pwd
import re
import sys
import time
from dataclasses import replace

import pytest

from repo_store.records import RunStatus
from schedagent.approval.approvals import waiting
from schedagent.cli import app as cli
from schedagent.cli import common
from schedagent.core import token
from schedagent.core.approval import ApprovalStage
from schedagent.run import opening
from schedagent.run.lifecycle import only_one
from schedagent.run.options import RunOptions, read_approve
from tests.support import scripted_lab as scripted
from tests.support.command_line import refused
from tests.support.scripted_lab import LIBRARY, Script

ME = pwd.getpwuid(os.getuid()).pw_name
FORKSERVER = multiprocessing.get_context("forkserver")
ANSWER_S = 30


def optimize(run, *words, status=common.EXIT_WAITING):
    result = run("optimize", "--workload", "true", *words)
    assert result.exit_code == status, result.output
    return result


def waiting_run(run) -> str:
    [listed] = [found for found in json.loads(run("runs", "list", "--json").stdout) if found["status"] == "waiting"]
    return listed["run"]


def test_approve_from_another_terminal(run, script):
    result = optimize(run, "--approve", "plan")
    run_id = waiting_run(run)
    digest = re.search(r"Digest of what is shown here: (\w{64})", result.stdout).group(1)
    for words in (["approve", run_id], ["reject", run_id]):
        assert f"schedagent {' '.join(words)} --digest {digest[:16]}" in result.stderr
    assert "Plan 1 of run" in result.stdout
    assert "longest_first (configure)" in result.stdout
    assert "(default 5000)" in result.stdout

    shown = run("runs", "show", run_id)
    assert f"schedagent approve {run_id} --digest {digest[:16]}" in shown.stdout
    assert "longest_first (configure)" in shown.stdout
    refused(run("approve", run_id, "--digest", "0" * 16), f"waits for the approval of {digest}, not of 0{{16}}")

    assert "Plan 2 of run" in run("approve", run_id, "--digest", digest[:16]).stdout
    result = run("approve", run_id, "--because", "looks good")
    assert result.exit_code == 0, result.output
    assert f"Plan 2 was approved by {ME}: looks good" in result.stdout
    refused(run("approve", run_id), "does not wait for an approval; .* approved by .* hint: it is finished")


def test_reject_from_another_terminal(run, script):
    optimize(run, "--approve", "plan", "--iterations", "1")
    run_id = waiting_run(run)
    result = run("reject", run_id, "--because", "not today")
    assert result.exit_code == common.EXIT_NO
    assert f"Plan 1 was rejected by {ME}: not today" in result.stdout
    assert "nothing was tried, because no plan was approved. Keep the default scheduler." in result.stdout
    assert "not today" in run("runs", "show", run_id).stdout


def test_json_of_a_run_that_waits(run, script):
    report = json.loads(optimize(run, "--approve", "plan", "--json").stdout)
    assert report["waiting"]["stage"] == "plan"
    assert json.loads(run("runs", "show", report["run"], "--json").stdout)["waiting"] == report["waiting"]
    again = run("resume", report["run"], "--json")
    assert again.exit_code == common.EXIT_WAITING
    assert json.loads(again.stdout)["waiting"] == report["waiting"]
    after = run("approve", report["run"], "--digest", report["waiting"]["digest"], "--json")
    assert after.exit_code == common.EXIT_WAITING
    assert json.loads(after.stdout)["approvals"][0]["by"] == ME
    done = run("approve", report["run"], "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["waiting"] is None


def test_the_deployment_in_words(run, script, monkeypatch):
    monkeypatch.setattr(opening, "open_verifier", lambda _settings: scripted.Verifier(replace(script, signs=True)))
    result = optimize(run, "--approve", "deploy", "--iterations", "1")
    for words in ("7 gates passed", "Expected effect: ratio 0.", "passed: proving ground", "once on kernel 7.3.4"):
        assert words in result.stdout
    run_id = waiting_run(run)
    done = run("approve", run_id)
    assert done.exit_code == 0
    assert f"The deployment was approved by {ME}" in done.stdout
    assert f"A token for it (schedagent runs show {run_id} --json: deployment) allows whoever has it" in done.stdout
    assert token.decode(json.loads(run("runs", "show", run_id, "--json").stdout)["deployment"]["token"])

    optimize(run, "--approve", "deploy", "--iterations", "1")
    rejected = run("reject", waiting_run(run), "--because", "not on a Friday")
    assert rejected.exit_code == 0, "a better policy was found"
    assert f"The deployment was rejected by {ME}: not on a Friday\nNo token was issued." in rejected.stdout


def test_bad_usage(run, script):
    refused(
        run("optimize", "--workload", "true", "--approve", "plans"), "--approve 'plans' is not known hint: accepted"
    )
    refused(run("optimize", "--workload", "true", "--approve", "none,plan"), "is not known")
    refused(run("optimize", "--workload", "true", "--approve", ""), "is not known")
    refused(run("approve", "nothing"), "there is no run 'nothing'")
    refused(run("reject", "nothing", "--because", "no"), "there is no run 'nothing'")
    refused(run("approve", "nothing", "--digest", "abc"), "--digest 'abc' is not a digest")
    refused(run("approve", "nothing", "--digest", "x" * 16), "is not a digest")
    refused(run("reject", "nothing", "--because", " "), "--because is empty hint: say why")
    assert run("reject", "nothing").exit_code == common.EXIT_USAGE
    assert json.loads(run("runs", "list", "--json").stdout) == []


def test_a_run_that_is_worked_on_is_not_decided(run, script):
    optimize(run, "--approve", "plan")
    run_id = waiting_run(run)
    with only_one(script.settings, run_id):
        refused(run("approve", run_id), "another process is working on run")
    with script.repository() as repository:
        assert waiting(repository, run_id)


def test_which_approvals():
    assert read_approve("none") == ()
    assert read_approve("plan") == (ApprovalStage.PLAN,)
    assert read_approve("deploy, plan") == (ApprovalStage.PLAN, ApprovalStage.DEPLOY)
    stored = {"iterations": 1, "budget_s": 1.0, "candidates": 1, "rules": {}}
    assert RunOptions.from_json(stored).approve == (), "a run of before there were approvals"
    assert RunOptions.from_json({**stored, "approve": ["deploy"]}).approve == (ApprovalStage.DEPLOY,)


# --- at the terminal -------------------------------------------------------------------------------------------------


def at_terminal(script: Script, terminal: str, words: tuple[str, ...]) -> None:
    """Be the command line at a terminal, with the scripted lab."""
    descriptor = os.open(terminal, os.O_RDWR | os.O_NOCTTY)
    for number in (0, 1, 2):
        os.dup2(descriptor, number)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
    os.environ["SCHEDAGENT_STATE"] = str(script.settings.state_dir)
    os.environ["SCHEDAGENT_CACHE"] = str(script.settings.cache_dir)
    opening.open_lab = lambda _settings: scripted.Lab(script)
    opening.open_verifier = lambda _settings: scripted.Verifier(script)
    opening.load_library = lambda: LIBRARY
    cli.app(list(words))


class Terminal:
    """The command line in a process of its own, at a pseudo-terminal."""

    def __init__(self, script: Script, *words: str) -> None:
        self._master, slave = pty.openpty()
        os.set_blocking(self._master, False)
        self.process = FORKSERVER.Process(target=at_terminal, args=(script, os.ttyname(slave), words))
        self.process.start()
        self._slave = slave
        self.said = ""

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + ANSWER_S
        while text not in self.said:
            assert time.monotonic() < deadline, self.said
            assert self.process.is_alive() or self._read(), self.said
            self._read()

    def _read(self) -> bool:
        try:
            self.said += os.read(self._master, 65536).decode(errors="replace")
        except BlockingIOError:
            time.sleep(0.02)
            return False
        return True

    def type(self, text: str) -> None:
        self.said = ""
        os.write(self._master, text.encode())

    def end(self) -> int:
        deadline = time.monotonic() + ANSWER_S
        ended = False
        while not ended and time.monotonic() < deadline:
            ended = not self.process.is_alive()  # looked at first: what it said last is read after that
            self._read()
        os.close(self._master)
        os.close(self._slave)
        assert self.process.exitcode is not None
        return self.process.exitcode


OPTIMIZE = ("optimize", "--workload", "true", "--approve", "plan")
PROMPT = "l(ater): "


def test_the_question_is_asked_at_a_terminal(script):
    terminal = Terminal(script, *OPTIMIZE, "--candidates", "2")
    terminal.wait_for(PROMPT)
    assert "longest_first (configure)" in terminal.said
    terminal.type("what?\n")
    terminal.wait_for(PROMPT)
    terminal.type("n\n")
    terminal.wait_for("Because: ")
    terminal.type("\n")
    terminal.wait_for("--because is empty")
    terminal.wait_for(PROMPT)
    terminal.type("n\n")
    terminal.wait_for("Because: ")
    terminal.type("too long\n")
    terminal.wait_for("Plan 2 of run")
    terminal.wait_for(PROMPT)
    terminal.type("y\n")
    assert terminal.end() in (0, common.EXIT_NO)
    with script.repository() as repository:
        [listed] = repository.list_runs()
        assert listed.status is RunStatus.FINISHED
        told = [(decision.approved, decision.because) for _asked, decision in repository.approvals(listed.id)]
    assert told == [(False, "too long"), (True, "")]


@pytest.mark.parametrize(("keys", "status"), [("l\n", common.EXIT_WAITING), ("\x04", common.EXIT_WAITING)])
def test_later(run, script, keys, status):
    terminal = Terminal(script, *OPTIMIZE)
    terminal.wait_for(PROMPT)
    terminal.type(keys)
    assert terminal.end() == status
    assert "schedagent approve" in terminal.said
    assert waiting_run(run)


def test_killed_at_the_question_another_process_goes_on(run, script):
    terminal = Terminal(script, *OPTIMIZE, "--iterations", "1")
    terminal.wait_for(PROMPT)
    terminal.process.kill()
    terminal.end()
    run_id = waiting_run(run)
    result = run("approve", run_id)
    assert result.exit_code == 0, result.output
    assert script.log.count("observe") == 1


def test_answered_from_another_terminal_the_question_is_void(run, script):
    terminal = Terminal(script, *OPTIMIZE, "--iterations", "1")
    terminal.wait_for(PROMPT)
    run_id = waiting_run(run)
    assert run("reject", run_id, "--because", "no").exit_code == common.EXIT_NO
    terminal.type("y\n")
    assert terminal.end() == common.EXIT_USAGE
    assert "does not wait for an approval" in " ".join(terminal.said.split())
    assert script.log.count("verify") == 0
