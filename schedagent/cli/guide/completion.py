"""What Tab offers: ids and names from the user's own state folder, and choices.

A shell waits for these, and shows nothing of an error: each is quick, and offers nothing where it cannot know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from schedagent.core.errors import SchedagentError

Offer = Callable[[str], list[str]]
"""Takes what was typed, and returns what may be meant."""

_STATUSES = ("running", "waiting", "finished", "failed", "interrupted")
_DEPTHS = ("quick", "standard", "thorough", "deep")


def _choices(*words: str) -> Offer:
    return lambda incomplete: _that_begin(words, incomplete)


def _runs(*statuses: str) -> Offer:
    def offer(incomplete: str) -> list[str]:
        from repo_store.database.names import run_ids

        path = _repository()
        return _that_begin(run_ids(path, statuses), incomplete) if path else []

    return offer


def policies(incomplete: str) -> list[str]:
    """Names of policies, bundled and derived."""
    from kernel_bpf.policies.library import POLICIES
    from repo_store.database.names import derived_policies

    path = _repository()
    derived = derived_policies(path) if path else []
    return _that_begin([*sorted(file.stem for file in POLICIES.glob("*.toml")), *derived], incomplete)


def topics(incomplete: str) -> list[str]:
    """Topics of `schedagent help`."""
    from schedagent.cli.guide.topics import topic_names

    return _that_begin(topic_names(), incomplete)


def presets(incomplete: str) -> list[str]:
    """Names of presets, and none."""
    from schedagent.core.readings.presets import NO_PRESET, preset_names

    return _that_begin([*preset_names(), NO_PRESET], incomplete)


goals = _choices("makespan", "latency", "throughput")
approvals = _choices("none", "plan", "deploy", "plan,deploy")
depths = _choices(*_DEPTHS)
scopes = _choices("full", "partial")
topologies = _choices("flat", "2x2x1x2")
statuses = _choices(*_STATUSES)
runs = _runs(*_STATUSES)
waiting_runs = _runs("waiting")
unfinished_runs = _runs("running", "waiting", "failed", "interrupted")
finished_runs = _runs("finished")


def _that_begin(words: Iterable[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]


def _repository() -> Path | None:
    from schedagent.core.settings import load_settings

    try:
        return load_settings().repository_path
    except SchedagentError:
        return None
