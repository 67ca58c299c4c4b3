"""The verdict: what several pairs of runs allow to be said about a candidate. Pure.

A pair is the default's and the candidate's run of one block, next to each other in time, so a drift of the machine
cancels. The judge works on log(candidate / default), with the intervals of `interval`: it looks after 6, 8, ... 20
pairs, and what is shown at one of these looks is shown. Outcomes, with a minimum effect of 3 %, in this order:

* **better, worse**: the interval excludes 1, and the estimate is beyond the minimum effect. *Better* needs every guard
  to hold as well (`guards`); if one is shown to have become worse, it is a *trade-off*.
* **no difference**: the interval lies within twice the minimum effect.
* **no useful gain**: the interval excludes a gain of the minimum effect.
* **inconclusive**: none of these, at the last look that there was.

In an emulated machine the outcome rests on the ratio that is expected on hardware (`hardware_gain`), where there is
one; the measured one stands beside it.

Of several candidates a race finds the leader (`race`), and only the leader's own blocks, measured afterwards, can make
a claim: the luckiest of several estimates is too good (the winner's curse).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from schedagent.core.errors import UsageError, WorkloadFailed
from schedagent.core.trials.guards import (
    GuardPairs,
    Pair,
    broken,
    figures,
    guard_pairs,
    judge_guard,
    safe_exp,
    worst_run,
)
from schedagent.core.trials.hardware_gain import HardwareRatio, expected
from schedagent.core.trials.interval import Interval, levels, looks, quantile, trimmed
from schedagent.core.trials.trial import DEFAULT_ARM, Block, Expected, GuardVerdict, Outcome, Sample, Verdict
from schedagent.core.trials.usage import MachineCosts
from schedagent.core.trials.workload import WorkloadCommand

MINIMUM_PAIRS = 6
"""No claim from fewer: with n pairs of one sign the smallest two-sided p of a sign test is 2**(1-n); 6 give 0.03."""

OTHERS_TOLERANCE = 0.1
"""Part of a machine's CPU time by which a run's neighbours may differ from the usual ones."""

_LARGEST = 700.0
"""exp() of more is no float."""

FAILURES = 2
"""Failed runs that end a trial, if they are at least half of an arm's runs: then failing is the rule."""


@dataclass(frozen=True)
class TrialRules:
    """When a trial may end.

    Args:
        minimum_effect: smallest relative change worth a claim.
        confidence: of all claims of a run together.
        minimum_pairs: no claim from fewer.
        maximum_pairs: the last look.
    """

    minimum_effect: float = 0.03
    confidence: float = 0.95
    minimum_pairs: int = MINIMUM_PAIRS
    maximum_pairs: int = 20


@dataclass(frozen=True)
class Terms:
    """What all verdicts of one trial go by.

    Args:
        workload: what is compared, and its guards.
        rules: when a trial may end.
        comparisons: how many claims the run may make in all; each has an equal share of the error.
        cpus: of the lab's machine.
        costs: what separates that machine from hardware; None where it is the hardware, or was not measured.
    """

    workload: WorkloadCommand
    rules: TrialRules
    comparisons: int = 1
    cpus: int = 1
    costs: MachineCosts | None = None


@dataclass(frozen=True)
class Usual:
    """The machine as it usually was during a trial: medians.

    Args:
        probe_ns: of the calibration probe.
        others_share: part of its CPU time that went to others than the workload.
    """

    probe_ns: float
    others_share: float


@dataclass(frozen=True)
class ArmPairs:
    """What the blocks hold about one candidate.

    Args:
        pairs: the runs of each block that can be compared.
        disturbed: blocks left out because a calibration probe, or what others used, showed a disturbed machine.
        failures: why runs of the candidate failed, one line each, the warm-up included.
        default_failures: the same of the default scheduler's runs beside them.
        runs: runs of the candidate, failed ones and the warm-up included.
        ejected: whether the kernel ejected the policy.
    """

    pairs: tuple[Pair, ...] = ()
    disturbed: int = 0
    failures: tuple[str, ...] = ()
    default_failures: tuple[str, ...] = ()
    runs: int = 0
    ejected: bool = False

    @property
    def values(self) -> tuple[tuple[float, float], ...]:
        """(default's value, candidate's value) of each pair."""
        return tuple((pair.default.value, pair.candidate.value) for pair in self.pairs)

    @property
    def failing(self) -> bool:
        """Whether the candidate's failures are more than the work's own."""
        return self.ejected or _is_the_rule(self.failures, self.runs)


def pairs_of(blocks: Sequence[Block], arm: str, *, calibration_tolerance: float = 0.5) -> ArmPairs:
    """Collect the pairs of `arm` and the default scheduler; the warm-up (block 0) is never compared.

    A run that failed costs its block. It ends nothing unless failing is the rule: real programs lose a race now and
    then, under the default scheduler as well.

    Args:
        blocks: all blocks of the trial, the warm-up included.
        arm: the candidate's key.
        calibration_tolerance: a pair counts as disturbed if the probe before either of its runs deviates by more
            than this fraction from the median probe of the trial (runs that failed may have no probe and do not count).
            A probe varies by a tenth on a quiet machine and doubles if another process takes half of the CPU. So does
            one in which others used more, or less, of the machine than usual by OTHERS_TOLERANCE.

    Raises:
        WorkloadFailed: failing is the rule under the default scheduler, so there is nothing to compare with.
    """
    whole = [sample for block in blocks for sample in block.samples if not sample.failure]
    probes_ns, shares = [sample.calibration_ns for sample in whole], [_others_share(sample) for sample in whole]
    usual = Usual(median(probes_ns or [0]), median(shares or [0.0]))
    pairs: list[Pair] = []
    failures: list[str] = []
    default_failures: list[str] = []
    disturbed = runs = 0
    ejected = False
    for block in blocks:
        candidate, default = block.sample(arm), block.sample(DEFAULT_ARM)
        if candidate is None or default is None:
            continue
        runs += 1
        ejected = ejected or bool(candidate.policy_exit)
        failures += [f"block {block.number}: {candidate.failure}"] if candidate.failure else []
        default_failures += [f"block {block.number}: {default.failure}"] if default.failure else []
        if candidate.failure or default.failure or block.number == 0:
            continue
        if any(_disturbed(sample, usual, calibration_tolerance) for sample in (default, candidate)):
            disturbed += 1
        else:
            pairs.append(Pair(default, candidate))
    if _is_the_rule(default_failures, runs):
        raise WorkloadFailed(
            f"{len(default_failures)} of {runs} runs under the default scheduler failed: {default_failures[0]}",
            "fix the command until it works each time, and start a new run",
        )
    return ArmPairs(tuple(pairs), disturbed, tuple(failures), tuple(default_failures), runs, ejected)


def _is_the_rule(failures: Sequence[str], runs: int) -> bool:
    return len(failures) >= FAILURES and 2 * len(failures) >= runs


def cpu_time_ratio(blocks: Sequence[Block], arm: str) -> float:
    """Return the geometric mean of candidate / default in CPU time, nan if nothing can be compared.

    Work that is the same in both arms needs the same CPU time: what differs is the cost of switching and of caches.
    """
    logs = []
    for block in blocks[1:]:
        candidate, default = block.sample(arm), block.sample(DEFAULT_ARM)
        if candidate and default and not candidate.failure and min(candidate.cpu_ns, default.cpu_ns) > 0:
            logs.append(math.log(candidate.cpu_ns / default.cpu_ns))
    return math.exp(math.fsum(logs) / len(logs)) if logs else math.nan


def judge_arm(measured: ArmPairs, terms: Terms) -> Verdict:
    """Judge one candidate from the pairs that were measured for its claim."""
    if measured.failing:
        return failed(measured.failures, pairs=len(measured.pairs), disturbed=measured.disturbed)
    verdict = judge(
        measured.values,
        terms.rules,
        lower_is_better=terms.workload.goal.lower_is_better,
        comparisons=terms.comparisons,
        guards=guard_pairs(terms.workload, measured.pairs),
        hardware=hardware_ratios(measured.pairs, terms),
        disturbed=measured.disturbed,
    )
    return _with_failures(verdict, measured)


def hardware_ratios(pairs: Sequence[Pair], terms: Terms) -> tuple[HardwareRatio, ...] | None:
    """Return what each pair makes one expect on hardware; None where time is not compared, or one is not known."""
    if terms.costs is None or terms.workload.metric:
        return None
    ratios = [expected(pair.default, pair.candidate, terms.costs, terms.cpus) for pair in pairs]
    known = tuple(ratio for ratio in ratios if ratio is not None)
    return known if len(known) == len(ratios) else None


def judge(
    pairs: Sequence[tuple[float, float]],
    rules: TrialRules | None = None,
    *,
    lower_is_better: bool = True,
    comparisons: int = 1,
    guards: Sequence[GuardPairs] = (),
    hardware: Sequence[HardwareRatio] | None = None,
    disturbed: int = 0,
) -> Verdict:
    """Compare a candidate with the default scheduler; the rules are in the module's docstring.

    Args:
        pairs: (default's value, candidate's value), all positive, in the order they were measured. Those after the last
            look that was reached are not judged yet.
        rules: thresholds; by default those of every run.
        lower_is_better: whether a smaller value is the better one (time) or the larger (throughput).
        comparisons: how many claims share the error.
        guards: what must not get worse, for the same pairs.
        hardware: what each pair makes one expect on hardware; None: the values are what is judged.
        disturbed: pairs left out, passed through to the verdict.

    Raises:
        UsageError: a value is not a positive finite number, or a threshold makes no sense.
    """
    rules = rules or TrialRules()
    _check(comparisons, rules)
    logs = [_log_ratio(number, *pair) for number, pair in enumerate(pairs, 1)]
    alpha = (1 - rules.confidence) / comparisons
    seen, level = last_look(len(logs), rules, alpha)
    count = seen or len(logs)
    raw = trimmed(logs[:count], level)
    transferable = expected_of(hardware[:count], level) if hardware is not None and count else None
    judged = _interval(transferable) if transferable else raw
    good = judged if lower_is_better else Interval(-judged.mean, judged.half_width)
    verdicts, shown_broken = judge_guards(guards, seen, level)
    if seen:
        verdicts.append(worst_run(pairs[:count], lower_is_better=lower_is_better))
        shown_broken += [] if verdicts[-1].held else verdicts[-1:]
    outcome = _outcome(good, verdicts, shown_broken, rules.minimum_effect) if seen else Outcome.INCONCLUSIVE
    return Verdict(
        outcome,
        *figures(raw),
        1 - alpha,
        count,
        disturbed,
        Words(good, count, rules, lower_is_better).reason(outcome, verdicts, shown_broken),
        tuple(verdicts),
        transferable,
    )


def last_look(pairs: int, rules: TrialRules, alpha: float) -> tuple[int, float]:
    """Return the last look that so many pairs reached, 0 for none, and its two-sided error level.

    Args:
        alpha: error of all looks together.
    """
    planned = looks(rules.minimum_pairs, rules.maximum_pairs)
    by_look = dict(zip(planned, levels(planned, alpha), strict=True))
    seen = max((look for look in planned if look <= pairs), default=0)
    return seen, by_look.get(seen, alpha)


def judge_guards(
    guards: Sequence[GuardPairs], seen: int, level: float
) -> tuple[list[GuardVerdict], list[GuardVerdict]]:
    """Judge guards at a look: all of them, and those that are shown to have become worse; none before the first look.

    Args:
        seen, level: the look and its two-sided error level, see `last_look`.
    """
    guarded = [replace(guard, logs=guard.logs[:seen]) for guard in guards] if seen else []
    verdicts = [judge_guard(guard, min(2 * level, 1.0)) for guard in guarded]
    return verdicts, [verdict for verdict, guard in zip(verdicts, guarded, strict=True) if broken(verdict, guard)]


def expected_of(ratios: Sequence[HardwareRatio], level: float) -> Expected:
    """Return the ratio to expect on hardware, with its interval at error `level`."""
    interval = trimmed([math.log(ratio.ratio) for ratio in ratios], level)
    utilisation, raw = (
        safe_exp(trimmed([math.log(getattr(ratio, name)) for ratio in ratios], level).mean)
        for name in ("utilisation", "raw")
    )
    return Expected(*figures(interval), utilisation, raw)


def _interval(expected_ratio: Expected) -> Interval:
    mean = math.log(expected_ratio.ratio)
    return Interval(mean, math.log(expected_ratio.high) - mean)


def _outcome(
    interval: Interval, guards: Sequence[GuardVerdict], broken_guards: Sequence[GuardVerdict], minimum_effect: float
) -> Outcome:
    """Return the outcome; in `interval`, less is better."""
    effect = math.log1p(minimum_effect)
    if interval.high < 0 and interval.mean < -effect:
        if broken_guards:
            return Outcome.TRADE_OFF
        return Outcome.BETTER if all(guard.held for guard in guards) else Outcome.INCONCLUSIVE
    if interval.low > 0 and interval.mean > effect:
        return Outcome.WORSE
    if -2 * effect <= interval.low and interval.high <= 2 * effect:
        return Outcome.NO_DIFFERENCE
    return Outcome.NO_USEFUL_GAIN if interval.low > -effect else Outcome.INCONCLUSIVE


@dataclass(frozen=True)
class Words:
    """Says what an interval means; in it, less is better, whatever is compared.

    Args:
        count: of pairs.
        rules: thresholds.
        lower_is_better: whether a gain is less of the value, or more.
    """

    interval: Interval
    count: int
    rules: TrialRules
    lower_is_better: bool

    def reason(self, outcome: Outcome, guards: Sequence[GuardVerdict], broken_guards: Sequence[GuardVerdict]) -> str:
        """Return one sentence."""
        least, likely = self._percent(self.interval.high), self._percent(self.interval.mean)
        if outcome is Outcome.BETTER:
            return f"a gain of at least {least}, probably {likely}, in {self.count} pairs"
        if outcome is Outcome.TRADE_OFF:
            return f"a gain of at least {least}, but {'; '.join(map(_how_broken, broken_guards))}"
        if outcome is Outcome.WORSE:
            return f"a loss of at least {self._percent(self.interval.low)}, probably {likely}, in {self.count} pairs"
        if outcome is Outcome.NO_DIFFERENCE:
            return f"no more than {2 * self.rules.minimum_effect:.0%} either way, in {self.count} pairs"
        if outcome is Outcome.NO_USEFUL_GAIN:
            return f"a gain of {self.rules.minimum_effect:.0%} is excluded, in {self.count} pairs"
        return self._missing(guards)

    def _missing(self, guards: Sequence[GuardVerdict]) -> str:
        """Return why there is no verdict yet, and what is known all the same."""
        if self.count < self.rules.minimum_pairs:
            return f"{self.count} pairs of at least {self.rules.minimum_pairs}: no claim is made from fewer"
        interval = self.interval
        known = f"between {self._change(interval.low)} and {self._change(interval.high)}, in {self.count} pairs"
        open_guards = [guard.name for guard in guards if not guard.held]
        if interval.high < 0 and open_guards:
            return f"a gain, {known}; whether {' and '.join(open_guards)} got worse is not settled"
        if interval.mean < -math.log1p(self.rules.minimum_effect):
            return f"probably a gain of {self._percent(interval.mean)}, but not shown: {known}"
        return f"the runs vary too much to say: {known}"

    def _percent(self, mean: float) -> str:
        """The size of a change of the value, in per cent of the default's."""
        return f"{abs(math.expm1(min(mean if self.lower_is_better else -mean, _LARGEST))):.1%}"

    def _change(self, mean: float) -> str:
        less = (mean < 0) == self.lower_is_better
        return f"{self._percent(mean)} {'less' if less else 'more'}" if math.isfinite(mean) else "anything"


def _how_broken(guard: GuardVerdict) -> str:
    if not guard.low < guard.ratio:  # the worst run: it has no interval
        return f"the {guard.name} is {guard.ratio:.2f} times the default's"
    return f"{guard.name} is {guard.ratio:.3f} times the default's (allowed: {guard.margin:.0%} worse)"


def _with_failures(verdict: Verdict, measured: ArmPairs) -> Verdict:
    """Take failed runs into account that were not the rule: more than one beside the default's own take a claim."""
    if not measured.failures and not measured.default_failures:
        return verdict
    own, default = len(measured.failures), len(measured.default_failures)
    count = f"{own} of its {measured.runs} runs failed, {default} of the default's"
    if own <= default + 1 or verdict.outcome is not Outcome.BETTER:
        return replace(verdict, reason=f"{verdict.reason}; {count}")
    reason = f"a gain where it worked, but {count}: {measured.failures[0]}"
    return replace(verdict, outcome=Outcome.TRADE_OFF, reason=reason)


def failed(failures: Sequence[str], *, pairs: int = 0, disturbed: int = 0) -> Verdict:
    """Return the verdict on a candidate whose runs fail; no ratio is claimed for it."""
    rest = f" (and {len(failures) - 1} more runs)" if len(failures) > 1 else ""
    reason = f"a run under the candidate failed: {failures[0]}{rest}"
    return Verdict(Outcome.FAILED, math.nan, math.nan, math.nan, 0.0, pairs, disturbed, reason)


def decided(verdict: Verdict) -> bool:
    """Return whether measuring may stop: what is shown at a planned look is shown."""
    return verdict.outcome is not Outcome.INCONCLUSIVE


def more_pairs(verdict: Verdict, rules: TrialRules) -> int | None:
    """Return about how many more pairs would decide an inconclusive verdict; None if more than a trial may have.

    That is: at which look the interval, of this mean and this spread, would exclude 1 or lie within the bounds of no
    difference.
    """
    if verdict.pairs < rules.minimum_pairs:
        return rules.minimum_pairs - verdict.pairs
    known = verdict.expected or verdict
    if not (0 < known.low < known.high < math.inf):
        return None
    mean, half_width = math.log(known.ratio), math.log(known.high / known.low) / 2
    target = max(abs(mean), 2 * math.log1p(rules.minimum_effect) - abs(mean))
    planned = looks(rules.minimum_pairs, rules.maximum_pairs)
    by_look = dict(zip(planned, levels(planned, 1 - verdict.confidence), strict=True))
    if verdict.pairs not in by_look:
        return None
    error = half_width / quantile(verdict.pairs, by_look[verdict.pairs]) * math.sqrt(verdict.pairs)
    later = (look for look in planned if look > verdict.pairs)
    enough = (look for look in later if quantile(look, by_look[look]) * error / math.sqrt(look) < target)
    look = next(enough, None)
    return None if look is None else look - verdict.pairs


def _log_ratio(number: int, default: float, candidate: float) -> float:
    for name, value in (("default", default), ("candidate", candidate)):
        if not (math.isfinite(value) and value > 0):
            raise UsageError(
                f"pair {number}: the {name}'s value is {value!r}, which has no ratio",
                "the compared number must be positive and finite; check --metric",
            )
    return math.log(candidate / default)


def _others_share(sample: Sample) -> float:
    return sample.usage.others_share if sample.usage else 0.0


def _disturbed(sample: Sample, usual: Usual, tolerance: float) -> bool:
    slower = abs(sample.calibration_ns - usual.probe_ns) > tolerance * usual.probe_ns
    return slower or abs(_others_share(sample) - usual.others_share) > OTHERS_TOLERANCE


def _check(comparisons: int, rules: TrialRules) -> None:
    accepted = {
        f"comparisons={comparisons} (at least 1)": comparisons >= 1,
        f"confidence={rules.confidence} (between 0 and 1)": 0 < rules.confidence < 1,
        f"minimum_effect={rules.minimum_effect} (above 0, at most 1)": 0 < rules.minimum_effect <= 1,
        f"minimum_pairs={rules.minimum_pairs} (2 to maximum_pairs)": 2 <= rules.minimum_pairs <= rules.maximum_pairs,
    }
    for text, good in accepted.items():
        if not good:
            raise UsageError(f"cannot judge with {text}")
