"""The command line: its verbs, put together.

Heavy imports stay inside the verbs, so that `schedagent --help` answers at once.
"""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from schedagent import __version__
from schedagent.cli.deploy import register
from schedagent.cli.doctor import doctor
from schedagent.cli.keys import keys_app
from schedagent.cli.mcp import mcp
from schedagent.cli.metrics import metrics_app
from schedagent.cli.optimize import approve, optimize, reject, resume
from schedagent.cli.policies import compose, policies_app
from schedagent.cli.runs import runs_app
from schedagent.cli.service import register as register_service
from schedagent.cli.verify import verifier_app, verify

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
    help="Find, prove and run a better CPU scheduling policy for the work this machine really does.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(runs_app, name="runs")
app.add_typer(policies_app, name="policies")
app.add_typer(keys_app, name="keys")
app.add_typer(verifier_app, name="verifier")
app.add_typer(metrics_app, name="metrics")


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


for verb in (optimize, resume, approve, reject, verify, compose, doctor):
    app.command()(verb)
register(app)
register_service(app)
app.command("mcp")(mcp)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="schedagent")
