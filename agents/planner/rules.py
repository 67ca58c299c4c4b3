"""The rule-based planner: no model, no network, no I/O.

It has two methods, cheapest first: *configure* (the policies meant for this kind of work, their tunables and input
maps derived from the measured profile) and *search* (double or halve one tunable of the best candidate so far).
Earlier results on the same workload and hardware decide what comes first and what is left out. Expected run times and
classes are measured ones; nothing is read off a command's name.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from agents.planner.inputs import fill, round_two_digits, wake_burst_ns
from schedagent.core.errors import TunableError
from schedagent.core.policies.policy import CandidatePolicy, Plan, PolicyInfo, Tunable
from schedagent.core.trials.lesson import Antipattern, Lesson
from schedagent.core.trials.trial import Outcome, Verdict
from schedagent.core.trials.workload import WorkloadClass, WorkloadProfile

Tried = tuple[CandidatePolicy, Verdict]
Configuration = tuple[str, tuple[tuple[str, int], ...]]
"""A policy and its tunables: "the same candidate" from run to run, although its measured inputs differ a little."""

_TAIL_RATIO = 0.95
_UNIT_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000}
_STEPS = (2.0, 0.5, 4.0, 0.25)


def plan(
    profile: WorkloadProfile,
    library: Mapping[str, PolicyInfo],
    lessons: Sequence[Lesson],
    antipatterns: Sequence[Antipattern],
    *,
    iteration: int,
    tried: Sequence[Tried],
    limit: int = 3,
    lower_is_better: bool = True,
) -> Plan:
    """Return what to try next.

    Args:
        lessons, antipatterns: of earlier runs on the same workload and hardware.
        iteration: 1 for the first plan of a run.
        tried: candidates of this run with their verdicts; those that failed a gate with Outcome.FAILED.
        limit: candidates at most.
        lower_is_better: whether a ratio below 1 is a gain.
    """
    if profile.kind is WorkloadClass.SERIAL:
        return Plan((), f"keep the default scheduler: {profile.evidence[0]}")
    memory = _Memory(library, lessons, antipatterns, tried, lower_is_better)
    configure = _Configurator(profile)
    suited = [library[name] for name in suited_policies(profile, library) if name not in memory.failed]
    candidates = tuple(islice(_unrepeated(_proposals(configure, suited, memory, iteration), memory), limit))
    learned = memory.contribution()
    if not candidates:
        return Plan((), "nothing is left to try: every suited policy and its neighbours were tried or failed", learned)
    return Plan(candidates, _reason(profile, candidates, memory), learned)


def suited_policies(profile: WorkloadProfile, library: Mapping[str, PolicyInfo]) -> list[str]:
    """Return the names of the policies meant for this kind of work, best first.

    A long tail comes before the general kind: it is what decides the end of the run.
    """
    kinds = [profile.kind]
    if profile.predicted_ratio < _TAIL_RATIO and profile.kind is not WorkloadClass.BATCH_LONG_TAIL:
        kinds.insert(0, WorkloadClass.BATCH_LONG_TAIL)
    ranked = []
    for name, info in library.items():
        places = [
            (info.target_workloads.index(kind), importance)
            for importance, kind in enumerate(kinds)
            if kind in info.target_workloads
        ]
        if places:
            ranked.append((min(places), name))
    return [name for _, name in sorted(ranked)]


def _proposals(
    configure: _Configurator, suited: Sequence[PolicyInfo], memory: _Memory, iteration: int
) -> Iterator[CandidatePolicy]:
    """Yield candidates, most promising first: known winners, their neighbours, policies not tried yet."""
    fresh = (configure.fresh(info) for info in suited if info.name not in memory.settled)
    winner = memory.best_winner()
    if winner is None:
        yield from fresh
        best = memory.best_known()
        if best:
            yield from configure.neighbours(memory.library[best.policy], best, iteration)
        return
    for result in memory.unconfirmed_winners():
        yield configure.again(memory.library[result.policy], result)
    neighbours = configure.neighbours(memory.library[winner.policy], winner, iteration)
    for neighbour in neighbours:
        yield neighbour
        yield from islice(fresh, 1)
    yield from fresh


def _unrepeated(candidates: Iterable[CandidatePolicy], memory: _Memory) -> Iterator[CandidatePolicy]:
    seen = set(memory.tried_here)
    for candidate in candidates:
        if (candidate.policy, candidate.tunables) not in seen:
            seen.add((candidate.policy, candidate.tunables))
            yield candidate


def _reason(profile: WorkloadProfile, candidates: Sequence[CandidatePolicy], memory: _Memory) -> str:
    names = ", ".join(dict.fromkeys(candidate.policy for candidate in candidates))
    kind = profile.kind.value
    if profile.predicted_ratio < _TAIL_RATIO and profile.kind is not WorkloadClass.BATCH_LONG_TAIL:
        kind += " with a long tail"
    gain = ""
    if profile.predicted_ratio < _TAIL_RATIO:
        gain = f"; running the longest task first can save up to {100 * (1 - profile.predicted_ratio):.0f} %"
    step = f"; searching around {memory.tried_best_label}" if memory.tried_best_label else ""
    return f"{kind}: {names}{gain}{step}"


# --- configure ------------------------------------------------------------------------------------------------------


class _Configurator:
    """Settles tunables and input maps of a policy by what the profile measured."""

    def __init__(self, profile: WorkloadProfile) -> None:
        self._profile = profile

    def fresh(self, info: PolicyInfo) -> CandidatePolicy:
        """Return the policy with tunables derived from the profile."""
        changes, reasons = {}, [f"{info.name} is meant for {', '.join(info.target_workloads)}"]
        for tunable in info.tunables:
            derived = derive(tunable, info, self._profile)
            if derived:
                changes[tunable.name], why = derived
                reasons.append(f"{tunable.name}={changes[tunable.name]}: {why}")
        return self._fill(info, info.configured(changes), "; ".join(reasons))

    def again(self, info: PolicyInfo, result: _Result) -> CandidatePolicy:
        """Return what won in an earlier run, with today's measurements in its maps."""
        return self._fill(info, result.tunables, f"it won in an earlier run: {result.figures}")

    def neighbours(self, info: PolicyInfo, result: _Result, seed: int) -> Iterator[CandidatePolicy]:
        """Yield candidates that differ from `result` in one tunable: small steps first, in a seeded order."""
        values = dict(result.tunables)
        tunables = list(info.tunables)
        random.Random(f"{seed} {result.policy} {result.tunables}").shuffle(tunables)
        for factor in _STEPS:
            for tunable in tunables:
                value = step(tunable, values[tunable.name], factor)
                if value == values[tunable.name]:
                    continue
                why = f"{tunable.name} from {values[tunable.name]} to {value}, next to {result.figures}"
                yield self._fill(info, info.configured(values | {tunable.name: value}), why)

    def _fill(self, info: PolicyInfo, tunables: tuple[tuple[str, int], ...], reason: str) -> CandidatePolicy:
        return replace(fill(info, tunables, self._profile), reason=reason)


def derive(tunable: Tunable, info: PolicyInfo, profile: WorkloadProfile) -> tuple[int, str] | None:
    """Return a value for a tunable and why, or None to leave its default."""
    rule = _DERIVATIONS.get(tunable.name)
    wanted = rule(tunable, info, profile) if rule and tunable.unit in _UNIT_NS and profile.commands else None
    if wanted is None:
        return None
    wanted_ns, why = wanted
    return clamp(tunable, round_two_digits(round(wanted_ns / _UNIT_NS[tunable.unit]))), why


Wanted = tuple[float, str] | None


def _slice(tunable: Tunable, _info: PolicyInfo, profile: WorkloadProfile) -> Wanted:
    """A twentieth of the typical task's CPU time, within a factor of two of what suits the policy."""
    typical_ns = profile.commands[0].cpu_ns_p50
    default_ns = tunable.default * _UNIT_NS[tunable.unit]
    slice_ns = min(max(typical_ns / 20, default_ns / 2), default_ns * 2)
    return slice_ns, f"typical tasks need {typical_ns / 1e6:.0f} ms of CPU time"


def _unknown(_tunable: Tunable, _info: PolicyInfo, profile: WorkloadProfile) -> Wanted:
    typical_ns = profile.commands[0].cpu_ns_p50
    return typical_ns, f"the median of the heaviest command, {typical_ns / 1e6:.0f} ms"


def _starvation(_tunable: Tunable, info: PolicyInfo, profile: WorkloadProfile) -> Wanted:
    """The bound cuts across an order by expected time, so such a policy gets as much of it as the run has use for."""
    if "history" not in info.inputs:
        return None
    return profile.wall_s / 2 * 1e9, f"half of the run, {profile.wall_s / 2:.1f} s"


def _background(_tunable: Tunable, _info: PolicyInfo, profile: WorkloadProfile) -> Wanted:
    """Between the bursts of the liveliest command and those of the heaviest: their geometric mean."""
    liveliest = max(profile.commands, key=lambda row: row.voluntary_switches)
    short_ns, long_ns = wake_burst_ns(liveliest), wake_burst_ns(profile.commands[0])
    if long_ns < 4 * short_ns or short_ns == 0:
        return None
    return (short_ns * long_ns) ** 0.5, f"bursts are {short_ns / 1e6:.2f} ms and {long_ns / 1e6:.2f} ms"


_DERIVATIONS: Mapping[str, Callable[[Tunable, PolicyInfo, WorkloadProfile], Wanted]] = {
    "slice_us": _slice,
    "unknown_ms": _unknown,
    "starvation_ms": _starvation,
    "background_us": _background,
}
"""By the names that the library's policies share; a policy without such a tunable keeps its defaults."""


def clamp(tunable: Tunable, value: int) -> int:
    return min(max(value, tunable.minimum), tunable.maximum)


def step(tunable: Tunable, value: int, factor: float) -> int:
    """Return the value a factor away, inside the range; a switch flips, a zero starts from the default or from one."""
    if tunable.type == "bool" or (tunable.minimum, tunable.maximum) == (0, 1):
        return 1 - value
    if value == 0:
        return clamp(tunable, tunable.default or 1)
    moved = round(value * factor)
    return clamp(tunable, moved if moved != value else value + (1 if factor > 1 else -1))


# --- memory ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Result:
    """One verdict, from this run or an earlier one."""

    policy: str
    tunables: tuple[tuple[str, int], ...]
    outcome: Outcome
    ratio: float
    interval: tuple[float, float]
    here: bool

    @property
    def gained(self) -> bool:
        return self.outcome is Outcome.BETTER

    @property
    def compared(self) -> bool:
        return self.outcome is not Outcome.FAILED and self.ratio == self.ratio

    @property
    def figures(self) -> str:
        where = "this run" if self.here else "an earlier run"
        low, high = self.interval
        return f"{self.policy} {self.outcome.value}, ratio {self.ratio:.2f} [{low:.2f}, {high:.2f}] in {where}"


class _Memory:
    """What is known of candidates, from earlier runs and from this one."""

    def __init__(
        self,
        library: Mapping[str, PolicyInfo],
        lessons: Sequence[Lesson],
        antipatterns: Sequence[Antipattern],
        tried: Sequence[Tried],
        lower_is_better: bool,
    ) -> None:
        self.library = library
        self._sign = 1 if lower_is_better else -1
        latest: dict[Configuration, _Result] = {}
        for lesson in sorted(lessons, key=lambda lesson: lesson.at):
            if _still_valid(library, lesson):
                _remember(latest, _from_lesson(lesson))
        for candidate, verdict in tried:
            if candidate.policy not in library:
                continue  # a model's own, of which nothing was shown
            _remember(latest, _from_trial(candidate, verdict))
        self._antipatterns = [pattern for pattern in antipatterns if pattern.policy in library]
        self.failed = {pattern.policy for pattern in self._antipatterns}
        self.failed |= {result.policy for result in latest.values() if result.outcome is Outcome.FAILED}
        self.tried_here = {(candidate.policy, candidate.tunables) for candidate, _ in tried}
        self._results = sorted(
            (result for result in latest.values() if result.compared and result.policy not in self.failed),
            key=lambda result: self._sign * result.ratio,
        )

    @property
    def settled(self) -> set[str]:
        """Policies about which something is known; an inconclusive earlier run leaves the question open."""
        return {result.policy for result in self._results if result.here or result.outcome is not Outcome.INCONCLUSIVE}

    @property
    def tried_best_label(self) -> str:
        """The best candidate of this run, if a plan has been carried out before."""
        best = self.best_known() if self.tried_here else None
        return best.figures if best else ""

    def best_known(self) -> _Result | None:
        return self._results[0] if self._results else None

    def best_winner(self) -> _Result | None:
        return next((result for result in self._results if result.gained), None)

    def unconfirmed_winners(self) -> list[_Result]:
        """Winners of earlier runs, best first; those of this run need no second look."""
        return [result for result in self._results if result.gained and not result.here]

    def contribution(self) -> str:
        """Return one sentence on what earlier results contributed; empty if there were none."""
        parts = []
        winners = [result.figures for result in self._results if result.gained]
        if winners:
            parts.append(f"starts from {winners[0]}")
        elif self._results:
            parts.append(f"nothing has won so far, the nearest was {self._results[0].figures}")
        dropped = sorted(
            {f"{result.policy} ({result.outcome.value})" for result in self._results if self._idle(result)}
        )
        if dropped:
            parts.append("not configured afresh: " + ", ".join(dropped))
        refused = {f"{pattern.policy} (failed at {pattern.gate})" for pattern in self._antipatterns}
        refused |= {f"{name} (failed in this run)" for name in self.failed - {p.policy for p in self._antipatterns}}
        if refused:
            parts.append("left out: " + ", ".join(sorted(refused)))
        return "; ".join(parts)

    @staticmethod
    def _idle(result: _Result) -> bool:
        return result.outcome in (Outcome.WORSE, Outcome.NO_DIFFERENCE, Outcome.NO_USEFUL_GAIN, Outcome.TRADE_OFF)


def _remember(latest: dict[Configuration, _Result], result: _Result) -> None:
    """Let the later result count, unless it is none: a candidate that was not reached, or that a person rejected."""
    if result.compared or result.outcome is Outcome.FAILED:
        latest[result.policy, result.tunables] = result


def _still_valid(library: Mapping[str, PolicyInfo], lesson: Lesson) -> bool:
    """Whether the policy still exists and still takes these tunables."""
    info = library.get(lesson.policy)
    if info is None:
        return False
    try:
        return info.configured(dict(lesson.tunables)) == lesson.tunables
    except TunableError:
        return False


def _from_lesson(lesson: Lesson) -> _Result:
    interval = (lesson.low, lesson.high)
    return _Result(lesson.policy, lesson.tunables, lesson.outcome, lesson.ratio, interval, here=False)


def _from_trial(candidate: CandidatePolicy, verdict: Verdict) -> _Result:
    ratio, *interval = verdict.claim
    return _Result(candidate.policy, candidate.tunables, verdict.outcome, ratio, (interval[0], interval[1]), here=True)
