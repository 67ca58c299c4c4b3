"""The command line. Thin: it reads arguments, calls the wiring, prints, and turns errors into exit statuses.

Heavy imports stay inside the commands, so that `schedagent --help` answers at once.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from schedagent import __version__
from schedagent.approval_cli import approve, follow, reject
from schedagent.approval_text import commands, show_waiting
from schedagent.core.errors import SchedagentError, UsageError
from schedagent.daemon_cli import register
from schedagent.keys_cli import keys_app
from schedagent.mcp_cli import mcp
from schedagent.metrics_cli import metrics_app
from schedagent.service_cli import register as register_service
from schedagent.verifier_cli import verifier_app

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NO = 3
EXIT_WAITING = 4
EXIT_INTERRUPTED = 130

LONGEST_S = 7 * 24 * 3600.0
"""Longest budget and longest run."""

EPILOG = (
    "Exit status: 0 something better was found (or the command did its work), 1 it failed, 2 bad usage, "
    "3 the answer is no: nothing better than the default scheduler, or the policy was rejected, "
    "4 the run waits for an approval, 130 stopped by Ctrl-C."
)

app = typer.Typer(
    help="Find, prove and run a better CPU scheduling policy for the work this machine really does.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
runs_app = typer.Typer(help="Look at earlier runs.", no_args_is_help=True, rich_markup_mode=None)
policies_app = typer.Typer(help="Look at the policy library.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(runs_app, name="runs")
app.add_typer(policies_app, name="policies")
app.add_typer(keys_app, name="keys")
app.add_typer(verifier_app, name="verifier")
app.add_typer(metrics_app, name="metrics")

Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON on stdout.")]


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every command that is run.")] = False,
) -> None:
    """Options that stand before the command."""
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    if version:
        typer.echo(f"schedagent {__version__}")
        raise typer.Exit


def print_schema(wanted: bool) -> None:
    """Print what --json of verify looks like, and exit."""
    if wanted:
        from schedagent.verification_report import json_schema

        print_json(json_schema())
        raise typer.Exit


def print_spec_schema(wanted: bool) -> None:
    """Print what a spec looks like, and exit."""
    if wanted:
        from schedagent.core.spec_reader import spec_schema

        print_json(spec_schema())
        raise typer.Exit


@app.command()
def optimize(
    workload: Annotated[str, typer.Option(help='The command to optimise, for example "make -j".')],
    directory: Annotated[Path, typer.Option("--dir", help="Where to run it.")] = Path(),
    goal: Annotated[str, typer.Option(help="makespan (wall time), latency or throughput.")] = "makespan",
    prepare: Annotated[str, typer.Option(help="Command run before each trial, untimed.")] = "",
    metric: Annotated[str, typer.Option(help="Regular expression whose group is a number in the output.")] = "",
    iterations: Annotated[int, typer.Option(min=1, max=100, help="Most plans to try.")] = 2,
    candidates: Annotated[int, typer.Option(min=1, max=8, help="Most candidates per plan.")] = 3,
    budget_minutes: Annotated[
        float, typer.Option(min=0.1, max=LONGEST_S / 60, help="Begin no new trial after this long.")
    ] = 30.0,
    timeout: Annotated[
        float, typer.Option(min=1.0, max=LONGEST_S, help="Longest time one run may take, in seconds.")
    ] = 900.0,
    approve: Annotated[
        str, typer.Option(help="Wait for your approval of each plan, of the deploy token, plan,deploy or none.")
    ] = "none",
    as_json: Json = False,
) -> None:
    """Observe a workload, try policies on it in the micro-VM, and say whether one is better than the default."""

    def command() -> int:
        from schedagent.core.judge import TrialRules
        from schedagent.options import RunOptions, read_approve
        from schedagent.progress import reporter
        from schedagent.wiring import start_run

        stages = read_approve(approve)
        job = read_workload(workload, directory, goal, prepare, metric, timeout)
        chosen = RunOptions(iterations, budget_minutes * 60, candidates, TrialRules(), stages)
        return follow(lambda: start_run(settings(), job, chosen, reporter()), as_json)

    guarded(command)


@app.command()
def resume(
    run: Annotated[str, typer.Argument(help="Id of a run that was cut short (see: schedagent runs list).")],
    as_json: Json = False,
) -> None:
    """Go on with a run that was stopped or killed, behind its last finished step."""

    def command() -> int:
        from schedagent.progress import reporter
        from schedagent.wiring import resume_run

        return follow(lambda: resume_run(settings(), run, reporter()), as_json)

    guarded(command)


app.command()(approve)
app.command()(reject)


@runs_app.command("list")
def runs_list(as_json: Json = False) -> None:
    """List runs, newest first."""

    def command() -> int:
        from schedagent.listing import show_runs
        from schedagent.wiring import open_repository

        with open_repository(settings()) as repository:
            show_runs(repository.list_runs(), as_json)
        return 0

    guarded(command)


@runs_app.command("show")
def runs_show(
    run: Annotated[str, typer.Argument(help="Id of the run.")],
    transcript: Annotated[
        bool, typer.Option("--transcript", help="Show what was asked of models instead, and what they answered.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a run found so far."""

    def command() -> int:
        from agents.transcript import transcript_path
        from schedagent.model_report import model_use
        from schedagent.report import build_report
        from schedagent.wiring import open_repository

        found = settings()
        if transcript:
            return show_transcript(found, run, as_json)
        with open_repository(found) as repository:
            record = repository.run(run)
            used = model_use(transcript_path(found.state_dir, run))
            report = record.report or build_report(repository, run, model=used, complete=False)
        show_report(report, as_json)
        if not as_json and report.get("waiting"):
            show_waiting(report["waiting"])
            typer.echo(commands(run, report["waiting"]["digest"]))
        elif not as_json and record.report is None:
            typer.echo(f"This run is not finished (status: {record.status.value}). Go on: schedagent resume {run}")
        return 0

    guarded(command)


@runs_app.command("replay")
def runs_replay(run: Annotated[str, typer.Argument(help="Id of the run.")], as_json: Json = False) -> None:
    """Run the agents of a recorded run again, on what models answered and machines measured then; for debugging."""

    def command() -> int:
        from schedagent.listing import show_replay
        from schedagent.progress import reporter
        from schedagent.wiring import replay_run

        found = replay_run(settings(), run, reporter())
        show_replay(found, as_json)
        return 0 if found["same"] else EXIT_NO

    guarded(command)


@policies_app.command("list")
def policies_list(as_json: Json = False) -> None:
    """List the policies of the library: the bundled ones, and those that runs have made."""

    def command() -> int:
        from schedagent.listing import show_policies
        from schedagent.wiring import whole_library

        show_policies(list(whole_library(settings()).values()), as_json)
        return 0

    guarded(command)


@policies_app.command("show")
def policies_show(name: Annotated[str, typer.Argument(help="Name of the policy.")], as_json: Json = False) -> None:
    """Show one policy: what it is for, how it decides, its tunables, when it loses."""

    def command() -> int:
        from kernel_bpf.library import find_policy
        from schedagent.listing import show_policy
        from schedagent.wiring import whole_library

        show_policy(find_policy(name, whole_library(settings())), as_json)
        return 0

    guarded(command)


@policies_app.command("search")
def policies_search(
    text: Annotated[list[str], typer.Argument(help="What to look for.")], as_json: Json = False
) -> None:
    """Search policies by what they are for and what they were good at."""

    def command() -> int:
        from schedagent.listing import show_matches
        from schedagent.wiring import open_repository

        with open_repository(settings()) as repository:
            matches = repository.search_policies(" ".join(text))
        show_matches(matches, as_json)
        return 0 if matches else EXIT_NO

    guarded(command)


@app.command()
def verify(
    file: Annotated[
        Path,
        typer.Argument(help="Policy: a source FILE.bpf.c, a compiled FILE.bpf.o, or the NAME of one in the library."),
    ],
    include: Annotated[list[Path] | None, typer.Option(help="Folder with headers of the source.")] = None,
    tunables: Annotated[list[str] | None, typer.Option("--set", help="tunable=value; may be repeated.")] = None,
    kernel: Annotated[str, typer.Option(help="Only this kernel of the cache, instead of all of them.")] = "",
    scope: Annotated[str, typer.Option(help="What the token allows: full, partial or partial:/a/cgroup.")] = "full",
    depth: Annotated[str, typer.Option(help="How long to prove: quick, standard or thorough.")] = "standard",
    static: Annotated[bool, typer.Option("--static", help="Only the gates that need no VM; no token.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Prove it again, even if it passed before.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write the report to this HTML file.")] = None,
    object_file: Annotated[
        Path | None, typer.Option("--object", help="Write the compiled object to this file if it passed, to deploy it.")
    ] = None,
    _schema: Annotated[
        bool, typer.Option("--json-schema", is_eager=True, callback=print_schema, help="Print the schema of --json.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Take one policy through every gate of the verifier; print each gate's result and, if all passed, the token."""

    def command() -> int:
        from schedagent.verification import VerifyOptions, verify_file
        from schedagent.verification_report import GatePrinter, show_end, to_json

        chosen = VerifyOptions(
            tuple(include or ()), tuple(tunables or ()), kernel, scope, depth, static, fresh, html, object_file
        )
        report = verify_file(settings(), file, chosen, GatePrinter(quiet=as_json))
        if as_json:
            print_json(to_json(report))
        else:
            show_end(report, static_only=static)
        return 0 if report.passed or (static and not report.failure) else EXIT_NO if report.failure else EXIT_FAILED

    guarded(command)


@app.command()
def compose(
    spec: Annotated[Path, typer.Argument(help="A policy spec, SPEC.toml or SPEC.json.")],
    output: Annotated[Path | None, typer.Option(help="Write NAME.bpf.c and NAME.toml into this folder.")] = None,
    _schema: Annotated[
        bool, typer.Option("--schema", is_eager=True, callback=print_spec_schema, help="Print the schema of a spec.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Turn a policy spec into BPF C and its documentation; print the source, or write both files."""

    def command() -> int:
        from schedagent.composing import compose_file, write_policy

        composed = compose_file(spec)
        files = [str(path) for path in write_policy(composed, output)] if output else []
        if as_json:
            print_json({"name": composed.name, "source": composed.source, "toml": composed.toml, "files": files})
        else:
            typer.echo("\n".join(files) if files else composed.source, nl=bool(files))
        return 0

    guarded(command)


@app.command()
def doctor(
    bench: Annotated[
        bool, typer.Option("--bench", help="Also restore a VM 20 times and print how long it takes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what is there, what is missing, what follows from it, and the command that mends it."""

    def command() -> int:
        from rich.console import Console

        from schedagent import doctor as examination

        found = settings()
        findings = examination.examine(found)
        if bench:
            from schedagent.wiring import open_lab

            findings = [*findings, examination.restore_bench(open_lab(found))]
        if as_json:
            print_json(examination.to_json(findings))
        else:
            Console(emoji=False).print(examination.render(findings))
        return EXIT_FAILED if any(finding.status == "missing" for finding in findings) else 0

    guarded(command)


register(app)
register_service(app)
app.command("mcp")(mcp)


def settings() -> Any:
    """Read the settings; lazily, as everything the commands need."""
    from schedagent.core.settings import load_settings

    return load_settings()


def read_workload(command: str, directory: Path, goal: str, prepare: str, metric: str, timeout_s: float) -> Any:
    """Check what the user typed and return the workload; raise UsageError with what to do."""
    from schedagent.intake import read_workload as read

    return read(command, directory, goal, prepare, metric, timeout_s)


def show_transcript(found: Any, run: str, as_json: bool) -> int:
    """Print a run's exchanges with models."""
    from schedagent.listing import show_exchanges
    from schedagent.wiring import read_run_transcript

    show_exchanges(*read_run_transcript(found, run), as_json)
    return 0


def show_report(report: Any, as_json: bool) -> int:
    """Print a run's report and return the exit status that says whether something better was found."""
    if as_json:
        print_json(report)
    else:
        from rich.console import Console

        from schedagent.report import render

        render(report, Console(emoji=False))
    return 0 if report["best"] else EXIT_NO


def print_json(value: Any) -> None:
    """Print JSON on stdout."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def guarded(command: Callable[[], int]) -> NoReturn:
    """Run a command, turn what goes wrong into a message on stderr, and exit with the status of EPILOG."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        status = command()
        sys.stdout.flush()
    except UsageError as error:
        status = complain(error, EXIT_USAGE)
    except SchedagentError as error:
        status = complain(error, EXIT_FAILED)
    except KeyboardInterrupt as stop:
        typer.echo(f"\nstopped. {stop}", err=True)
        status = EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = EXIT_FAILED
    except OSError as error:
        logging.debug("this is where it failed", exc_info=True)
        status = complain(SchedagentError(str(error), "see more with: schedagent --verbose ..."), EXIT_FAILED)
    raise SystemExit(status)


def complain(error: SchedagentError, status: int) -> int:
    """Print an error with its hint."""
    typer.echo(f"error: {error.message}", err=True)
    if error.hint:
        typer.echo(f"hint: {error.hint}", err=True)
    return status


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="schedagent")
