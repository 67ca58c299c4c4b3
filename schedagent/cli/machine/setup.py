"""`schedagent setup`: get the system packages and the kernel that are missing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated

import typer

from schedagent.cli.common import EXIT_FAILED, Json, complain, guarded, print_json, settings

if TYPE_CHECKING:
    from schedagent.setup.plan import Plan


def setup(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it; else only show what would be done.")] = False,
    as_json: Json = False,
) -> None:
    """Get the system packages and the VM kernel that are missing.

    Shows each command first, and runs it only with --yes. Packages need root: an ordinary user is shown the one command
    to run as root, and set-up continues with what needs none. It is tested on Debian 12.
    Package names for Ubuntu, Fedora, Arch and openSUSE are known, but set-up has never run there. Kernels are
    downloaded on Debian only; elsewhere see schedagent kernels use.

    Example: schedagent setup --yes
    """

    def command() -> int:
        from schedagent.setup.plan import carry_out, make_plan

        for slow in ("schedagent.setup", "verifier.microvm"):
            logging.getLogger(slow).setLevel(logging.INFO)
        plan = make_plan(settings())
        if as_json and not yes:
            print_json(plan.to_json())
            return 0 if plan.is_done else EXIT_FAILED
        if not as_json:
            _show(plan, yes)
        failures = carry_out(settings(), plan) if yes else []
        for error in failures:
            complain(error, EXIT_FAILED)
        after = make_plan(settings()) if yes and not plan.is_done else plan
        if as_json:
            print_json(after.to_json())
        elif after.is_done:
            typer.echo(f"nothing is missing; the VM runs kernel {after.kernel}")
        return 0 if after.is_done else EXIT_FAILED

    guarded(command)


def _show(plan: Plan, yes: bool) -> None:
    """Print what is missing, and the command that gets it."""
    from schedagent.core.installation import this_installation
    from schedagent.setup.plan import is_root, root_command

    for error in plan.obstacles:
        complain(error, EXIT_FAILED)
    if plan.missing:
        typer.echo(f"missing packages: {' '.join(plan.packages)}")
    if plan.commands:
        typer.echo(f"{'  ' if is_root() else '  needs root: '}{root_command(plan)}")
    if not plan.kernel:
        typer.echo(f"missing: a kernel for the VM\n  {this_installation().command('kernels', 'fetch')}")
    if not (yes or plan.is_done):
        typer.echo(f"to get what is missing: {this_installation().command('setup', '--yes')}")
