"""A service in the role of what a run measures: observed as it runs, and compared by pulses."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from schedagent.core.errors import KernelRejected, MetricUnavailable
from schedagent.core.trials.judge import decided
from schedagent.core.trials.trial import DEFAULT_ARM, Block, Outcome, Sample, Verdict
from schedagent.core.trials.workload import WorkloadProfile
from schedagent.experiment import profile, rule
from schedagent.experiment.counters import ScopeChangedError
from schedagent.experiment.spec import Experiment, Kind
from schedagent.experiment.windows import Trials, Windows
from verifier.lab.vm import LabPolicy

FAILURES = 3
"""So many windows in a row that could not be measured end an experiment."""
CONFIDENCE = 0.95
"""Of all claims of an experiment together."""


class Store(Protocol):
    """Where finished pairs are kept: see schedagent.run.nodes.Notebook."""

    def blocks(self) -> Sequence[Block]: ...

    def add_block(self, block: Block) -> None: ...


class Reporter(Protocol):
    """Shows how far it is: see schedagent.run.progress.Reporter."""

    def step(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def count(self, text: str, done: int, total: int) -> None: ...


class Service:
    """What runs already, with all that an experiment on it needs.

    Args:
        measuring: held while something is measured on this machine.
        environment: of the metric's commands.
    """

    def __init__(
        self,
        experiment: Experiment,
        daemon: Trials,
        measuring: Callable[[], AbstractContextManager[None]],
        environment: Mapping[str, str],
        reporter: Reporter,
    ) -> None:
        self.experiment, self._measuring, self._reporter = experiment, measuring, reporter
        self._windows = Windows(experiment, daemon, environment)

    @property
    def words(self) -> str:
        """What it is, for people."""
        return self.experiment.words

    def observe(self) -> WorkloadProfile:
        """Watch it under the default scheduler, and return its profile; first see whether its numbers can be read.

        Raises:
            MetricUnavailable: one cannot.
            SetupError: nothing of it ran.
            SchedagentError: it does not run any more.
        """
        self._windows.default()
        return profile.observe(self.experiment.target(), min(self.experiment.window_s, profile.LONGEST_S))

    def measure(self, arms: Sequence[LabPolicy], store: Store, *, planned: int, seed: int) -> bool:
        """Compare policies with the default scheduler, one after the other, until one is better; return whether the
        time was used up before.

        What is stored counts, and so does the time that it took.

        Args:
            planned: how many candidates share the error.
            seed: decides which window of each pair comes first.

        Raises:
            MetricUnavailable: the metric or a guard could not be read, several times in a row.
            Refused: schedagentd runs something else.
            SchedagentError: what is watched has stopped.
        """
        if not arms:
            return False
        with self._measuring():
            return _Session(self, self._windows, self._reporter, store, planned, seed).run(arms)

    def judge(self, blocks: Sequence[Block], arm: str, *, planned: int) -> Verdict:
        """Return what may be said of a candidate after these blocks."""
        return rule.judge(blocks, arm, self._terms(planned))

    def _terms(self, planned: int) -> rule.Terms:
        workload = self.experiment.workload
        return rule.Terms(
            workload.goal.lower_is_better,
            workload.guards,
            self.experiment.metric.kind is Kind.COUNTERS,
            (1 - CONFIDENCE) / max(1, planned),
        )


class _Session:
    """One process's part of an experiment."""

    def __init__(
        self, service: Service, windows: Windows, reporter: Reporter, store: Store, planned: int, seed: int
    ) -> None:
        self._service, self._windows, self._reporter = service, windows, reporter
        self._store, self._planned, self._seed = store, planned, seed
        self._experiment = service.experiment
        self._blocks = list(store.blocks())
        self._failures = 0
        spent_s = self._experiment.pair_s * max(0, len(self._blocks) - 1)
        self._deadline = time.monotonic() + self._experiment.for_s - spent_s

    def run(self, arms: Sequence[LabPolicy]) -> bool:
        if not self._blocks:
            self._reporter.step(f"measuring {self._experiment.words} under the default scheduler")
            self._keep(self._measured(lambda: (self._windows.default(),)))
        for number, arm in enumerate(arms):
            left_s = self._deadline - time.monotonic()
            until = time.monotonic() + left_s / (len(arms) - number)
            verdict = self._settle(arm, until)
            if verdict.outcome is Outcome.BETTER:
                return False
        return any(not decided(self._verdict(arm)) for arm in arms)

    def _settle(self, arm: LabPolicy, until: float) -> Verdict:
        """Measure pairs until a policy is decided, or its share of the time is over."""
        key = arm.candidate.key
        while not decided(verdict := self._verdict(arm)) and time.monotonic() + self._experiment.pair_s <= until:
            done = len(rule.pairs_of(self._blocks, key))
            left = int((until - time.monotonic()) / self._experiment.pair_s)
            self._reporter.count(f"pulses of {arm.candidate.policy}", done, done + max(1, left))
            self._keep(self._measured(lambda: self._pair(arm)))
        return verdict

    def _verdict(self, arm: LabPolicy) -> Verdict:
        return self._service.judge(self._blocks, arm.candidate.key, planned=self._planned)

    def _pair(self, arm: LabPolicy) -> tuple[Sample, ...]:
        """One window of each, in an order drawn from the seed."""
        policy_first = random.Random(f"{self._seed}:{len(self._blocks)}").random() < 0.5
        windows = [lambda: self._policy(arm), self._windows.default]
        return tuple(measure() for measure in (windows if policy_first else reversed(windows)))

    def _policy(self, arm: LabPolicy) -> Sample:
        defaults = [sample.values for block in self._blocks if (sample := block.sample(DEFAULT_ARM))]
        try:
            return self._windows.policy(arm, lambda values: rule.harm_of(values, defaults))
        except KernelRejected as rejected:
            if any(block.sample(arm.candidate.key) for block in self._blocks):
                raise  # it was loaded before: something else changed, such as how many trials an hour may have
            return rejected_sample(arm.candidate.key, rejected.message)

    def _measured(self, measure: Callable[[], tuple[Sample, ...]]) -> Block:
        """Measure a block; again if a number could not be read, or what is watched was started again meanwhile."""
        while True:
            try:
                return Block(len(self._blocks), measure())
            except (MetricUnavailable, ScopeChangedError) as error:
                self._failures += 1
                if self._failures >= FAILURES or not self._blocks:
                    raise
                self._reporter.note(f"these windows do not count: {error.message}")

    def _keep(self, block: Block) -> None:
        self._failures = 0
        self._store.add_block(block)
        self._blocks.append(block)


def rejected_sample(arm: str, why: str) -> Sample:
    """Return the sample of a policy that may not be loaded here."""
    return Sample(arm, float("nan"), 0, 0, 0, "", 0, policy_exit=f"it was not loaded: {why}")
