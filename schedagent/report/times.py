"""Times as people read them: how long something takes, how long ago it was, and when, on their own clock."""

from __future__ import annotations

from datetime import datetime

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400
_RECENT_S = _DAY_S
"""Until then "ago" says more than a date."""


def duration(seconds: float) -> str:
    """Return a time span in at most two units, such as 45 s, 3 min, 2 h 10 min or 6 d."""
    if seconds < _MINUTE_S:
        return f"{max(0, round(seconds))} s"
    if round(seconds / _MINUTE_S) < _MINUTE_S:
        return f"{round(seconds / _MINUTE_S)} min"
    if seconds < _DAY_S:
        hours, minutes = divmod(round(seconds / _MINUTE_S), 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{round(seconds / _DAY_S)} d"


def when(unix_s: float, now: float) -> str:
    """Return a moment: "3 min ago" within a day, else its local date and time to the minute."""
    age_s = now - unix_s
    if 0 <= age_s < _RECENT_S:
        return f"{duration(age_s)} ago"
    return moment(unix_s)


def moment(unix_s: float, *, seconds: bool = False) -> str:
    """Return a local date and time, to the minute or the second."""
    return datetime.fromtimestamp(unix_s).astimezone().strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M")


def unix_time(iso: str) -> float:
    """Return the Unix time of what the repository stores (ISO 8601, UTC)."""
    return datetime.fromisoformat(iso).timestamp()
