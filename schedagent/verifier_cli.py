"""`schedagent verifier serve`: the verifier as a service of its own user, which alone can read the signing key."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from schedagent.core.listener import Admission
    from schedagent.core.settings import Settings

verifier_app = typer.Typer(help="The verifier as a service.", no_args_is_help=True, rich_markup_mode=None)

DEFAULT_GROUP = "schedagent"


@verifier_app.command()
def serve(
    socket: Annotated[
        Path | None, typer.Option(help="Where to listen; else verifier_socket of the settings, or the state folder.")
    ] = None,
    users: Annotated[list[str] | None, typer.Option("--allow-user", help="Name of a user who may ask.")] = None,
    group: Annotated[str, typer.Option("--allow-group", help="Group whose members may ask.")] = DEFAULT_GROUP,
) -> None:
    """Verify policies for others over a unix socket, until Ctrl-C; a socket from systemd is used if there is one.

    Root, the user of the service and members of the group may ask.
    """

    def command() -> int:
        from schedagent.cli import settings
        from schedagent.core.listener import activated, group_id, listen
        from schedagent.core.settings import activated_descriptors
        from schedagent.wiring import serve_verifier

        logging.getLogger("verifier").setLevel(logging.INFO)
        found = settings()
        admission = admitted(users or [], group)
        handed_over = activated(activated_descriptors())
        if handed_over is not None:
            with handed_over:
                serve_verifier(found, handed_over, admission)
            return 0
        path = socket_path(found, socket)
        with listen(path, group_id(group)) as listener:
            try:
                serve_verifier(found, listener, admission)
            finally:
                path.unlink(missing_ok=True)
        return 0

    from schedagent.cli import guarded

    guarded(command)


def socket_path(found: Settings, chosen: Path | None) -> Path:
    """Where to listen."""
    from schedagent.core.settings import writable

    if chosen or found.verifier_socket:
        return (chosen or found.verifier_socket or Path()).absolute()
    return writable(found.state_dir, "SCHEDAGENT_STATE") / "verifier.sock"


def admitted(users: list[str], group: str) -> Admission:
    """Turn names into ids; raise UsageError for a name that does not exist (but for the default group)."""
    import pwd

    from schedagent.core.errors import UsageError
    from schedagent.core.listener import Admission, group_id

    try:
        ids = frozenset(pwd.getpwnam(name).pw_uid for name in users)
    except KeyError as error:
        raise UsageError(f"--allow-user: there is no such user: {error}") from None
    gid = group_id(group)
    if gid is None and group != DEFAULT_GROUP:
        raise UsageError(f"--allow-group: there is no group {group!r}")
    return Admission(ids, frozenset() if gid is None else frozenset({gid}))
