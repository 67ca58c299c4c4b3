"""`schedagent policies` and `compose`: the policy library, and policies made from a spec."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schedagent import api
from schedagent.cli.common import EXIT_NO, Json, guarded, print_json, settings
from schedagent.cli.guide.completion import policies
from schedagent.core.terminal.foreign import one_line
from schedagent.core.terminal.printable import printable

policies_app = typer.Typer(
    help="List, show and search the policies of the library.", no_args_is_help=True, rich_markup_mode=None
)


@policies_app.command("list")
def policies_list(as_json: Json = False) -> None:
    """List policies, and schedulers with a loader of their own.

    The policies are the bundled ones and those that runs made; the schedulers, such as scx_lavd, those that are
    installed here and those that are well known.

    Example: schedagent policies list
    """

    def command() -> int:
        from schedagent.report.listing import show_policies

        show_policies(list(api.policies(settings=settings()).values()), list(api.programs().values()), as_json)
        return 0

    guarded(command)


@policies_app.command("show")
def policies_show(
    name: Annotated[str, typer.Argument(metavar="POLICY", help="Name of the policy.", autocompletion=policies)],
    as_json: Json = False,
) -> None:
    """Show how a policy decides, its tunables, when it loses.

    Example: schedagent policies show longest_first
    """

    def command() -> int:
        from schedagent.report.listing import show_policy, show_program

        policies, programs = api.policies(settings=settings()), api.programs()
        if name in programs and name not in policies:
            show_program(programs[name], as_json)
        else:
            show_policy(api.policy(name, settings=settings()), as_json)
        return 0

    guarded(command)


@policies_app.command("search")
def policies_search(
    text: Annotated[list[str], typer.Argument(metavar="WORD", help="What to look for.")], as_json: Json = False
) -> None:
    """Search policies by purpose and by what they were good at.

    Example: schedagent policies search short builds
    """

    def command() -> int:
        from schedagent.report.listing import show_matches

        matches = api.search_policies(" ".join(text), settings=settings())
        show_matches(matches, as_json)
        return 0 if matches else EXIT_NO

    guarded(command)


def print_spec_schema(wanted: bool) -> None:
    """Print the schema of a spec, and exit."""
    if wanted:
        from schedagent.core.policies.spec_reader import spec_schema

        print_json(spec_schema())
        raise typer.Exit


def compose(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="A policy spec, SPEC.toml or SPEC.json; - for stdin.")],
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write NAME.bpf.c and NAME.toml into this folder.")
    ] = None,
    _schema: Annotated[
        bool, typer.Option("--schema", is_eager=True, callback=print_spec_schema, help="Print the schema of a spec.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Turn a policy spec into BPF C and its documentation.

    Print the source, or write both files.

    Example: schedagent compose build_first.toml --output policies
    """

    def command() -> int:
        from kernel_bpf.policies.spec_file import write_policy

        composed = api.compose(spec)
        files = [str(path) for path in write_policy(composed, output, spec)] if output else []
        if as_json:
            print_json({"name": composed.name, "source": composed.source, "toml": composed.toml, "files": files})
        else:
            typer.echo("\n".join(map(one_line, files)) if files else printable(composed.source.rstrip("\n")))
        return 0

    guarded(command)
