"""A machine in this process: a scripted kernel, a clock that goes as a test says, and daemons that come and go."""

from __future__ import annotations

from schedagent.core.deployment import Stage
from schedagent.schedagentd.config import Config
from schedagent.schedagentd.record import Record
from schedagent.schedagentd.rollout import Rollout
from tests.support.deploy_orders import CANARY, PUBLIC, FakeClock, content_of, order_of
from tests.support.scripted_kernel import ScriptedKernel, World

PROBATION = {Stage.CANARY: 60.0, Stage.WIDER: 120.0, Stage.FULL: 300.0}
UID = 1000


class Host:
    """A machine with a daemon on it that can be stopped, killed and started again."""

    def __init__(self, folder, **config):
        self.folder, self.world, self.clock = folder, World(), FakeClock()
        self.config = Config(probation_s=PROBATION, baseline_samples=0, **config)
        self.daemons = 0
        self.start()

    def start(self):
        self.daemons += 1
        kernel = ScriptedKernel(self.world, self.clock, f"daemon {self.daemons}")
        self.record = Record.open(self.folder)
        self.rollout = Rollout(kernel, self.record, self.config, lambda: [PUBLIC], self.clock)
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

    def wait(self, seconds, step_s=1.0, renewing=False):
        for _second in range(round(seconds / step_s)):
            self.clock.now += step_s
            if renewing and self.driver.active:
                self.rollout.renew(self.driver.active.deployment.number, 600.0)
            self.rollout.tick()

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
