"""What schedagentd holds in memory: what is in charge, what waits, the open window, and what was measured of them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kernel_bpf.observe.tasks import TaskSample
from schedagent.core.deployment import Deployment
from schedagent.core.welch import LEAST_SAMPLES, METRIC, Spread
from schedagent.schedagentd.breaker import KernelReading, intervals, summarise
from schedagent.schedagentd.kernel import Loaded, Watching
from schedagent.schedagentd.pulses import EVERYBODY, Pulses, Window, values_of

_MOST_SAMPLES = 5 * LEAST_SAMPLES
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Clock:
    """The clocks of this machine, in seconds."""

    def unix(self) -> float:
        """The time of day, which people and daemons may set."""
        return time.time()

    def boot(self) -> float:
        """Since boot, suspended or not; nobody can set it."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def monotonic(self) -> float:
        """Since boot, without the time suspended."""
        return time.monotonic()

    def boot_id(self) -> str:
        """Which boot that was."""
        return _BOOT_ID.read_text().strip()


@dataclass
class Measuring:
    """Samples of one scope, and of the workload's own metric as its keeper reports it.

    Args:
        metric: None until the first report, which is left out: some of it was measured before.
    """

    watch: Watching
    samples: list[TaskSample] = field(default_factory=list)
    metric: list[float] | None = None

    def take(self) -> TaskSample:
        """Sample now; old ones are forgotten."""
        sample = self.watch.sample()
        self.samples = [*self.samples[-_MOST_SAMPLES:], sample]
        return sample

    def report(self, values: Sequence[float]) -> None:
        """Take what was measured of the workload's own metric; old values are forgotten."""
        if values:
            self.metric = [] if self.metric is None else [*self.metric, *values][-_MOST_SAMPLES:]

    def summary(self) -> dict[str, Spread]:
        """All of it in short."""
        return summarise(self.samples, self.metric or ())


@dataclass
class Windowed:
    """The open window of a roll-out by pulses.

    Args:
        pulses: what is so before it ends.
        content: the policy's object.
        measured_from, ends_at: when (boot clock) its wash-out is over, and it.
        everybody: of the whole machine, if that is not the measured scope; None before it is measured as well.
        is_measured: whether its wash-out is over.
        sample_s: how long sampling took, by which the last sample comes earlier.
        shown: what was measured; None before the last sample.
    """

    pulses: Pulses
    content: bytes
    measured_from: float
    ends_at: float
    everybody: Measuring | None = None
    is_measured: bool = False
    sample_s: float = 0.0
    shown: Window | None = None

    @property
    def next_at(self) -> float:
        """When (boot clock) something is to be done."""
        if not self.is_measured:
            return self.measured_from
        return self.ends_at if self.shown else self.ends_at - self.sample_s


@dataclass
class Active:
    """What is in charge now.

    Args:
        first, before: the reading when its stage began, and the last one.
        now: of its tasks, since its stage began; in a pulse, since its wash-out was over.
        window: of a roll-out by pulses; None otherwise.
        worse: how many times in a row it was worse than the baseline.
        pinnable: False once pinning it failed.
    """

    deployment: Deployment
    loaded: Loaded
    first: KernelReading
    before: KernelReading
    now: Measuring
    window: Windowed | None = None
    worse: int = 0
    pinnable: bool = True


@dataclass
class Pending:
    """What was accepted and waits until enough is known of the machine without it, or rests between two pulses.

    Args:
        before: of its tasks, without it; in a roll-out by pulses, of this window.
        window: of a roll-out by pulses; None otherwise.
    """

    deployment: Deployment
    content: bytes
    before: Measuring
    window: Windowed | None = None


def shown_in(measuring: Measuring, window: Windowed) -> Window:
    """Take the last samples of a window and return what it showed; nothing if it was hardly measured."""
    first, last = measuring.samples[0], measuring.take()
    if not window.is_measured or last.at - first.at < (window.ends_at - window.measured_from) / 2:
        return Window({})
    values = values_of(first, last)
    if window.everybody:
        [begun] = window.everybody.samples
        everybody = values_of(begun, window.everybody.take())
        values |= {name + EVERYBODY: value for name, value in everybody.items()}
    metric = measuring.metric or []
    mean = math.fsum(metric) / len(metric) if metric else math.nan
    return Window(values, mean, intervals(measuring.samples) | ({METRIC: metric} if metric else {}), last.starved)
