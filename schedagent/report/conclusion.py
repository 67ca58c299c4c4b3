"""The conclusion of a report in sentences, which every face for people shows: the verdict, and what to do next."""

from __future__ import annotations

import math
from collections.abc import Iterator

from schedagent.approval.text import token_allows
from schedagent.core.approval import ApprovalStage
from schedagent.core.trials.judge import TrialRules, more_pairs
from schedagent.report.report import IN_PROCESS, CandidateReport, IterationReport, Report

SAVED_CPU_TIME = 0.97
"""CPU time ratio from which on a gain under emulation is, in part, one of cheaper switching: the minimum effect."""


def conclusion(report: Report) -> list[str]:
    """Return the verdict, who decided what, what limits the result, and what to do next; a sentence or two a line."""
    return [*_verdict(report), *_decisions(report), *_limits(report), *_model(report), *_safety(report)]


def _verdict(report: Report) -> Iterator[str]:
    if report.best:
        where = " in this emulated machine" if report.hardware.lab == "vm-tcg" else ""
        yield f"Verdict: {_gain(report, report.best)} than the default{where}."
        yield from _next_with_winner(report)
    elif report.failure:
        yield f"No verdict: the run failed: {report.failure.message}".replace("\n", "\n  ")
        step = next_step(report.failure.hint, report.run) if report.failure.resumable else report.failure.hint
        if step:
            yield f"Next: {step}."
    elif not report.complete:
        yield "No verdict yet: the run is not finished."
    elif report.iterations and all(_rejected(report, number) for number in range(1, len(report.iterations) + 1)):
        yield "Verdict: nothing was tried, because no plan was approved. Keep the default scheduler."
    else:
        yield "Verdict: nothing better was found. Keep the default scheduler."
        yield _next_without_winner(report)


def next_step(hint: str, run: str) -> str:
    """Return what to do about a failed run that can continue: what its error hints at, then the command."""
    kept = f"nothing that was measured is lost: schedagent resume {run}"
    return f"{hint}; then continue, {kept}" if hint else f"continue, {kept}"


def _gain(report: Report, best: CandidateReport) -> str:
    assert best.verdict is not None, "the best is chosen by its verdict"
    word = "less" if best.verdict.ratio < 1 else "more"
    unit = "of the metric" if report.workload.metric else "time"
    return f"{best.candidate.policy} is better: {100 * abs(1 - best.verdict.ratio):.1f} % {word} {unit}"


def _next_with_winner(report: Report) -> Iterator[str]:
    if report.deployment:
        yield f"Next: schedagent deploy {report.run}"
        yield "  It needs schedagentd and a kernel with sched_ext on this machine: schedagent help deploying"
    yield "The same command again starts from this result and measures the winner again."


def _next_without_winner(report: Report) -> str:
    """Measure longer only if that may decide something that was left undecided."""
    if not _undecided(report):
        return "Next: nothing to do. Another --goal may show more."
    if not report.out_of_time:
        return "Next: on a quieter machine the undecided may be decided."
    needs = [_need(iteration) for iteration in report.iterations if iteration.undecided]
    if None in needs:
        return (
            "Next: nothing. What is undecided differs too little or varies too much to be settled in reasonable time."
        )
    pairs, seconds = (sum(figures) for figures in zip(*filter(None, needs), strict=True))
    minutes = f", some {max(1, round(seconds / 60))} minutes" if math.isfinite(seconds) else ""
    return f"Next: with a longer --budget-minutes the undecided may be decided: about {pairs} more pairs{minutes}."


def _need(iteration: IterationReport) -> tuple[int, float] | None:
    """Return about how many more pairs would decide an iteration, and their seconds; None if more than is reasonable.

    A block has a pair of each candidate, so the candidate that needs most decides.
    """
    more = [more_pairs(verdict, TrialRules()) for verdict in iteration.undecided]
    blocks = max((count for count in more if count), default=0)
    return None if None in more else (blocks, blocks * iteration.block_s)


def _undecided(report: Report) -> bool:
    return any(iteration.undecided for iteration in report.iterations)


def _rejected(report: Report, iteration: int) -> bool:
    """Whether the plan of this iteration, counted from 1, was rejected in the end."""
    step = (ApprovalStage.PLAN, iteration)
    decisions = [entry.decision for entry in report.decisions if (entry.stage, entry.iteration) == step]
    return bool(decisions) and not decisions[-1].approved


def _decisions(report: Report) -> Iterator[str]:
    """Who approved or rejected what, and what token the run issues."""
    for entry in report.decisions:
        what = f"Plan {entry.iteration}" if entry.stage is ApprovalStage.PLAN else "The deployment"
        yield f"{what} was {entry.decision.in_words}" + ("" if entry.decision.because else ".")
    if report.deployment:
        where = f"schedagent runs show {report.run} --json"
        yield f"A token for it ({where}: deployment) allows {token_allows(report.deployment.allows)}."
    elif report.complete and report.decisions and report.decisions[-1].stage is ApprovalStage.DEPLOY:
        yield "No token was issued."


def _limits(report: Report) -> Iterator[str]:
    if report.out_of_time:
        rest = "; what was not decided by then is called inconclusive" if _undecided(report) else " before another plan"
        yield f"The time budget ended the run{rest}."
    ratio = report.best.cpu_time_ratio if report.best else 1.0
    if report.hardware.lab == "vm-tcg" and ratio < SAVED_CPU_TIME:  # never of a NaN
        yield (
            f"Caution: the same work took {100 * (1 - ratio):.0f} % less CPU time. In an emulated "
            "VM a task switch costs many times what it costs on hardware, so expect less of this gain on a real host."
        )


def _model(report: Report) -> Iterator[str]:
    """What was used of models, and what happened meanwhile."""
    if report.model:
        yield f"Model: {report.model.used}."
        yield from (f"  {note.role}, iteration {note.iteration}: {note.text}" for note in report.model.notes)


def _safety(report: Report) -> Iterator[str]:
    if report.hardware.lab != "host":
        yield (
            f"Measured in a micro-VM ({report.hardware.lab}); nothing was changed on this machine."
            + _who_verified(report.verified_by)
        )


def _who_verified(verifiers: tuple[str, ...]) -> str:
    if not verifiers:
        return ""
    alone = ", not by a separate service" if IN_PROCESS in verifiers else ""
    return f" Candidates were verified and signed by {' and '.join(verifiers)}{alone}."
