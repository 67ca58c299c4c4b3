"""`schedagent compare`: schedulers that the user names, measured beside the default one; nothing is planned."""

from __future__ import annotations

from pathlib import Path

from schedagent import api
from schedagent.cli import optimize as options_of
from schedagent.cli.common import Json, guarded, settings
from schedagent.cli.optimize import DEFAULT_SHELL, MINIMUM_PAIRS, Output, Quiet, carry_out, several
from schedagent.core.errors import UsageError


def compare(
    words: options_of.Words = None,
    workload: options_of.WorkloadOption = None,
    scheduler: options_of.Scheduler = None,
    include: options_of.Include = None,
    directory: options_of.Directory = Path(),
    goal: options_of.GoalWord = "",
    prepare: options_of.Prepare = "",
    metric: options_of.Metric = None,
    guard: options_of.Guard = None,
    objective: options_of.Objective = None,
    preset: options_of.Preset = "",
    shell: options_of.Shell = DEFAULT_SHELL,
    ignore_failure: options_of.IgnoreFailure = False,
    setup: options_of.SetUp = "",
    cleanup: options_of.CleanUp = "",
    warmup: options_of.WarmUp = 1,
    min_pairs: options_of.MinPairs = MINIMUM_PAIRS,
    parameter: options_of.Parameter = None,
    name: options_of.Name = "",
    budget_minutes: options_of.Budget = 30.0,
    timeout: options_of.Timeout = 900.0,
    on: options_of.On = "vm",
    cpus: options_of.Cpus = None,
    memory: options_of.Memory = "",
    export_csv: options_of.ExportCsv = None,
    export_markdown: options_of.ExportMarkdown = None,
    dry_run: options_of.DryRun = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare schedulers that you name on a workload.

    The default scheduler is always among them. They race; the best is then measured alone, as by optimize. A source
    goes through the verifier's gates first, and is tried if it is safe. A program that loads its policy itself, such as
    scx_lavd, is started as root in the micro-VM, and nowhere else.

    Example: schedagent compare "make -j" --scheduler scx_lavd
    """

    def command() -> int:
        from schedagent.core.readings.metric_options import Comparison
        from schedagent.core.trials.judge import TrialRules
        from schedagent.run.intake import Around, Description, command_of
        from schedagent.run.options import RunOptions, read_memory, read_name, read_place

        if not several(scheduler):
            raise UsageError("no scheduler is named", "name one or more: --scheduler scx_bpfland")
        described = Description(
            command_of(words or (), workload),
            directory,
            Comparison(several(metric), several(guard), several(objective), goal, preset),
            Around(prepare, setup, cleanup, shell, ignore_failure),
            timeout,
        )
        options = RunOptions(
            iterations=1,
            budget_s=budget_minutes * 60,
            rules=TrialRules(minimum_pairs=min_pairs),
            cpus=cpus,
            memory_mib=read_memory(memory) if memory else None,
            warmup=warmup,
            name=read_name(name),
            on=read_place(on),
            compare=True,
        )
        named = api.naming(several(scheduler), include or (), options=options, settings=settings())
        output = Output(export_csv, export_markdown, dry_run, quiet, as_json)
        return carry_out(described, named, parameter or (), output)

    guarded(command)
