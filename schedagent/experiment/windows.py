"""One window: the policy or the default scheduler is in charge for a while, and what happens is measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from kernel_bpf.load.sched_ext import kernel_state
from schedagent.client.daemon import Trial
from schedagent.core.errors import KernelRejected, Refused, SchedagentError
from schedagent.core.terminal.foreign import quote
from schedagent.core.trials.trial import DEFAULT_ARM, Sample
from schedagent.core.trials.usage import Usage
from schedagent.experiment.counters import OWN_WAITING, Counters
from schedagent.experiment.sources import Reader, reader_of
from schedagent.experiment.spec import Experiment, Kind
from schedagent.hostlab.machine import REST_S, Permitted, in_charge, trial_order, why_ended
from verifier.lab.vm import LabPolicy

TICK_S = 1.0
"""How often a window is looked at: whether its policy does harm, and whether what is watched still runs."""
LEASE_MARGIN_S = 5.0
"""A trial outlives its window by so much, should nobody end it any more."""
TIMES_IN_A_ROW = 2
"""So often a window has to look harmful before its policy is taken away."""

Harm = Callable[[Mapping[str, float]], str]
"""Says of what a window shows so far how its policy does harm; nothing if it does not."""


class Trials(Protocol):
    """See client.daemon.DaemonClient."""

    def trial(self, order: Mapping[str, Any], lease_s: float) -> AbstractContextManager[Trial]: ...

    def ask(self, verb: str) -> dict[str, Any]: ...


@dataclass(frozen=True)
class _Ended:
    """How a window ended before its time: by our own guard, or because the policy was taken away."""

    harm: str = ""
    taken_away: bool = False


class Windows:
    """Measures windows, one after the other.

    Args:
        daemon: puts policies in charge.
        environment: of the metric's commands.
    """

    def __init__(self, experiment: Experiment, daemon: Trials, environment: Mapping[str, str]) -> None:
        self._experiment, self._daemon = experiment, daemon
        sources = [experiment.metric, *(guard.source for guard in experiment.guards)]
        names = ["", *(guard.name for guard in experiment.guards)]
        self._readers: dict[str, Reader] = {
            name: reader_of(source, environment)
            for name, source in zip(names, sources, strict=True)
            if source.kind is not Kind.COUNTERS
        }
        self._rested_at = 0.0

    def default(self) -> Sample:
        """Measure the default scheduler.

        Raises:
            MetricUnavailable: a number could not be read.
            ScopeChangedError: what is watched was started again meanwhile.
            SchedagentError: it does not run any more, or somebody else's policy is in charge.
        """
        _require_default()
        counters = Counters(self._experiment)
        began = _now()
        try:
            self._pass(self._experiment.wash_out_s, counters, lambda: True)
            self._begin(counters)
            measured_at = time.monotonic()
            self._pass(self._experiment.measured_s, counters, lambda: True)
            self._stop()
            values = counters.read()
            elapsed_s = time.monotonic() - measured_at
        finally:
            self._close()
        _require_default()
        return self._sample(DEFAULT_ARM, began, elapsed_s, counters, values)

    def policy(self, arm: LabPolicy, harm: Harm) -> Sample:
        """Measure a policy; the default scheduler is in charge before it, and again when this returns or raises.

        A window that did harm, or whose policy was taken away, ends there, and its sample has failed.

        Raises:
            KernelRejected: it may not be loaded here.
            Refused: schedagentd runs something else.
            SchedagentError: as of `default`.
        """
        counters = Counters(self._experiment)
        time.sleep(max(0.0, self._rested_at + REST_S - time.monotonic()))
        began, measured_at, values = _now(), 0.0, {}
        try:
            with self._trial(arm) as trial:
                still = in_charge()
                ended = self._pass(self._experiment.wash_out_s, counters, still)
                self._begin(counters)
                measured_at = time.monotonic()
                if ended is None:
                    ended = self._pass(self._experiment.measured_s, counters, still, harm)
                values = counters.read()
                elapsed_s = time.monotonic() - measured_at
                self._stop()
                taken_away = not still()
        finally:
            self._rested_at = time.monotonic()
            self._close()
        if taken_away or (ended and ended.taken_away):
            return replace(self._failed(arm, began, elapsed_s, values), policy_exit=why_ended(trial))
        if ended:
            return replace(self._failed(arm, began, elapsed_s, values), usage=Usage(0, 0, failure=ended.harm))
        return self._sample(arm.candidate.key, began, elapsed_s, counters, values)

    @contextmanager
    def _trial(self, arm: LabPolicy) -> Iterator[Trial]:
        """A trial; its refusal is the candidate's, unless the machine is not free."""
        permitted = Permitted(**vars(arm.message()), token=arm.token)
        begun = False
        try:
            with self._daemon.trial(trial_order(permitted), self._experiment.window_s + LEASE_MARGIN_S) as trial:
                begun = True
                yield trial
        except Refused as refused:
            if begun:
                raise
            require_free(self._daemon.ask("status"))
            raise KernelRejected(refused.message, refused.hint) from None

    def _begin(self, counters: Counters) -> None:
        for reader in self._readers.values():
            reader.begin()
        counters.begin()

    def _stop(self) -> None:
        for reader in self._readers.values():
            reader.stop()

    def _close(self) -> None:
        for reader in self._readers.values():
            reader.close()

    def _pass(
        self, seconds: float, counters: Counters, still: Callable[[], bool], harm: Harm = lambda _values: ""
    ) -> _Ended | None:
        """Let time pass; return how it ended before it was over, if it did."""
        deadline, in_a_row, last = time.monotonic() + seconds, 0, ""
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(TICK_S, left, max(0.05, seconds / 5)))
            if not still():
                return _Ended(taken_away=True)
            counters.check()
            last = harm(counters.read())
            in_a_row = in_a_row + 1 if last else 0
            if in_a_row >= TIMES_IN_A_ROW:
                return _Ended(harm=last)
        return None

    def _sample(
        self, arm: str, began: str, elapsed_s: float, counters: Counters, values: Mapping[str, float]
    ) -> Sample:
        numbers = {name: reader.value() for name, reader in self._readers.items()}
        value = numbers.pop("", values[OWN_WAITING])
        return Sample(
            arm=arm,
            value=value,
            wall_ns=round(elapsed_s * 1e9),
            cpu_ns=round(counters.ran_s * 1e9),
            exit_status=0,
            started_at=began,
            calibration_ns=0,
            values={**values, **numbers},
        )

    def _failed(self, arm: LabPolicy, began: str, elapsed_s: float, values: Mapping[str, float]) -> Sample:
        return Sample(arm.candidate.key, math.nan, round(elapsed_s * 1e9), 0, 0, began, 0, values=dict(values))


def require_free(status: Mapping[str, Any]) -> None:
    """Raise Refused if schedagentd runs something already: of experiments, trials and deployments there is one."""
    busy = status.get("active") or status.get("waiting")
    if busy:
        raise Refused(
            f"schedagentd runs {quote(str(busy.get('policy')))} already, at stage {busy.get('stage')}: of experiments,"
            " trials and deployments there is one at a time",
            "wait until it has ended, or end it: schedagent rollback",
        )


def _require_default() -> None:
    """Raise unless the default scheduler is in charge."""
    state = kernel_state()
    if state.state == "enabled":
        raise SchedagentError(
            f"somebody else put a scheduler in charge: {quote(state.ops)}", "end it; nothing can be compared beside it"
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
