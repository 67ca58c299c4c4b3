"""The command line: its verbs, put together.

Heavy imports stay inside the verbs, so that `schedagent --help` answers at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated

import typer

from schedagent import __version__
from schedagent.cli.deploy import deploy, history, promote, renew, rollback, status, watch
from schedagent.cli.doctor import doctor
from schedagent.cli.grouped import MACHINE, OPTIMISE, POLICIES, SERVICE, GroupedCommands
from schedagent.cli.keys import keys_app
from schedagent.cli.mcp import mcp
from schedagent.cli.metrics import metrics_app
from schedagent.cli.optimize import approve, optimize, reject, resume
from schedagent.cli.policies import compose, policies_app
from schedagent.cli.runs import runs_app
from schedagent.cli.service import apply, daemon, recommendations
from schedagent.cli.verify import verifier_app, verify
from schedagent.core.terminal.printable import PrintableFormatter

EXIT_STATUSES = {
    0: "something better was found (or the command did its work)",
    1: "it failed",
    2: "bad usage",
    3: "the answer is no: nothing better than the default scheduler, or the policy was rejected",
    4: "the run waits for an approval",
    130: "stopped by Ctrl-C",
}
"""What each means; the manual pages have them, too."""
EPILOG = f"Exit status: {', '.join(f'{status} {meaning}' for status, meaning in EXIT_STATUSES.items())}."

app = typer.Typer(
    cls=GroupedCommands,
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
    handler.setFormatter(PrintableFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, handlers=[handler])
    if version:
        typer.echo(f"schedagent {__version__}")
        raise typer.Exit


VERBS: dict[str, tuple[Callable[..., None], ...]] = {
    OPTIMISE: (optimize, resume, approve, reject),
    POLICIES: (compose, verify),
    MACHINE: (doctor, deploy, renew, promote, status, rollback, history, watch),
    SERVICE: (daemon, recommendations, apply, mcp),
}
GROUPS = {
    OPTIMISE: {"runs": runs_app},
    POLICIES: {"policies": policies_app, "keys": keys_app},
    SERVICE: {"verifier": verifier_app, "metrics": metrics_app},
}

for panel, verbs in VERBS.items():
    for verb in verbs:
        app.command(rich_help_panel=panel)(verb)
for panel, groups in GROUPS.items():
    for name, group in groups.items():
        app.add_typer(group, name=name, rich_help_panel=panel)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="schedagent")
