"""A machine in this process: a scripted kernel, a clock that goes as a test says, and daemons that come and go."""

from __future__ import annotations

from schedagent.core.deployment import Stage
from schedagent.schedagentd.config import Config
from schedagent.schedagentd.record import Record
from schedagent.schedagentd.rollout import Rollout
from tests.support.deploy_orders import CANARY, PUBLIC, FakeClock, content_of, order_of
from tests.support.scripted_kernel import ScriptedKernel, World

PROBATION = {Stage.CANARY: 60.0, Stage.FULL: 300.0}
UID = 1000


class Host:
    """A machine with a daemon on it that can be stopped, killed and started again."""

    def __init__(self, folder, **config):
        self.folder, self.world, self.clock = folder, World(), FakeClock()
        self.config = Config(probation_s=PROBATION, baseline_samples=0, **config)
        self.daemons = 0
        self.policy_first = False
        self.start()

    def start(self):
        self.daemons += 1
        self.kernel = ScriptedKernel(self.world, self.clock, f"daemon {self.daemons}")
        self.record = Record.open(self.folder)
        self.rollout = Rollout(
            self.kernel, self.record, self.config, lambda: [PUBLIC], self.clock, lambda: self.policy_first
        )
        self.rollout.reconcile()
        return self

    def kill(self):
        self.record.close()
        self.world.gone(f"daemon {self.daemons}")

    def stop(self):
        self.rollout.stop()
        self.kill()

    def deploy(
        self,
        name="good",
        stage=Stage.CANARY,
        cgroup=CANARY,
        lease_s=600.0,
        again=False,
        within="",
        pid=0,
        better=None,
        **order,
    ):
        asked = order_of(name, now=self.clock.unix(), cgroup=within, **order)
        return self.rollout.deploy(UID, asked, content_of(name), stage, cgroup, lease_s, again, pid, better)

    def trial(self, name="good", lease_s=30.0, again=False, **order):
        asked = order_of(name, now=self.clock.unix(), **order)
        return self.rollout.trial(UID, asked, content_of(name), lease_s, again)

    def wait(self, seconds, step_s=1.0, renewing=False):
        """Let time pass, and call the roll-out whenever it wants to be."""
        end = self.clock.now + seconds
        while self.clock.now < end - 1e-9:
            self.clock.now = min(end, self.clock.now + min(step_s, max(self.rollout.next_in_s, 1e-3)))
            if renewing and self.driver.active:
                self.rollout.renew(self.driver.active.deployment.number, 600.0)
            self.rollout.tick()

    def pulse(self, name="good", **fields):
        """Deploy by pulses; its first window begins."""
        return self.deploy(name, **{"stage": Stage.PULSE, "cgroup": "", "lease_s": 3600.0} | fields)

    @property
    def driver(self):
        return self.rollout.driver

    @property
    def running(self):
        """Number of what the kernel runs; None for the default scheduler."""
        truth = self.world.truth()
        return truth["number"] if truth["enabled"] else None

    def proven(self, name="good", **order):
        """Deploy and wait until it is proven."""
        deployment = self.deploy(name, **order)
        self.wait(61)
        assert self.get(deployment.number).proven
        return deployment.number

    def get(self, number):
        return self.record.get(number)

    @property
    def kinds(self):
        return [event.kind for event in self.record.events(0, 1000)]
