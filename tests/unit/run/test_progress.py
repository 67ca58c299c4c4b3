"""Progress: what is left of the budget, and how long a step still takes."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from schedagent.report.times import duration, unix_time, when
from schedagent.run.progress import LiveReporter, Pace, PlainReporter, TimeLeft, at_most


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "60 s"),
        (60, "1 min"),
        (3569, "59 min"),
        (3571, "1 h"),
        (7800, "2 h 10 min"),
        (86400, "1 d"),
        (6.2 * 86400, "6 d"),
    ],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_moments(monkeypatch):
    now = unix_time("2026-11-30T02:04:30.000+00:00")
    assert when(now - 180, now) == "3 min ago"
    assert when(now - 2, now) == "2 s ago"
    assert when(now + 86400, now)[:10] in ("2026-12-01", "2026-11-30", "2026-12-02")
    assert len(when(now - 2 * 86400, now)) == len("2026-11-28 02:04")


def test_a_pace_is_known_after_the_first_step():
    now = [100.0]
    pace = Pace(lambda: now[0])
    assert pace.left_s(3, 10) is None
    now[0] += 4
    assert pace.left_s(5, 10) == 10
    pace.restart()
    assert pace.left_s(5, 10) is None
    assert at_most(None) == ""
    assert at_most(90) == "at most 2 min more"


@pytest.mark.parametrize(("left_s", "words"), [(1500, "25 min of the budget left"), (-1, "the budget is used up")])
def test_plain_lines_show_what_is_left(left_s, words):
    file = io.StringIO()
    reporter = PlainReporter(Console(file=file))
    reporter.stage("before there is a budget")
    reporter.budget(lambda: left_s)
    reporter.stage("observation")
    first, second = file.getvalue().splitlines()
    assert first.endswith("== before there is a budget")
    assert second.endswith(f"== observation ({words})")


def test_a_step_never_takes_longer_than_the_budget():
    left = TimeLeft()
    assert left.bound(90.0) == 90.0
    left.begin(lambda: 60.0)
    assert [left.bound(seconds) for seconds in (90.0, 30.0, None)] == [60.0, 30.0, None]
    left.begin(lambda: -5.0)
    assert left.bound(90.0) == 0.0


def test_the_live_line_shows_what_is_left():
    file = io.StringIO()
    reporter = LiveReporter(Console(file=file, force_terminal=True, width=120, color_system=None))
    with reporter.live():
        reporter.budget(lambda: 1500)
        reporter.count("measuring", 3, 21)
    assert "measuring 3/21" in file.getvalue()
    assert "25 min of the budget left" in file.getvalue()
