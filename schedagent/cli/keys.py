"""`schedagent keys`: the verifier's signing key, and the public keys that are trusted. Never shows a private half."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from schedagent.cli.common import Json, guarded, print_json, say, settings
from schedagent.core.errors import UsageError

keys_app = typer.Typer(
    help="Manage the signing key and the trusted public keys.", no_args_is_help=True, rich_markup_mode=None
)

KeyId = Annotated[str, typer.Argument(metavar="KEY", help="Id of the key (see: schedagent keys list).")]


@keys_app.command("list")
def list_keys(as_json: Json = False) -> None:
    """List the signing key and every trusted public key.

    Example: schedagent keys list
    """
    guarded(lambda: show_keys(as_json))


@keys_app.command()
def create(as_json: Json = False) -> None:
    """Create a signing key, if there is none.

    Verifying creates one by itself.

    Example: schedagent keys create
    """

    def command() -> int:
        from schedagent.verification.keys import create_key

        create_key(settings())
        return show_keys(as_json)

    guarded(command)


@keys_app.command()
def rotate(as_json: Json = False) -> None:
    """Replace the signing key.

    The old one stays trusted until its last token has expired.

    Example: schedagent keys rotate
    """

    def command() -> int:
        from schedagent.verification.keys import rotate_key

        rotate_key(settings())
        return show_keys(as_json)

    guarded(command)


@keys_app.command()
def export(
    key_id: Annotated[
        str, typer.Argument(metavar="KEY", help="Id of a trusted key; the signing key's if left out.")
    ] = "",
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write this file instead of stdout.")] = None,
) -> None:
    """Print a public key as PEM, for others to check tokens.

    Example: schedagent keys export --output me.pem
    """

    def command() -> int:
        from schedagent.verification.keys import public_key

        if output and not output.absolute().parent.is_dir():
            raise UsageError(f"--output {output}: there is no such folder")
        pem = public_key(settings(), key_id)
        if output is None:
            sys.stdout.write(pem.decode("ascii"))
        else:
            output.write_bytes(pem)
        return 0

    guarded(command)


@keys_app.command()
def trust(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Public key in PEM, as exported; - for stdin.")],
    as_json: Json = False,
) -> None:
    """Accept the tokens of another verifier.

    Example: schedagent keys trust colleague.pem
    """

    def command() -> int:
        from schedagent.verification.keys import trust_key

        trust_key(settings(), file)
        return show_keys(as_json)

    guarded(command)


@keys_app.command()
def distrust(key_id: KeyId, as_json: Json = False) -> None:
    """Accept the tokens of a key no longer.

    Example: schedagent keys distrust 6f1d0a9b
    """

    def command() -> int:
        from schedagent.verification.keys import distrust_key

        distrust_key(settings(), key_id)
        return show_keys(as_json)

    guarded(command)


def show_keys(as_json: bool) -> int:
    """Print the keys."""
    from schedagent.verification.keys import every_key

    rows = every_key(settings())
    if as_json:
        print_json(rows)
    elif not rows:
        typer.echo("there are no keys; verifying a policy creates one, or: schedagent keys create")
    else:
        _print_table(rows)
    return 0


def _print_table(rows: list[dict[str, Any]]) -> None:
    from schedagent.core.terminal.console import open_console
    from schedagent.report.tables import show_table

    cells = [(row["key"], row["state"], row["until"] or "") for row in rows]
    show_table(open_console(), ("key", "state", "trusted until"), cells)
    for row in rows:
        say(row["path"])
