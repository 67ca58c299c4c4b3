"""The commands that ask schedagentd, against a real one over a scripted kernel."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from datetime import datetime

import pytest
from typer.testing import CliRunner

from schedagent.cli.app import app
from schedagent.cli.deploy import show
from schedagent.core.deployment import Stage
from schedagent.core.retention.limits import RETENTION
from schedagent.report.deployments import render_event, render_history, render_status
from schedagent.verification.deployable import deployment_fields
from tests.support.daemon_processes import Daemon, until
from tests.support.deploy_orders import CANARY, content_of, order_of
from tests.support.paths import ROOT

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def daemon(tmp_path, kernel):
    made = Daemon(tmp_path / "d", kernel).start()
    yield made
    assert made.end(signal.SIGTERM) == 0


@pytest.fixture
def files(tmp_path):
    """Write an object and its report as `verify` does; return both paths."""

    def write(name="good", **order):
        object_file, report = tmp_path / f"{name}.bpf.o", tmp_path / f"{name}.json"
        object_file.write_bytes(content_of(name))
        report.write_text(json.dumps({"policy": name, "token": order_of(name, **order).token, "passed": True}))
        return str(object_file), str(report)

    return write


def run(daemon, *words):
    result = CliRunner().invoke(app, [*words, "--socket", str(daemon.config.socket)])
    return result.exit_code, result.output


def deploy(daemon, files, name="good", *options, **order):
    object_file, report = files(name, **order)
    canary = ("--cgroup", CANARY, "--stage", "canary")
    return run(daemon, "deploy", object_file, "--report", report, *canary, *options)


def test_a_deployment_on_the_command_line(daemon, files):
    # Its history, and so its inputs, are empty: the command line sends none.
    assert run(daemon, "status")[1].startswith("in charge: the default scheduler\nkernel ")
    status, output = deploy(daemon, files, inputs_digest=EMPTY)
    assert (status, output.splitlines()[0]) == (0, "deployment 1: good slice_us=5000")
    until(lambda: daemon.client.ask("status")["active"]["proven"])
    status, output = run(daemon, "status")
    assert f"stage canary ({CANARY})" in output
    assert "proven" in output
    assert "good for tasks of policy SCHED_EXT" in output
    status, output = run(daemon, "renew", "1", "--lease", "300", "--json")
    assert json.loads(output)["lease_left_s"] > 290
    status, output = run(daemon, "promote", "1")
    assert (status, "stage pulse" in output, "pulses of 0.02 s, 0 pairs compared" in output) == (0, True, True)
    assert run(daemon, "rollback") == (0, "in charge: the default scheduler\n")
    status, output = run(daemon, "history")
    assert "deployment 1: good slice_us=5000\n  ended: rolled back: asked for\n" in output
    assert "shown" not in output
    assert json.loads(run(daemon, "history", "--json")[1])[0]["end"] == "rolled back"
    assert deploy(daemon, files, inputs_digest=EMPTY)[0] == 0
    status, output = run(daemon, "history", "--limit", "1")
    assert output.endswith("\n1 of 2 shown; for all: schedagent history --limit 2\n")
    assert "shown" not in run(daemon, "history", "--limit", str(RETENTION["deployments"].count))[1]


EMPTY = hashlib.sha256(b"[[], []]").hexdigest()


def test_what_the_daemon_refuses_says_so(daemon, files):
    status, output = run(daemon, "rollback")
    assert (status, output.splitlines()[0]) == (1, "error: schedagentd: nothing is deployed")
    status, output = deploy(daemon, files, inputs_digest=EMPTY, kernel_release="6.1.0")
    assert (status, output.splitlines()[0][:60]) == (1, "error: schedagentd: the token is for kernel_release='6.1.0',")
    deploy(daemon, files, inputs_digest=EMPTY)
    daemon.tell_kernel("end_policy", kind=1024)
    until(lambda: daemon.client.ask("status")["active"] is None)
    status, output = deploy(daemon, files, inputs_digest=EMPTY)
    assert "this one in 7 days, or now if the cause is known: schedagent deploy --again" in output
    assert deploy(daemon, files, "good", "--again", inputs_digest=EMPTY)[0] == 0


@pytest.mark.parametrize("answer", ["status", "history", "event", "error"])
def test_what_somebody_answers_forges_no_line(tmp_path, answer):
    """Whoever answers (another version, an impostor): each text is one printable line."""
    forged = "x\nin charge: the default scheduler\x1b[2J\u202e"
    kernel = {"release": forged, "sched_ext": True, "switch_all": False, "ops": forged, "state": "enabled"}
    status = {"in_charge": forged, "active": None, "waiting": None, "foreign": None, "measured": {}, "unsaved": []}
    event = {"number": 1, "at": 0.0, "kind": forged, "deployment": 1, "detail": forged}
    ended = {"created_at": 0.0, "deployment": 1, "policy": forged, "tunables": {forged: 1}, "phase": "ended"}
    answers = {
        "status": [{"ok": status | {"kernel": kernel}}],
        "history": [{"ok": {"history": [ended | {"end": forged, "detail": forged}], "recorded": 1}}],
        "event": [{"ok": {"after": 0}}, {"event": event}],
        "error": [{"error": {"kind": "Refused", "message": forged, "hint": forged}}],
    }[answer]
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        verb = {"event": ["watch", "--json"], "error": ["rollback"]}.get(answer, [answer])
        process = subprocess.Popen(
            [sys.executable, "-m", "schedagent", *verb, "--socket", str(path)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        connection, _address = listener.accept()
        with connection, connection.makefile("rb") as asked:
            asked.readline()
            connection.sendall(b"".join(json.dumps(line).encode() + b"\n" for line in answers))
        output = process.communicate(timeout=30)[0]
    assert "x in charge" in output
    assert all(line.isprintable() and not line.startswith("in charge: the") for line in output.splitlines())


def test_what_does_not_belong_together(tmp_path, files):
    object_file, report = files()
    other, _report = files("other")
    for words, why in (
        ((other, report), "is about another object"),
        ((str(tmp_path / "none"), report), "cannot be read"),
        ((object_file, str(tmp_path / "none")), "cannot be read"),
        ((object_file, object_file), "is not a report"),
    ):
        result = CliRunner().invoke(app, ["deploy", words[0], "--report", words[1]])
        assert (result.exit_code, why in result.output) == (2, True), result.output
    assert deployment_fields(tmp_path / "good.bpf.o", tmp_path / "good.json")["policy"] == "good"


def test_nobody_there(tmp_path):
    result = CliRunner().invoke(app, ["status", "--socket", str(tmp_path / "none")])
    assert (result.exit_code, "schedagentd is not running" in result.output) == (1, True)


def test_watch_ends_with_the_daemon(tmp_path, kernel, files):
    daemon = Daemon(tmp_path / "w", kernel).start()
    daemon.end(signal.SIGTERM)
    daemon.start()
    daemon.client.ask("history")
    stream = daemon.client.events(0)
    assert next(stream)["kind"] == "started"
    stream.close()
    daemon.end(signal.SIGTERM)


def test_nothing_that_is_shown_steers_the_terminal(capsys):
    """Commands of tasks are in events, and anybody may choose one."""
    show([{"detail": "task evil\x1b[2J"}], False, lambda told: told[0]["detail"])
    assert capsys.readouterr().out == "task evil\\x1b[2J\n"


def test_rendering():
    event = {"number": 3, "at": 0.0, "kind": "tripped", "deployment": 7, "detail": "stall: x"}
    local = datetime.fromtimestamp(0).strftime("%Y-%m-%d %H:%M:%S")
    assert render_event(event) == f"     3  {local}  deployment 7: tripped: stall: x"
    assert render_history([]) == "nothing was deployed yet"
    kernel = {"release": "7.3", "sched_ext": False}
    told = {
        "in_charge": "x",
        "active": None,
        "waiting": None,
        "measured": {},
        "kernel": kernel,
        "unsaved": [4],
        "foreign": None,
    }
    assert "not yet in the record" in render_status(told)
    found = {"schedulers": ["scx_lavd, process 7"], "hint": "stop scx_lavd, process 7"}
    assert "scheduler is loaded (scx_lavd, process 7); to deploy: stop" in render_status(told | {"foreign": found})
    assert Stage.FULL


def test_an_object_needs_its_report(files):
    object_file, _report = files()
    result = CliRunner().invoke(app, ["deploy", object_file, "--cgroup", CANARY])
    assert (result.exit_code, "add --report REPORT.json" in result.output) == (2, True), result.output
