"""The command line: its verbs, put together.

Heavy imports stay inside the verbs, so that `schedagent --help` answers at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated

import typer

from schedagent import __version__
from schedagent.cli.common import EXIT_FAILED, complain
from schedagent.cli.compare import compare
from schedagent.cli.deploy import deploy, history, promote, renew, rollback, status, watch
from schedagent.cli.experiment import experiment
from schedagent.cli.grouped import HELP_OPTIONS, MACHINE, OPTIMISE, POLICIES, SERVICE, GroupedCommands, Verb, Verbs
from schedagent.cli.guide.config import config_app
from schedagent.cli.guide.help import show_help
from schedagent.cli.guide.statuses import EXIT_STATUSES
from schedagent.cli.keys import keys_app
from schedagent.cli.machine.doctor import doctor
from schedagent.cli.machine.kernels import kernels_app
from schedagent.cli.machine.prune import prune
from schedagent.cli.machine.setup import setup
from schedagent.cli.mcp import mcp
from schedagent.cli.metrics import metrics_app
from schedagent.cli.observe import observe, profile_app
from schedagent.cli.optimize import approve, optimize, reject, resume
from schedagent.cli.policies import compose, policies_app
from schedagent.cli.runs import runs_app
from schedagent.cli.service import apply, daemon, recommendations
from schedagent.cli.verify import verifier_app, verify
from schedagent.core.errors import SchedagentError
from schedagent.core.process.streams import drop_output, repair_streams
from schedagent.core.terminal.foreign import MarkingFormatter

EPILOG = (
    f"Exit status: {', '.join(f'{status} {meaning}' for status, meaning in EXIT_STATUSES.items())}.\n\n"
    "Approvals, models, MCP, how to read a verdict, and more: schedagent help"
)

app = typer.Typer(
    cls=GroupedCommands,
    context_settings=HELP_OPTIONS,
    help="Find, prove and run better CPU scheduling policies for what runs here.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every command that runs.")] = False,
) -> None:
    """Handle the options that stand before the command."""
    handler = logging.StreamHandler()
    handler.setFormatter(MarkingFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, handlers=[handler])
    if version:
        typer.echo(f"schedagent {__version__}")
        raise typer.Exit


VERBS: dict[str, tuple[Callable[..., None], ...]] = {
    OPTIMISE: (optimize, compare, experiment, resume, approve, reject),
    POLICIES: (compose, verify),
    MACHINE: (setup, doctor, prune, observe, deploy, renew, promote, status, rollback, history, watch),
    SERVICE: (daemon, recommendations, apply, mcp),
}
GROUPS = {
    OPTIMISE: {"runs": runs_app},
    POLICIES: {"policies": policies_app, "keys": keys_app},
    MACHINE: {"profile": profile_app, "kernels": kernels_app, "config": config_app},
    SERVICE: {"verifier": verifier_app, "metrics": metrics_app},
}

for panel, verbs in VERBS.items():
    for verb in verbs:
        app.command(cls=Verb, rich_help_panel=panel)(verb)
app.command("help", cls=Verb, rich_help_panel=MACHINE)(show_help)
for panel, groups in GROUPS.items():
    for name, group in groups.items():
        app.add_typer(group, name=name, cls=Verbs, rich_help_panel=panel)
        for below in group.registered_commands:
            below.cls = Verb


def main() -> None:
    """Entry point of the console script."""
    repair_streams()
    try:
        app(prog_name="schedagent")
    except OSError as error:  # what a verb raises is caught in `guarded`: this is the help, on a full disk
        drop_output()
        raise SystemExit(complain(SchedagentError(str(error)), EXIT_FAILED)) from None
