"""`schedagent verify`, and `schedagent verifier serve`: the verifier as a service of its own user, which alone can
read the signing key."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schedagent import api
from schedagent.cli.common import EXIT_FAILED, EXIT_NO, Json, guarded, print_json, settings
from schedagent.cli.guide.completion import depths, policies, scopes, topologies
from schedagent.core.errors import UsageError
from schedagent.core.verification import VerificationOutcome

if TYPE_CHECKING:
    from schedagent.core.process.listener import Admission
    from schedagent.core.settings import Settings
    from schedagent.core.verification import VerificationReport

verifier_app = typer.Typer(help="Run the verifier as a service.", no_args_is_help=True, rich_markup_mode=None)

DEFAULT_GROUP = "schedagent-sign"


def print_schema(wanted: bool) -> None:
    """Print the schema of what verify --json prints, and exit."""
    if wanted:
        from schedagent.verification.text import json_schema

        print_json(json_schema())
        raise typer.Exit


def verify(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|NAME",
            help="FILE.bpf.c, FILE.bpf.o, a program with one inside, or NAME of the library.",
            autocompletion=policies,
        ),
    ],
    include: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Folder with headers of the source; may be repeated.")
    ] = None,
    parts: Annotated[
        list[Path] | None, typer.Option("--with", metavar="FILE", help="Further source to link; may be repeated.")
    ] = None,
    rodata: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML file: what its own loader would set in it.")
    ] = None,
    tunables: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Value of a tunable; may be repeated.")
    ] = None,
    accept: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Accept this of the policy by name; may be repeated."),
    ] = None,
    kernel: Annotated[
        str, typer.Option(metavar="RELEASE", help="Only this kernel of the cache, not all of them.")
    ] = "",
    scope: Annotated[
        str, typer.Option(metavar="[full|partial|partial:CGROUP]", help="What the token allows.", autocompletion=scopes)
    ] = "full",
    depth: Annotated[
        str, typer.Option(metavar="[quick|standard|thorough|deep]", help="How long to prove it.", autocompletion=depths)
    ] = "standard",
    topology: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[flat|NxLxCxT]",
            help="Shape of a further guest to prove it on; may be repeated.",
            autocompletion=topologies,
        ),
    ] = None,
    static: Annotated[
        bool, typer.Option("--static", help="Run only the gates that need no VM; no token is issued.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Prove it again, even if it passed before.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the report to this HTML file.")] = None,
    object_file: Annotated[
        Path | None, typer.Option("--object", metavar="FILE", help="Write the object to this file if all gates passed.")
    ] = None,
    _schema: Annotated[
        bool, typer.Option("--json-schema", is_eager=True, callback=print_schema, help="Print the schema of --json.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Take a policy through every gate of the verifier.

    Print each gate's result and the outcome: passed, with the token; failed; static only (--static let it through,
    which proves nothing about a running kernel); or incomplete, because a VM was lost twice or this
    host was too busy to measure.

    A policy that is unfair, or goes by an input that it does not declare, may be safe to try and still gets no token,
    unless that is accepted by name: --accept weights, --accept reads:comm.

    Of a source only its own file and the folders of --include are seen, the one it lies in included.
    What a scheduler's own loader sets stands in a file: [rodata] slice_ns = 5000000, [ops] flags and timeout_ms.

    After a flat guest of this machine's size, policies are proved on one of 8 CPUs with 2 NUMA nodes, 4 last-level
    caches and pairs of threads, 2x2x1x2 (not quick, and bundled ones only thorough). --topology names others, as
    nodes x caches of a node x cores of a cache x threads of a core; --topology flat does without.

    Example: schedagent verify longest_first --set slice_us=5000
    """

    def command() -> int:
        from schedagent.verification.files import VerifyOptions
        from schedagent.verification.text import GatePrinter, show_end, to_json

        chosen = VerifyOptions(
            tuple(include or ()), tuple(tunables or ()), kernel, scope, depth, static, fresh, html, object_file,
            tuple(accept or ()), tuple(parts or ()), rodata, tuple(topology or ()),
        )  # fmt: skip
        report = api.verify(file, options=chosen, settings=settings(), on_gate=GatePrinter(quiet=as_json))
        if as_json:
            print_json(to_json(report))
        else:
            show_end(report)
        return _exit_status(report)

    guarded(command)


def _exit_status(report: VerificationReport) -> int:
    """0: all gates that were asked for passed; 3: the policy failed one; 1: a gate has no verdict."""
    if report.outcome is VerificationOutcome.INCOMPLETE:
        return EXIT_FAILED
    return EXIT_NO if report.outcome is VerificationOutcome.FAILED else 0


@verifier_app.command()
def serve(
    socket: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Where to listen; else verifier_socket of the settings, or the state folder."
        ),
    ] = None,
    users: Annotated[
        list[str] | None, typer.Option("--allow-user", metavar="NAME", help="User who may ask; may be repeated.")
    ] = None,
    group: Annotated[
        str, typer.Option("--allow-group", metavar="NAME", help="Group whose members may ask.")
    ] = DEFAULT_GROUP,
) -> None:
    """Verify policies for others over a unix socket.

    It serves until Ctrl-C; if systemd passes a socket, it is used. Root, the user of the service and members of the
    group may ask.

    Example: schedagent verifier serve --allow-group schedagent-sign
    """

    def command() -> int:
        from schedagent.core.process.listener import activated, group_id, listen
        from schedagent.core.settings import activated_descriptors
        from schedagent.verification.service import serve_verifier

        logging.getLogger("verifier").setLevel(logging.INFO)
        admission = admitted(users or [], group)
        passed = activated(activated_descriptors())
        if passed is not None:
            with passed:
                if socket is not None:
                    raise UsageError("systemd passed a socket already", "leave --socket out, or change ListenStream=")
                serve_verifier(settings(), passed, admission)
            return 0
        path = socket_path(settings(), socket)
        with listen(path, group_id(group)) as listener:
            try:
                serve_verifier(settings(), listener, admission)
            finally:
                path.unlink(missing_ok=True)
        return 0

    guarded(command)


def socket_path(chosen: Settings, socket: Path | None) -> Path:
    """Return where to listen."""
    from schedagent.core.settings import writable

    path = socket or (chosen.verifier_socket and chosen.verifier_service)
    return path.absolute() if path else writable(chosen.state_dir, "SCHEDAGENT_STATE") / "verifier.sock"


def admitted(users: list[str], group: str) -> Admission:
    """Turn names into ids; raise UsageError for a name that does not exist (but for the default group)."""
    from schedagent.core.process.listener import Admission, group_id

    ids = frozenset(_user_id(name) for name in users)
    gid = group_id(group)
    if gid is None and group != DEFAULT_GROUP:
        raise UsageError(f"--allow-group: there is no group {group!r}")
    return Admission(ids, frozenset() if gid is None else frozenset({gid}))


def _user_id(name: str) -> int:
    import pwd

    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise UsageError(f"--allow-user: there is no user {name!r}") from None
