"""schedagentd as a process over a scripted kernel in another process: what tests kill, ask and start again."""

from __future__ import annotations

import base64
import os
import pwd
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import traceback
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from schedagent.client.daemon import DaemonClient
from schedagent.client.keeper import Keeper
from schedagent.core import trusted
from schedagent.core.deployment import Stage
from schedagent.core.errors import RecordError, Refused, SchedagentError, SetupError
from schedagent.schedagentd import driver, server
from schedagent.schedagentd import record as records
from schedagent.schedagentd.__main__ import serve
from schedagent.schedagentd.config import Config
from schedagent.schedagentd.kernel import end_this_process_within
from schedagent.schedagentd.rollout import Rollout
from schedagent.schedagentd.state import Clock
from tests.support.deploy_orders import CANARY, PUBLIC, content_of, order_of
from tests.support.paths import ROOT
from tests.support.scripted_kernel import RemoteWorld, ScriptedKernel

HERE = Path(__file__).parent


@contextmanager
def scripted_kernel(folder):
    """Start a scripted kernel of its own process and return the way to it."""
    path = folder / "kernel.sock"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(HERE / "scripted_kernel.py"), str(path)], env=environment)
    try:
        until(lambda: listens(path))
        yield path
    finally:
        process.kill()
        process.wait()


def listens(path):
    """Whether somebody takes connections there: a socket is bound a moment before it listens."""
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(path)) == 0


def until(true, limit_s=20.0):
    """Wait until something is so."""
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.005)


class LimitedKernel(ScriptedKernel):
    """One that ends this process like the real one."""

    def end_within(self, seconds):
        end_this_process_within(seconds)


class Daemon:
    """One schedagentd and its folder; it is forked, so that it starts at once, and really killed.

    Args:
        kernel: socket of a scripted kernel.
        disk: a SmallDisk on the folder of its record; None for none.
        policy_first: whether a policy's window comes first in every pair; None for by chance.
        hangs: do nothing any more once something with a time is in charge.
        die_at: kill itself with SIGKILL at this one of its BEGIN and COMMIT statements; -1 for never.
        break_at: from this one of its BEGIN statements on the disk is full.
    """

    def __init__(self, folder, kernel, disk=None, policy_first=None, hangs=False, **config):
        folder.mkdir(exist_ok=True)
        self.policy_first, self.hangs = policy_first, hangs
        trusted.trust(folder / "keys", PUBLIC)
        probation = dict.fromkeys((Stage.CANARY, Stage.FULL), 0.0)
        ours = () if os.geteuid() == 0 else (pwd.getpwuid(os.geteuid()).pw_name,)
        chosen = {
            "probation_s": probation,
            "baseline_samples": 0,
            "sample_s": 0.05,
            "pulses_s": (0.02,),
            "users": ours,
        } | config
        self.config = replace(
            Config(), state_dir=folder / "state", socket=folder / "d.sock", keys_dir=folder / "keys", **chosen
        )
        self.kernel, self.folder, self.pid, self.disk = kernel, folder, 0, disk
        self.client = DaemonClient(self.config.socket)

    def start(self, die_at=-1, wait=True, burst=1e9):
        self.pid = os.fork()
        if self.pid == 0:
            self._be(die_at, burst)
        if wait:
            until(lambda: self.answers or not self.alive)
        return self

    def _be(self, die_at, burst):
        status = 70
        try:
            log = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, 2)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if self.disk:
                self.disk.enter()
            server.TICK_S, server.BURST = 0.02, burst
            if die_at >= 0:
                _die_at(die_at)
            if self.policy_first is not None:
                secrets.randbits = lambda _bits: self.policy_first
            if self.hangs:
                driver.GRACE_S = 0.5
                _hang()
            serve(self.config, LimitedKernel(RemoteWorld(self.kernel), Clock()))
            status = 0
        except (SetupError, RecordError) as error:
            os.write(2, str(error).encode())
            status = 1
        except BaseException:
            os.write(2, traceback.format_exc().encode())
            raise
        finally:
            os._exit(status)

    @property
    def alive(self):
        """Whether it runs; reaps it if it does not."""
        if self.pid and os.waitpid(self.pid, os.WNOHANG)[0]:
            self.pid = 0
        return bool(self.pid)

    @property
    def answers(self):
        try:
            return bool(self.client.ask("status"))
        except Refused:  # we are not whom it takes orders from
            return True
        except SetupError:
            return False

    def end(self, number=signal.SIGKILL):
        """Send it a signal and wait for its end; return the exit status."""
        if not self.pid:
            return None
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)
        _pid, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def deploy(self, name="good", stage="canary", cgroup=CANARY, **fields):
        return self.client.ask("deploy", **request_of(name), **{"stage": stage, "cgroup": cgroup} | fields)

    @property
    def state(self):
        """What the kernel itself runs."""
        return self.tell_kernel("truth")

    def tell_kernel(self, control, **values):
        """Call one of the scripted kernel's controls."""
        with closing(RemoteWorld(self.kernel)) as world:
            return getattr(world, control)(**values)


class Agent:
    """A process of its own that keeps a deployment, as `schedagent deploy --keep` does, or a trial."""

    def __init__(self, daemon, number=0, lease_s=1.0, request=None, trial=None, **keeping):
        """Keep what is deployed already, or deploy (and wait for the answer) in the process itself."""
        self.status = None
        self.pid = os.fork()
        if self.pid == 0:
            status = 70
            try:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.dup2(os.open(daemon.folder / "agent", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
                if trial:
                    with daemon.client.trial(trial, lease_s):
                        signal.pause()
                if request:
                    number = daemon.client.ask("deploy", lease_s=lease_s, **request)["deployment"]
                told = Keeper(daemon.client, number, lease_s, lambda line: os.write(2, f"{line}\n".encode()), **keeping)
                status = 3 if told.run()["tripped"] else 0
            except SchedagentError as error:
                os.write(2, f"{error}\n".encode())
            finally:
                os._exit(status)

    def wait(self):
        """Its exit status."""
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def kill(self, number=signal.SIGKILL):
        if self.status is None:
            os.kill(self.pid, number)
        return self.wait()


def check_after_death(daemon, accepted=()):
    """What must hold of the kernel at once, and of kernel and record once the next daemon is there."""
    until(lambda: not daemon.alive)
    until(lambda: not daemon.state["enabled"] or daemon.state["pin"] == daemon.state["number"], 2)
    asked = daemon.state
    daemon.start()
    told = daemon.client.ask("status")
    truth = daemon.state
    running = truth["number"] if truth["enabled"] else None
    assert running == (told["active"] and told["active"]["deployment"]), "record and kernel agree"
    assert truth["pin"] in (None, running)
    if running is None:
        assert truth["moved"] == []
    elif not asked["enabled"] or asked["number"] != running:
        raise AssertionError("a new daemon starts nothing by itself")
    known = daemon.client.ask("history", limit=100)["history"]
    assert set(accepted) <= {one["deployment"] for one in known}
    for one in known:
        assert (one["phase"] == "ended") == (one["deployment"] != running)
    return told


def request_of(name="good", **order):
    """The fields of a deploy request."""
    made = order_of(name, **order)
    return {
        "policy": made.policy,
        "object_base64": base64.b64encode(content_of(name)).decode(),
        "tunables": dict(made.tunables),
        "history": [list(pair) for pair in made.history],
        "report_digest": made.report_digest,
        "token": made.token,
    }


def _hang():
    """Let this process be stuck from the first tick on at which something with a time is in charge."""
    tick = Rollout.tick

    def stuck(rollout):
        while rollout.driver.is_timed:
            time.sleep(1)
        tick(rollout)

    Rollout.tick = stuck


def _die_at(number):
    """Let this process die at a statement: BEGIN is before anything was written, COMMIT before it lasts."""
    connect, seen = records._connect, [0]

    def connected(path):
        database = connect(path)

        def look(statement):
            if statement.startswith(("BEGIN", "COMMIT")):
                if seen[0] == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen[0] += 1

        database.set_trace_callback(look)
        return database

    records._connect = connected
    assert sqlite3.sqlite_version
