"""The conclusion of a report in sentences, which every face for people shows: the verdict, and what to do next."""

from __future__ import annotations

import math
from collections.abc import Iterator

from schedagent.approval.text import token_allows
from schedagent.core.approval import ApprovalStage
from schedagent.core.trials.judge import TrialRules, more_pairs
from schedagent.core.trials.race import own_blocks, shared_blocks
from schedagent.core.trials.trial import ON_HOST, Outcome
from schedagent.report.report import IN_PROCESS, CandidateReport, Report

_SCX = "scx_"
SAVED_CPU_TIME = 0.97
"""CPU time ratio from which on a gain under emulation is, in part, one of cheaper switching: the minimum effect."""


def conclusion(report: Report) -> list[str]:
    """Return the verdict, who decided what, what limits the result, and what to do next; a sentence or two a line."""
    return [*_verdict(report), *_decisions(report), *_limits(report), *_model(report), *_safety(report)]


def _verdict(report: Report) -> Iterator[str]:
    if report.best:
        yield from _gain(report, report.best)
        yield from _next_with_winner(report)
    elif report.failure:
        yield f"No verdict: the run failed: {report.failure.message}"
        step = next_step(report.failure.hint, report.run) if report.failure.resumable else report.failure.hint
        if step:
            yield f"Next: {step}."
    elif not report.complete:
        yield "No verdict yet: the run is not finished."
    elif report.iterations and all(_rejected(report, number) for number in range(1, len(report.iterations) + 1)):
        yield "Verdict: nothing was tried, because no plan was approved. Keep the default scheduler."
    else:
        yield from _without_winner(report)


def _without_winner(report: Report) -> Iterator[str]:
    """A price, a probable gain, and nothing at all are three different results."""
    traded = [entry for entry in report.candidates if _outcome(entry) is Outcome.TRADE_OFF]
    probable = [entry for entry in _open_questions(report) if _probable_gain(report, entry)]
    for entry in traded:
        yield f"Verdict: {entry.candidate.policy} is a trade-off: {_reason(entry)}."
    if probable and not traded:
        for entry in probable:
            yield f"Verdict: undecided. {entry.candidate.policy}: {_reason(entry)}."
        yield "Keep the default scheduler until that is shown."
    elif traded:
        yield "It is not recommended. Keep the default scheduler, or accept the price: a guard with a wider margin."
    else:
        yield "Verdict: nothing better was found. Keep the default scheduler."
    yield _next_without_winner(report)


def _outcome(entry: CandidateReport) -> Outcome | None:
    return entry.verdict.outcome if entry.verdict else None


def _reason(entry: CandidateReport) -> str:
    return entry.verdict.reason if entry.verdict else ""


def _probable_gain(report: Report, entry: CandidateReport) -> bool:
    """Whether the estimate is a gain of the minimum effect, though it is not shown."""
    assert entry.verdict is not None, "a question is open about a verdict only"
    ratio = entry.verdict.claim[0]
    gain = 1 / ratio if report.workload.goal.lower_is_better else ratio
    return gain > 1 + TrialRules().minimum_effect  # never of a NaN


def next_step(hint: str, run: str) -> str:
    """Return what to do about a failed run that can continue: what its error hints at, then the command."""
    kept = f"nothing that was measured is lost: schedagent resume {run}"
    return f"{hint}; then continue, {kept}" if hint else f"continue, {kept}"


def _gain(report: Report, best: CandidateReport) -> Iterator[str]:
    """The claim: at least so much, of what carries over to hardware; what the emulated machine showed stands below."""
    assert best.verdict is not None, "the best is chosen by its verdict"
    verdict, lower = best.verdict, report.workload.goal.lower_is_better
    ratio, low, high = verdict.claim
    word, of = ("less" if lower else "more"), (report.workload.objective or "the metric")
    unit = f"of {of}" if report.workload.metric else "time"
    least, likely = (f"{abs(1 - value):.1%}" for value in ((high if lower else low), ratio))
    where = ", expected on hardware" if verdict.expected else _in_the_lab(report)
    yield f"Verdict: {best.candidate.policy} is better: at least {least} {word} {unit}, probably {likely}{where}."
    if verdict.expected:
        utilisation, raw = verdict.expected.utilisation, verdict.expected.raw
        yield (
            f"  Measured in this emulated machine: {_change(raw)}. Better use of the CPUs alone, without what cheaper "
            f"switching saves: {_change(utilisation)}."
        )


def _in_the_lab(report: Report) -> str:
    return ", in this emulated machine" if report.hardware.lab == "vm-tcg" else ""


def _change(ratio: float) -> str:
    return f"{abs(1 - ratio):.1%} {'less' if ratio < 1 else 'more'} time"


def _next_with_winner(report: Report) -> Iterator[str]:
    program = report.best.candidate.program if report.best else None
    if program:
        yield f"Next: start it as its users do: sudo {program.command}"
        if program.name.startswith(_SCX):
            yield (
                f"  As a service: SCX_SCHEDULER={program.name} and its SCX_FLAGS in /etc/default/scx, then "
                f"systemctl restart scx; or scxctl switch --sched {program.name.removeprefix(_SCX)}"
            )
        yield "  It was measured, not verified: no gate saw its policy, and schedagentd loads no program."
    if report.deployment:
        yield f"Next: schedagent deploy {report.run}"
        yield "  It needs schedagentd and a kernel with sched_ext on this machine: schedagent help deploying"
    yield "The same command again starts from this result and measures the winner again."


def _next_without_winner(report: Report) -> str:
    """Measure longer only if that may decide something that was left undecided."""
    questions = _open_questions(report)
    if report.workload.running:
        longer = "measure longer (--for), or in a time of steadier load; the pairs of this run do not count again"
        return f"Next: {longer}." if questions else "Next: nothing to do. Another metric may show more."
    if not questions:
        return "Next: nothing to do. Another --goal may show more."
    if not report.out_of_time:
        return "Next: on a quieter machine the undecided may be decided."
    needs = [_need(report, entry) for entry in questions]
    if None in needs:
        return (
            "Next: nothing. What is undecided differs too little or varies too much to be settled in reasonable time."
        )
    pairs, seconds = (sum(figures) for figures in zip(*filter(None, needs), strict=True))
    minutes = f", some {max(1, round(seconds / 60))} minutes" if math.isfinite(seconds) else ""
    return f"Next: with a longer --budget-minutes the undecided may be decided: about {pairs} more pairs{minutes}."


def _need(report: Report, entry: CandidateReport) -> tuple[int, float] | None:
    """Return about how many more pairs would decide a candidate, and their seconds; None if more than is reasonable."""
    iteration = next(iteration for iteration in report.iterations if entry in iteration.candidates)
    assert entry.verdict is not None, "a question is open about a verdict only"
    if not own_blocks(iteration.blocks, entry.candidate.key) and shared_blocks(iteration.blocks, [entry.candidate.key]):
        more: int | None = TrialRules().minimum_pairs
    else:
        more = more_pairs(entry.verdict, TrialRules())
    return None if more is None else (more, more * iteration.block_s)


def _open_questions(report: Report) -> list[CandidateReport]:
    """Return the candidate of each iteration whose verdict more pairs might change: who lost a race is out of it."""
    questions = []
    for iteration in report.iterations:
        undecided = [entry for entry in iteration.candidates if _outcome(entry) is Outcome.INCONCLUSIVE]
        alone = [
            entry
            for entry in undecided
            if own_blocks(iteration.blocks, entry.candidate.key)
            or not shared_blocks(iteration.blocks, [entry.candidate.key])
        ]
        measured_alone = any(own_blocks(iteration.blocks, entry.candidate.key) for entry in iteration.candidates)
        if alone:
            questions += alone
        elif undecided and not measured_alone:
            questions.append(min(undecided, key=lambda entry: _rank(report, entry)))
    return questions


def _rank(report: Report, entry: CandidateReport) -> float:
    ratio = entry.verdict.claim[0] if entry.verdict else math.nan
    return math.inf if math.isnan(ratio) else ratio if report.workload.goal.lower_is_better else -ratio


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
        rest = "; what was not decided by then is called inconclusive"
        if report.workload.running:
            yield f"No answer in the time{rest}."
            return
        yield f"The time budget ended the run{rest if _open_questions(report) else ' before another plan'}."
    ratio = report.best.cpu_time_ratio if report.best and not _expected(report.best) else 1.0
    if report.hardware.lab == "vm-tcg" and ratio < SAVED_CPU_TIME:  # never of a NaN
        yield (
            f"Caution: the same work took {100 * (1 - ratio):.0f} % less CPU time. In an emulated "
            "VM a task switch costs many times what it costs on hardware, so expect less of this gain on a real host."
        )


def _expected(entry: CandidateReport) -> bool:
    """Whether it is known what carries over to hardware."""
    return entry.verdict is not None and entry.verdict.expected is not None


def _model(report: Report) -> Iterator[str]:
    """What was used of models, and what happened meanwhile."""
    if report.model:
        yield f"Model: {report.model.used}."
        yield from (f"  {note.role}, iteration {note.iteration}: {note.text}" for note in report.model.notes)


def _safety(report: Report) -> Iterator[str]:
    here = "Measured on this machine, on its real files; the default scheduler is in charge again."
    if report.workload.running:
        here = "Measured on this machine by pulses, without a restart; the default scheduler is in charge again."
    there = f"Measured in a micro-VM ({report.hardware.lab}); nothing was changed on this machine."
    yield (here if report.hardware.lab == ON_HOST else there) + _who_verified(report.verified_by)


def _who_verified(verifiers: tuple[str, ...]) -> str:
    if not verifiers:
        return ""
    alone = ", not by a separate service" if IN_PROCESS in verifiers else ""
    return f" Candidates were verified and signed by {' and '.join(verifiers)}{alone}."
