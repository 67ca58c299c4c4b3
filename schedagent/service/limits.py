"""What the service may begin by itself, and when. Pure; times of day are local ones, as people mean them."""

from __future__ import annotations

from datetime import datetime, timedelta

from schedagent.core.recommendation import Recommendation, RecommendationKind, Standing
from schedagent.core.service_settings import Mode, ServiceSettings, every_s, minute_of_day, quiet_minutes

DAY_S = 86400.0


def is_quiet(settings: ServiceSettings, now: datetime) -> bool:
    """Whether it is within the quiet hours, which may go over midnight.

    Args:
        now: local time.
    """
    if not settings.quiet:
        return False
    begin, end = quiet_minutes(settings.quiet)
    minute = 60 * now.hour + now.minute
    return begin <= minute < end if begin < end else minute >= begin or minute < end


def latest_slot(settings: ServiceSettings, now: datetime) -> float | None:
    """Return when (Unix time) the schedule last asked for an optimisation; None without a schedule.

    Args:
        now: local time, with its time zone.
    """
    if settings.every:
        period = every_s(settings.every)
        return now.timestamp() // period * period
    if not settings.at:
        return None
    minute = minute_of_day(settings.at)
    today = now.replace(hour=minute // 60, minute=minute % 60, second=0, microsecond=0)
    return (today if today <= now else today - timedelta(days=1)).timestamp()


def slot_s(settings: ServiceSettings) -> float:
    """Return how long a slot of the schedule is."""
    return every_s(settings.every) if settings.every else DAY_S


def may_begin(
    settings: ServiceSettings, recommendation: Recommendation, now: datetime, *, begun: int, kernel_release: str
) -> bool:
    """Whether the service may carry out a recommendation that nobody requested: only of configured workloads.

    Args:
        now: local time, with its time zone.
        begun: how many of its kind the service has begun by itself in the last 24 hours.
        kernel_release: of this machine; a policy that was verified for another kernel is refused anyway.
    """
    if (
        settings.mode is Mode.MONITOR
        or recommendation.at(now.timestamp()) is not Standing.OPEN
        or is_quiet(settings, now)
    ):
        return False
    if recommendation.subject not in {named.workload.key for named in settings.workloads}:
        return False
    if recommendation.kind is RecommendationKind.OPTIMISE:
        return begun < settings.runs_per_day
    fits = bool(recommendation.cgroup) and recommendation.evidence.get("kernel") == kernel_release
    return settings.mode is Mode.ACT and fits and begun < settings.deployments_per_day
