"""Every fault at every step of a deployment (tests/support/fault_matrix.py): what is in charge then; nothing is lost.

Deaths and the full disk are real: processes, signals, ENOSPC. The other faults come over a scripted kernel and clock.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

import pytest

from schedagent.core.deployment import Phase, Stage
from schedagent.core.errors import RecordError, SchedagentError, TokenError
from schedagent.schedagentd.config import NOT_ON_EXIT, Config
from schedagent.schedagentd.record import FILE
from tests.support.daemon_processes import Agent, Daemon, check_after_death, request_of, until
from tests.support.deploy_orders import CANARY, content_of, order_of
from tests.support.fault_matrix import DEFAULT, KNOWN, ON, REAL, SCRIPTED, STAYS, STEPS, cells
from tests.support.scripted_host import PROBATION, UID, Host
from tests.support.scripted_kernel import RemoteWorld
from tests.support.small_disk import SmallDisk

pytestmark = pytest.mark.timeout(120)

LIFE_S, LEASE_S = 1000, 600
YEAR_S = 3.2e7
BASELINE_S = 61
"""Twelve samples and one, five seconds apart."""


class Hurt:
    """A machine at a step, and a fault that comes there."""

    def __init__(self, folder, step, fault):
        stays = {"rollback": NOT_ON_EXIT} if step == "pinned" else {}
        self.host, self.step, self.fault, self.accepted = Host(folder, direct_full=True, **stays), step, fault, []
        self.number = 0

    def reach(self):
        """Bring the machine to the step, let the fault come, and go on as the daemon would."""
        host, hooks = self.host, self.host.world.hooks
        if self.step in AFTER_ANOTHER:
            self.accepted.append(host.proven("first", **self.order))
        if self.step == "waiting":
            self.measure_first()
        if self.step == "loading":
            hooks["load"] = self.strike
        with suppress(SchedagentError):  # the one who asked is told
            if self.step == "trial":
                host.trial("good", **self.order | {"lease_s": LEASE_S})
            elif self.step in ("pulse", "resting"):
                host.pulse("good", **self.order)
            else:
                full = {"stage": Stage.FULL, "cgroup": ""} if self.step == "full" else {}
                host.deploy("good", **full, **self.order)
        self.accepted.append(len(self.accepted) + 1)
        self.number = self.accepted[-1]
        if self.step in ("behind", "dropped", "both ending"):
            self.measure_first()
            self.accepted.append(host.deploy("third", **self.order).number)
        if self.step in ("proven", "pinned"):
            host.wait(61)
        match self.step:
            case "pulse":
                host.wait(1.5)
                assert host.running == self.number
            case "ending" | "both ending":
                hooks["before detach"] = self.strike
                host.rollout.rollback()
            case "dropped":
                host.rollout.rollback(self.accepted[-1])
            case "restored":
                host.world.end_policy()
                host.wait(1)
                self.number = host.running
            case "restoring":
                hooks["load"] = self.strike
                host.world.end_policy()
                host.wait(1)
        assert host.world.hooks == {}
        if self.step not in ("loading", "ending", "both ending", "restoring"):
            self.strike()

    @property
    def order(self):
        """A lease and a token that end apart from each other."""
        return {"life_s": LIFE_S, "lease_s": 3000.0} if self.fault == "token expires" else {"lease_s": LEASE_S}

    def measure_first(self):
        self.host.rollout.config = Config(probation_s=PROBATION, baseline_samples=12)

    def strike(self):
        world, clock = self.host.world, self.host.clock
        match self.fault:
            case "read-only disk":
                self.host.record._database.execute("PRAGMA query_only = ON")
            case "clock set back a year":
                clock.day -= YEAR_S
            case "clock set ahead a year":
                clock.day += YEAR_S
            case "corrupt record":
                path = self.host.folder / FILE
                with path.open("r+b") as file:
                    file.write(os.urandom(path.stat().st_size))
            case "token expires":
                clock.now += LIFE_S
            case "lease lapses":
                clock.now += LEASE_S
            case "sysfs unreadable":
                world.set(available=False)
            case "stall" | "error":
                world.end_policy(1026 if self.fault == "stall" else 1024)

    def wait(self, seconds):
        """As the server does: a record that cannot be read ends the daemon, and systemd starts another."""
        for _second in range(seconds):
            try:
                self.host.wait(1)
            except RecordError:
                self.host.stop()
                self.host.start()

    def repair(self):
        """The fault is over; what was not stored is now."""
        self.host.world.set(available=True)
        if self.fault == "read-only disk":
            self.host.record._database.execute("PRAGMA query_only = OFF")
        self.wait(1)
        assert self.host.driver.unsaved == {}

    def start_anew(self):
        self.host.kill()
        self.host.start()


def agree(host):
    """The record says what the kernel does."""
    active = host.driver.active
    assert host.running == (active and active.deployment.number)
    assert host.world.truth()["pin"] in (None, host.running)
    assert host.running or host.world.moved == []
    waiting = [host.driver.waiting.number] if host.driver.waiting else []
    assert [left.number for left in host.record.unfinished()] == sorted(
        [host.running, *waiting] if host.running else waiting
    )


def nothing_is_lost(host, accepted):
    events = host.record.events(0, 10_000)
    for number in accepted:
        kinds = [event.kind for event in events if event.deployment == number]
        assert kinds[0] in ("accepted", "trial")
        if host.get(number).phase is Phase.ENDED:
            assert {"ended", "tripped"} & set(kinds)
    assert len(host.record.used_nonces) == len(accepted) - [event.kind for event in events].count("trial")


@pytest.mark.parametrize(("fault", "step", "outcome"), cells(SCRIPTED))
def test_scripted(tmp_path, fault, step, outcome):
    hurt = Hurt(tmp_path / "state", step, fault)
    host = hurt.host
    hurt.reach()
    if fault == "corrupt record":
        hurt.wait(2)
        hurt.start_anew()
        assert [*host.folder.glob("*.damaged-*")]
        with pytest.raises(TokenError, match="older than the record"):
            host.rollout.deploy(UID, order_of("another"), content_of("another"), Stage.CANARY, CANARY, 60.0)
    else:
        hurt.wait(BASELINE_S if step == "waiting" else 2)
    if outcome == DEFAULT:
        assert (host.running, host.driver.active) == (None, None)
        assert host.driver.pending is None or step == "behind"
    elif outcome == KNOWN:
        assert (host.driver.active.deployment.order.policy, host.running) == ("first", hurt.accepted[-1] + 1)
    else:
        assert (outcome, host.running) == (ON, hurt.number)
        host.world.end_policy()
        hurt.wait(2)
        assert host.running is None
    if fault != "corrupt record":
        hurt.repair()
        nothing_is_lost(host, hurt.accepted)
    agree(host)
    hurt.start_anew()
    agree(host)
    host.record.close()


AFTER_ANOTHER = ("ending", "restoring", "behind", "dropped", "both ending", "restored")
AGENT_LEASE_S = 1.0
QUICK = {"baseline_samples": 5, "sample_s": 0.1}
CONFIG = {
    "waiting": {"baseline_samples": 50, "sample_s": 60.0},
    "canary": {"probation_s": {"canary": 600.0}},
    "pulse": {"pulses_s": (1.0,)},
    "resting": {"pulses_s": (1.0,)},
    "full": {"probation_s": {"full": 600.0}},
    "pinned": {"rollback": NOT_ON_EXIT},
    "behind": QUICK,
    "dropped": QUICK,
    "both ending": QUICK,
}


class Real:
    """A real daemon and a real agent at a step. What they are in the middle of is held until the fault has come."""

    def __init__(self, folder, kernel, step, fault):
        config = QUICK if step == "waiting" and fault in ("full disk", "second schedagentd") else CONFIG.get(step, {})
        self.disk = SmallDisk(folder / "d" / "state") if fault == "full disk" else None
        self.daemon = Daemon(folder / "d", kernel, self.disk, policy_first=step == "pulse", **config)
        self.world = RemoteWorld(kernel)
        self.world.reset()
        self.step, self.fault = step, fault
        self.two = step in AFTER_ANOTHER
        self.number = 3 if step == "restored" else 2 if self.two else 1
        self.accepted = {1, 2, 3} if step in ("behind", "dropped", "both ending") else {1, 2} if self.two else {1}
        self.agent, self.asker = None, 0

    def close(self):
        self.world.release()
        if self.agent:
            self.agent.kill()
        if self.asker:
            os.waitpid(self.asker, 0)
        self.daemon.end()
        if self.disk:
            self.disk.close()
        self.world.close()

    @property
    def active(self):
        return self.daemon.client.ask("status")["active"]

    def shown(self, name):
        """What is shown of what is in charge; between two pulses nothing is."""
        return (self.active or {}).get(name)

    def reach(self):
        daemon, world = self.daemon.start(), self.world
        if self.step == "restored":
            self.agent = self._agent_of("first")
        elif self.two:
            daemon.deploy("first")
        if self.two:
            until(lambda: self.active and self.active["proven"])
        if self.step == "loading":
            world.set(hold_at="load")
        if self.step == "restored":
            daemon.deploy("good")
        else:
            stage = "pulse" if self.step in ("pulse", "resting", "full") else self.step
            self.agent = self._agent_of("good", stage if stage in ("pulse", "trial") else "canary")
        if self.step in ("waiting", "resting"):
            until(lambda: daemon.client.ask("status")["waiting"])
        elif self.step != "loading":
            until(lambda: self.shown("policy") == "good")
        if self.step == "full":
            until(lambda: self.shown("stage") == "full")
        if self.step in ("proven", "pinned"):
            until(lambda: self.active["pinned" if self.step == "pinned" else "proven"])
        if self.step in ("behind", "dropped", "both ending"):
            daemon.deploy("third", better="higher")  # nobody reports that metric, so it waits
        match self.step:
            case "ending" | "both ending":
                world.set(hold_at="detach")
                self.asker = self._ask_for_rollback()
            case "dropped":
                daemon.client.ask("rollback", deployment=3)
            case "restoring":
                world.set(hold_at="load")
                world.end_policy()
            case "restored":
                world.end_policy()
                until(lambda: self.active and self.active["deployment"] == self.number)
        if self.step in ("loading", "ending", "both ending", "restoring"):
            until(world.is_held)

    def _agent_of(self, name, stage="canary"):
        if stage == "trial":
            return Agent(self.daemon, trial=request_of(name), lease_s=60)
        scope = {"stage": stage, "cgroup": CANARY if stage == "canary" else ""}
        return Agent(self.daemon, request=request_of(name) | scope, lease_s=AGENT_LEASE_S)

    def _ask_for_rollback(self):
        child = os.fork()
        if child == 0:
            with suppress(SchedagentError):
                self.daemon.client.ask("rollback")
            os._exit(0)
        return child

    def strike(self):
        match self.fault:
            case "kill -9 schedagentd":
                self.daemon.end()
            case "kill -9 agent":
                self.agent.kill()
            case "kill -9 both":
                self.agent.kill()
                self.daemon.end()
            case "SIGTERM":
                os.kill(self.daemon.pid, signal.SIGTERM)
            case "full disk":
                self.disk.fill()
            case "second schedagentd":
                second = Daemon(self.daemon.folder, self.daemon.kernel).start(wait=False)
                until(lambda: not second.alive)
                assert "another schedagentd works with" in (self.daemon.folder / "log").read_text()
        self.world.release()


@pytest.mark.parametrize(("fault", "step", "outcome"), cells(REAL))
def test_real(tmp_path, kernel, fault, step, outcome):
    real = Real(tmp_path, kernel, step, fault)
    try:
        real.reach()
        real.strike()
        CHECKS[outcome](real)
        if fault == "full disk":
            real.disk.free()
            until(lambda: real.daemon.client.ask("status")["unsaved"] == [])
        if real.daemon.pid:
            real.daemon.end()
        check_after_death(real.daemon, range(1, real.number + 1))
        told = [(one["kind"], one["deployment"]) for one in real.daemon.client.events(0, follow=False)]
        begun = "trial" if step == "trial" else "accepted"
        assert {(begun, number) for number in real.accepted} <= set(told)
    finally:
        real.close()


def default(real):
    daemon = real.daemon
    if real.fault == "kill -9 both" and real.step == "pinned":
        assert daemon.state["number"] == real.number
        time.sleep(AGENT_LEASE_S)
        daemon.start()
    if real.fault == "SIGTERM":
        assert daemon.end(signal.SIGTERM) == 0
    lapse_s = AGENT_LEASE_S if real.fault == "kill -9 agent" and real.step != "trial" else 0.0
    if real.fault == "full disk" and real.step in ("pulse", "resting"):
        lapse_s = 2 * real.daemon.config.pulses_s[0]  # until the next pulse is to begin
    if real.step in ("waiting", "pulse", "resting") and daemon.pid:
        until(lambda: daemon.client.ask("status")["waiting"] is None, 2 + lapse_s)
    until(lambda: not daemon.state["enabled"], 2 + lapse_s)
    if daemon.pid:
        until(lambda: real.active is None, 2)


def known(real):
    until(lambda: real.active and real.active["policy"] == "first", 2 + AGENT_LEASE_S)
    assert real.daemon.state["number"] == real.active["deployment"] > real.number


def on(real):
    if real.step in ("pulse", "resting"):
        status = real.daemon.client.ask("status")
        assert (status["active"] or status["waiting"])["deployment"] == real.number
        real.daemon.client.ask("rollback")
        until(lambda: not real.daemon.state["enabled"], 2)
        return
    until(lambda: real.active, 2)
    assert real.active["deployment"] == real.daemon.state["number"] == real.number
    real.world.end_policy()
    if real.fault == "second schedagentd" and real.step in ("behind", "dropped"):
        known(real)
        return
    until(lambda: not real.daemon.state["enabled"], 2)
    until(lambda: real.active is None, 2)
    assert real.daemon.client.ask("status")["unsaved"] == ([real.number] if real.fault == "full disk" else [])


def stays(real):
    if real.fault == "SIGTERM":
        assert real.daemon.end(signal.SIGTERM) == 0
    assert real.daemon.state == {
        "enabled": True,
        "pin": real.number,
        "number": real.number,
        "partial": True,
        "moved": [CANARY],
    }
    real.daemon.start()
    assert real.active["deployment"] == real.number


CHECKS = {DEFAULT: default, KNOWN: known, ON: on, STAYS: stays}


def test_every_cell_is_one_of_the_two():
    assert len(cells(REAL)) + len(cells(SCRIPTED)) == 15 * len(STEPS) - 4
