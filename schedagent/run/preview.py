"""What `optimize` would do: shown beforehand from the settings and from earlier runs, without a machine or a write."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from schedagent.core.readings.presets import in_words
from schedagent.core.readings.readings import WALL_TIME
from schedagent.core.settings import AGENTS, Settings
from schedagent.core.trials.trial import Hardware
from schedagent.core.trials.workload import WorkloadCommand
from schedagent.report.report import IN_PROCESS
from schedagent.report.times import duration
from schedagent.run import opening
from schedagent.run.options import RunOptions
from schedagent.run.stored import open_stored


@dataclass(frozen=True)
class Preview:
    """What a run would do.

    Args:
        workload, hardware, options: what would be optimised, where, and within which bounds.
        verifier: who would verify candidates.
        models: names of the models that would be asked; none: rules plan.
        earlier_run: a finished run of the same workload on the same hardware; empty if there is none.
        earlier_s: seconds that one run of the workload took then, without --prepare; None if that is not known.
    """

    workload: WorkloadCommand
    hardware: Hardware
    options: RunOptions
    verifier: str
    models: tuple[str, ...]
    earlier_run: str = ""
    earlier_s: float | None = None

    def measuring_s(self, pairs: int) -> float | None:
        """Return how long measuring takes if each candidate of each plan needs so many pairs.

        One warm-up block comes on top of the pairs, and in each block the default scheduler runs once, too.
        """
        if self.earlier_s is None:
            return None
        arms = len(self.options.schedulers) if self.options.compare else self.options.candidates
        return self.options.iterations * (arms + 1) * (pairs + 1) * self.earlier_s


def preview_run(settings: Settings, workload: WorkloadCommand, options: RunOptions) -> Preview:
    """Return what `start_run` would do with the same arguments.

    Raises:
        UsageError: this host has less than the options ask for.
        SetupError: there is no kernel for the lab.
    """
    options = opening.placed(settings, options)
    hardware = opening.open_place(settings, options).hardware
    service = settings.verifier_service
    verifier = f"the service at {service}" if service else IN_PROCESS
    models = tuple(sorted(set(map(settings.model_for, AGENTS)) - {""})) if settings.has_model else ()
    return Preview(workload, hardware, options, verifier, models, *_earlier(settings, workload, hardware))


def _earlier(settings: Settings, workload: WorkloadCommand, hardware: Hardware) -> tuple[str, float | None]:
    if not settings.repository_path.is_file():
        return "", None
    with open_stored(settings) as repository:
        run_id = max((lesson.run_id for lesson in repository.lessons(workload.key, hardware.key)), default="")
        profile = repository.profile(run_id) if run_id else None
    return run_id, profile.wall_s if profile else None


def render_preview(preview: Preview) -> str:
    """Return what --dry-run prints."""
    workload, hardware, options = preview.workload, preview.hardware, preview.options
    rules = options.rules
    rows = {
        "prepare": workload.prepare or "nothing",
        "compare": _compared(preview),
        "lab": f"{hardware.lab}, {_cpus(hardware.cpus)}, {hardware.memory_mib} MiB, kernel {hardware.kernel_release}",
        "tried": _tried(options),
        "trials": f"{rules.minimum_pairs} to {rules.maximum_pairs} pairs for each candidate that passes every gate",
        "verifier": preview.verifier,
        "models": _models(preview),
        "approvals": ", ".join(stage.value for stage in options.approve) or "none",
        "budget": f"no trial begins after {duration(options.budget_s)}",
        "duration": _duration(preview),
    }
    lines = [f"  {name + ':':<10} {text}" for name, text in rows.items()]
    verb = "compare schedulers on" if options.compare else "optimise"
    head = f"This would {verb} {workload.command!r} in {workload.directory}:"
    return "\n".join([head, *lines, "Nothing was run or stored. Start it: the same command without --dry-run."])


def _tried(options: RunOptions) -> str:
    named = ", ".join(each.program.command if each.program else each.policy for each in options.schedulers)
    if options.compare:
        return f"{named}; nothing is planned"
    planned = f"up to {options.iterations} plans, each of up to {options.candidates} candidates"
    return f"{named}, then {planned}" if named else planned


def _compared(preview: Preview) -> str:
    workload = preview.workload
    words = in_words(workload) if workload.objective or workload.guards else workload.metric or WALL_TIME
    open_yet = "; the output may choose a preset" if preview.options.recognise else ""
    return f"{words} ({workload.goal.value}){open_yet}"


def _models(preview: Preview) -> str:
    if preview.options.compare:
        return "none"
    return ", ".join(preview.models) or "none; rules plan"


def _cpus(count: int) -> str:
    return f"{count} CPU{'s' * (count != 1)}"


def _duration(preview: Preview) -> str:
    shortest, longest = map(
        preview.measuring_s, (preview.options.rules.minimum_pairs, preview.options.rules.maximum_pairs)
    )
    if shortest is None or longest is None or preview.earlier_s is None:
        return "not known: this workload was not measured here yet"
    most = duration(min(longest, preview.options.budget_s))
    least = duration(min(shortest, preview.options.budget_s))
    return f"about {least} to {most} and the gates; one run took {preview.earlier_s:.1f} s in {preview.earlier_run}"


def to_json(preview: Preview) -> dict[str, Any]:
    """Return a preview as JSON values."""
    return asdict(preview)
