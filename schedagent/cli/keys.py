"""`schedagent keys`: the verifier's signing key, and the public keys that are trusted. Never shows a private half."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from schedagent.cli.common import guarded, print_json, settings

keys_app = typer.Typer(
    help="The verifier's signing key, and whose tokens are trusted here.", no_args_is_help=True, rich_markup_mode=None
)

Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON on stdout.")]
KeyId = Annotated[str, typer.Argument(help="Id of the key (see: schedagent keys list).")]


@keys_app.command("list")
def list_keys(as_json: Json = False) -> None:
    """List the signing key and every trusted public key."""
    guarded(lambda: show(everything(), as_json))


@keys_app.command()
def create(as_json: Json = False) -> None:
    """Make a signing key, if there is none. Verifying makes one by itself."""

    def command() -> int:
        from schedagent.core.errors import UsageError
        from schedagent.run.opening import open_signer

        path = settings().keys_dir / "signing.key"
        if path.exists() or path.is_symlink():
            raise UsageError(f"there is a signing key {path} already", "replace it: schedagent keys rotate")
        open_signer(settings())
        return show(everything(), as_json)

    guarded(command)


@keys_app.command()
def rotate(as_json: Json = False) -> None:
    """Replace the signing key; the old one stays trusted until its last token has expired."""

    def command() -> int:
        from schedagent.run.opening import open_signer

        open_signer(settings(), create=False).rotate()
        return show(everything(), as_json)

    guarded(command)


@keys_app.command()
def export(
    key_id: Annotated[str, typer.Argument(help="Id of a trusted key; the signing key's if left out.")] = "",
    output: Annotated[Path | None, typer.Option(help="Write a file instead of stdout.")] = None,
) -> None:
    """Print a public key as PEM, for those who have to check tokens."""

    def command() -> int:
        pem = public_key(key_id)
        if output is None:
            sys.stdout.write(pem.decode("ascii"))
        else:
            output.write_bytes(pem)
        return 0

    guarded(command)


@keys_app.command()
def trust(
    file: Annotated[Path, typer.Argument(help="Public key in PEM, as exported; - for stdin.")], as_json: Json = False
) -> None:
    """Accept the tokens of another verifier."""

    def command() -> int:
        from schedagent.core import trusted
        from schedagent.core.settings import writable

        pem = sys.stdin.buffer.read(1 << 16) if str(file) == "-" else read_key_file(file)
        writable(settings().state_dir, "SCHEDAGENT_STATE")
        settings().keys_dir.mkdir(mode=0o700, exist_ok=True)
        trusted.trust(settings().keys_dir / "trusted", pem)
        return show(everything(), as_json)

    guarded(command)


@keys_app.command()
def distrust(key_id: KeyId, as_json: Json = False) -> None:
    """Accept no tokens of a key any more, from now on."""

    def command() -> int:
        from schedagent.core import trusted
        from schedagent.core.errors import UsageError

        if key_id == active_id():
            raise UsageError(
                f"key {key_id} signs here",
                f"replace it first: schedagent keys rotate; schedagent keys distrust {key_id}",
            )
        trusted.distrust(settings().keys_dir / "trusted", key_id)
        return show(everything(), as_json)

    guarded(command)


def active_id() -> str:
    """Id of the signing key; empty if there is none here."""
    from schedagent.run.opening import open_signer

    found = settings()
    return open_signer(found, create=False).key_id if (found.keys_dir / "signing.key").exists() else ""


def public_key(key_id: str) -> bytes:
    """The public key of this id, or of the signing key; raise UsageError if it is not there."""
    from schedagent.core import trusted
    from schedagent.core.errors import UsageError
    from schedagent.run.opening import open_signer

    if not key_id:
        return open_signer(settings(), create=False).public_key
    known = {key.key_id: key.pem for key in trusted.trusted_keys(settings().keys_dir / "trusted")}
    if key_id not in known:
        raise UsageError(f"there is no key {key_id!r}", f"there are: {', '.join(known) or 'none'}")
    return known[key_id]


def everything() -> list[dict[str, Any]]:
    """Every key: id, state (signs, trusted, replaced, ended), end of trust and file of the public half."""
    from schedagent.core import trusted

    active, now = active_id(), time.time()
    rows = []
    for key in trusted.trusted_keys(settings().keys_dir / "trusted"):
        state = "trusted" if key.until is None else "replaced" if now < key.until else "ended"
        rows.append(
            {
                "key": key.key_id,
                "state": "signs" if key.key_id == active else state,
                "until": None if key.until is None else trusted.moment_text(key.until),
                "path": str(key.path),
            }
        )
    return rows


def show(rows: list[dict[str, Any]], as_json: bool) -> int:
    """Print the keys."""
    from rich.console import Console
    from rich.table import Table

    if as_json:
        print_json(rows)
    elif not rows:
        typer.echo("there are no keys; verifying a policy makes one, or: schedagent keys create")
    else:
        table = Table("key", "state", "trusted until", "public key")
        for row in rows:
            table.add_row(row["key"], row["state"], row["until"] or "", row["path"])
        Console(emoji=False).print(table, markup=False)
    return 0


def read_key_file(file: Path) -> bytes:
    """Return what a file holds; raise UsageError if it cannot be read."""
    from schedagent.core.errors import UsageError

    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}", "give the file that keys export wrote") from None
