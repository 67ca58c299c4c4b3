"""What schedagentd answers about deployments and events, as text. What is anybody's in it is one line, or marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from schedagent.core.terminal.foreign import one_line
from schedagent.report.times import duration, moment


def render_status(status: Mapping[str, Any]) -> str:
    """Return what `status` prints."""
    return "\n".join(_status_lines(status))


def _status_lines(status: Mapping[str, Any]) -> Iterator[str]:
    yield f"in charge: {one_line(status['in_charge'])}"
    yield from (render_deployment(status[name]) for name in ("active", "waiting") if status[name])
    yield from _foreign(status)
    for name, spread in status["measured"].items():
        yield f"  measured {name}: {spread['mean']:.4g} (mean of {spread['count']})"
    yield _kernel(status["kernel"])
    if status["unsaved"]:
        yield f"not yet in the record (is the disk full?): deployments {status['unsaved']}"


def render_local_status(status: Mapping[str, Any]) -> str:
    """Return what `status` prints where schedagentd does not run."""
    kernel = status["kernel"]
    lines = [f"in charge: {one_line(status['in_charge'])}", *_foreign(status), _kernel(kernel)]
    if kernel["enable_seq"]:
        lines.append(f"sched_ext schedulers enabled since boot: {kernel['enable_seq']}")
    return "\n".join([*lines, f"schedagentd: {status['schedagentd']}, so nothing is deployed through it"])


def _foreign(status: Mapping[str, Any]) -> Iterator[str]:
    if status["foreign"]:
        names = one_line(", ".join(status["foreign"]["schedulers"])) or "no process known to load one"
        yield f"another sched_ext scheduler is loaded ({names}); to deploy: {one_line(status['foreign']['hint'])}"


def _kernel(kernel: Mapping[str, Any]) -> str:
    if not kernel["sched_ext"]:
        return f"kernel {kernel['release']}: no sched_ext"
    scope = "all normal tasks" if kernel["switch_all"] else "tasks of policy SCHED_EXT"
    loaded = f", {one_line(kernel['ops'])} for {scope}" if kernel["ops"] else ""
    return f"kernel {kernel['release']}: sched_ext is {kernel['state']}{loaded}"


def render_deployment(deployment: Mapping[str, Any]) -> str:
    """Return one deployment in two or three lines."""
    tunables = " ".join(f"{name}={value}" for name, value in deployment["tunables"].items())
    head = f"deployment {deployment['deployment']}: {one_line(deployment['policy'])} {tunables}".rstrip()
    if deployment["phase"] == "ended":
        ended = f"{head}\n" + f"  ended: {deployment['end']}: {one_line(deployment['detail'])}".removesuffix(": ")
        own_words = one_line(deployment.get("own_words", ""))
        return f"{ended}\n  the policy, or the kernel of it, says: {own_words}" if own_words else ended
    return "\n".join([head, *_running(deployment)])


def _running(deployment: Mapping[str, Any]) -> Iterator[str]:
    tree = f"process {deployment['pid']} and its descendants" if deployment["pid"] else "the whole machine"
    phase = deployment["phase"]
    probation = phase == "running" and deployment["stage"] in ("canary", "full")
    mark = "proven" if deployment["proven"] else "on probation" if probation else phase
    where = one_line(deployment["cgroup"]) or tree
    yield f"  stage {deployment['stage']} ({where}) for {duration(deployment['since_s'])}, {mark}"
    if deployment["pulse_s"]:
        yield f"  pulses of {deployment['pulse_s']:g} s, {deployment['pairs']} pairs compared"
    yield f"  lease ends in {duration(deployment['lease_left_s'])}, token in {duration(deployment['token_left_s'])}"


def render_history(deployments: Sequence[Mapping[str, Any]], recorded: int = 0) -> str:
    """Return what `history` prints.

    Args:
        recorded: how many there are; 0 if that is not known.
    """
    blocks = []
    for deployment in deployments:
        blocks.append(f"{moment(deployment['created_at'])}  {render_deployment(deployment)}")
    if len(blocks) < recorded:
        blocks.append(f"{len(blocks)} of {recorded} shown; for all: schedagent history --limit {recorded}")
    return "\n".join(blocks) or "nothing was deployed yet"


def render_event(event: Mapping[str, Any]) -> str:
    """Return one event in a line."""
    about = f"deployment {event['deployment']}: " if event["deployment"] else ""
    head = f"{event['number']:>6}  {moment(event['at'], seconds=True)}  {about}{event['kind']}"
    text = f"{head}: {one_line(event['detail'])}"
    return text.removesuffix(": ")
