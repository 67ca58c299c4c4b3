"""The page of a run: the verdict and its guards first, then what it rests on, and how to do it again.

Every number that was measured stands in a `data` element: its value is what the JSON of the report holds at `data-at`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from schedagent.core.trials.trial import Outcome
from schedagent.page.markup import document, sentence, table, text, word
from schedagent.report.conclusion import conclusion
from schedagent.report.faces.remarks import guard_word, mode_lines
from schedagent.report.page import plots, savings
from schedagent.report.page.numbers import Place, count, interval, percent, places, ratio
from schedagent.report.page.sources import PolicyText
from schedagent.report.page.story import repeated, spent, tried, worked
from schedagent.report.page.trials import all_samples, compared
from schedagent.report.report import Report
from schedagent.report.values import objective_name

STYLE = (
    """
.better, .held { color: var(--good); } .worse, .broken { color: var(--bad); } .trade-off { color: var(--open); }
.lead { font-size: 1.125rem; } data { white-space: nowrap; } summary { cursor: pointer; }
pre.source { background: var(--box); padding: .75rem; border-radius: .25rem; }
@media (max-width: 40rem) { td:not(:first-child) small { display: inline; margin-left: .5rem; } }
@media print { :root { color-scheme: light; } body { margin: 0; max-width: none; font-size: 11pt; }
  form.savings { display: none; }
  details::details-content { content-visibility: visible; block-size: auto; }
  h2, h3 { break-after: avoid; } tr { break-inside: avoid; } }
"""
    + plots.STYLE
    + savings.STYLE
)


def to_html(report: Report, policies: Mapping[str, PolicyText]) -> str:
    """Return one HTML document.

    Args:
        policies: text of the policies that were tried, by name.
    """
    headline = _headline(report)
    return document(
        f"{report.workload.command}: {headline}",
        [
            f"<h1>{text(headline)}</h1>",
            f"<p>Run {text(report.title)}: <code>{text(report.workload.command)}</code></p>",
            *_conclusion(report),
            *_verdicts(report),
            *_guards(report),
            *compared(report),
            *worked(report),
            *tried(report, policies),
            *spent(report),
            *savings.section(report),
            *repeated(report),
            *all_samples(report),
        ],
        style=STYLE,
        script=savings.SCRIPT,
    )


def _headline(report: Report) -> str:
    if report.best and report.best.verdict:
        return f"{report.best.candidate.policy} is {report.best.verdict.outcome.value}"
    if report.failure:
        return "The run failed"
    if not report.complete:
        return "The run is not finished"
    trades = [entry for entry in report.candidates if entry.verdict and entry.verdict.outcome is Outcome.TRADE_OFF]
    return "Keep the default scheduler: what gains breaks a guard" if trades else "Keep the default scheduler"


def _conclusion(report: Report) -> Iterator[str]:
    lead, *rest = conclusion(report)
    yield f'<p class="lead">{text(lead)}</p>'
    if rest:
        yield f"<p>{'<br>'.join(map(text, rest))}</p>"


def _verdicts(report: Report) -> Iterator[str]:
    rows = list(places(report))
    if not rows:
        return
    yield "<h2>Verdict</h2>"
    emulated = any(place.entry.verdict and place.entry.verdict.expected for place in rows)
    yield f"<p>{_explained(report, emulated)}</p>"
    claimed = ("expected on hardware", "bounds") if emulated else ()
    yield table(
        ("policy", "verdict", *claimed, "raw, emulated" if emulated else "ratio", "pairs"),
        (_verdict(place, emulated) for place in rows),
    )
    lines = [line for place in rows for line in mode_lines(place.entry)]
    yield from (f'<p><span class="warning">Two modes.</span> {text(sentence(line))}</p>' for line in lines)


def _explained(report: Report, emulated: bool) -> str:
    better = "below" if report.workload.goal.lower_is_better else "above"
    ratio_means = (
        f"A ratio is the candidate's {text(objective_name(report.workload))} by the default's: {better} 1 is better."
    )
    if not emulated:
        return ratio_means
    return (
        f"{ratio_means} It was measured in an emulated machine, where a task switch costs far more than on hardware, "
        "so what is claimed is the ratio to expect there. It lies between the bounds: what the use of the CPUs alone "
        "gains, and the raw ratio."
    )


def _verdict(place: Place, emulated: bool) -> list[str]:
    verdict, at = place.entry.verdict, place.at
    if verdict is None:
        return [text(place.name), "not reached", *[""] * (4 if emulated else 2)]
    claimed = ["-", "-"] if emulated else []
    if verdict.expected:
        bounds = verdict.expected
        claimed = [
            _claim(bounds.ratio, bounds.low, bounds.high, f"{at}/expected"),
            f"{ratio(bounds.utilisation, f'{at}/expected/bounds/utilisation')} and "
            f"{ratio(bounds.raw, f'{at}/expected/bounds/raw')}",
        ]
    return [
        f"{text(place.name)}<small>{text(verdict.reason)}</small>",
        word(verdict.outcome.value),
        *claimed,
        _claim(verdict.ratio, verdict.low, verdict.high, f"{at}/verdict"),
        count(verdict.pairs, f"{at}/verdict/pairs"),
    ]


def _claim(value: float, low: float, high: float, at: str) -> str:
    return f"{ratio(value, f'{at}/ratio')}<small>{interval(low, high, at)}</small>"


def _guards(report: Report) -> Iterator[str]:
    rows = [
        [
            text(guard.name),
            text(place.name),
            word(guard_word(guard)),
            ratio(guard.ratio, f"{place.at}/guards/{number}/ratio"),
            interval(guard.low, guard.high, f"{place.at}/guards/{number}"),
            percent(guard.margin, f"{place.at}/guards/{number}/margin"),
        ]
        for place in places(report)
        if place.entry.verdict
        for number, guard in enumerate(place.entry.verdict.guards)
    ]
    if rows:
        yield "<h2>Guards</h2>"
        yield (
            "<p>What must not get worse by more than its margin. A guard holds if its whole interval shows that; a "
            "policy that gains and breaks one is a trade-off, and is not recommended.</p>"
        )
        yield table(("guard", "policy", "result", "ratio", "interval", "margin"), rows)
