"""What a gain would save in a fleet: an estimate of the reader's own numbers, with its assumptions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from schedagent.core.trials.trial import Outcome
from schedagent.report.report import Report

HOURS_A_YEAR = 8760
MACHINES, PRICE, SHARE = 100, 0.10, 50
"""What the page begins with: machines, price of a machine for an hour, and the per cent of its time for this work."""

STYLE = """
form.savings { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 12rem), 1fr));
  gap: .75rem 1.5rem; }
form.savings label { display: block; color: var(--soft); font-size: .875rem; }
form.savings input { font: inherit; width: 100%; box-sizing: border-box; padding: .4rem; color: var(--ink);
  background: var(--page); border: 1px solid var(--soft); border-radius: .25rem; }
"""

SCRIPT = """
"use strict";
const form = document.querySelector("form.savings");
if (form) {
  const out = form.parentElement.querySelector("output"), money = new Intl.NumberFormat(undefined,
    {minimumFractionDigits: 0, maximumFractionDigits: 0});
  const update = () => {
    const [machines, price, share] = ["machines", "price", "share"].map(name => Number(form.elements[name].value));
    const year = machines * price * HOURS * share / 100;
    const [gain, least, most] = ["gain", "least", "most"].map(name => money.format(year * Number(form.dataset[name])));
    out.value = `${gain} a year (${least} to ${most}), of ${money.format(year)} that the work costs`;
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", event => event.preventDefault());
  update();
}
""".replace("HOURS", str(HOURS_A_YEAR))
"""Works out the estimate again while the reader types; without it the page shows the formula and one example."""


@dataclass(frozen=True)
class Gain:
    """The part of the machine time for a work that a policy saves.

    Args:
        best, least, most: the estimate and its interval, as fractions; below 0 if it may cost time.
    """

    best: float
    least: float
    most: float


def gain_of(report: Report) -> Gain | None:
    """Return what the winner of a run saves of the machine's time; None if none won, or time is not what it gained.

    A ratio r of times saves 1 - r; a ratio r of throughput does the same work in 1 / r of the time.
    """
    best = report.best
    if best is None or best.verdict is None or best.verdict.outcome is not Outcome.BETTER:
        return None
    ratio, low, high = best.verdict.claim
    if not all(map(math.isfinite, (ratio, low, high))) or low <= 0:
        return None
    if not report.workload.metric:
        return Gain(1 - ratio, 1 - high, 1 - low)
    if not report.workload.goal.lower_is_better:
        return Gain(1 - 1 / ratio, 1 - 1 / low, 1 - 1 / high)
    return None


def section(report: Report) -> Iterator[str]:
    """Yield the section of the page; nothing if no policy won."""
    if report.best is None:
        return
    yield "<h2>What it would save</h2>"
    gain = gain_of(report)
    if gain is None:
        yield (
            "<p>The gain is one of latency, which frees no machine by itself, so nothing is worked out here. What it "
            "is worth is what a shorter wait is worth to your users.</p>"
        )
        return
    year = MACHINES * PRICE * HOURS_A_YEAR * SHARE / 100
    yield (
        "<p>An estimate out of your own numbers: <code>machines × price × "
        f"{HOURS_A_YEAR:,} h × share × gain</code>, the gain being {_percent(gain.best)} of the machine time "
        f"({_percent(gain.least)} to {_percent(gain.most)}). With {MACHINES} machines at {PRICE:.2f} an hour that do "
        f"this work {SHARE} % of their time: {year * gain.best:,.0f} a year, of {year:,.0f}.</p>"
    )
    yield (
        f'<form class="savings" data-gain="{gain.best!r}" data-least="{gain.least!r}" data-most="{gain.most!r}">'
        + _input("machines", "Machines", MACHINES, 1)
        + _input("price", "Price of one for an hour", PRICE, 0.01)
        + _input("share", "Per cent of its time for this work", SHARE, 1)
        + "</form><p><strong><output></output></strong></p>"
    )
    holds = "what it gains here holds there"
    if report.hardware.lab == "vm-tcg":
        holds = "the gain that is expected on hardware, worked out from an emulated machine, holds there"
    yield (
        f"<p><small>It assumes that the fleet does this work as it was measured here, that {holds}, and that time "
        "saved is money saved: fewer machines, or more work on them. Deploy as a canary and measure first.</small></p>"
    )


def _input(name: str, label: str, value: float, step: float) -> str:
    return (
        f'<label>{label}<input name="{name}" type="number" inputmode="decimal" min="0" step="any" '
        f'data-step="{step:g}" value="{value:g}"></label>'
    )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
