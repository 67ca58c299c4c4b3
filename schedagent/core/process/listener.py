"""The end of a unix socket that a service holds (the verifier, schedagentd): where it listens, who may talk to it."""

from __future__ import annotations

import errno
import grp
import os
import socket
import stat
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from schedagent.core.errors import SetupError, UsageError

_BACKLOG = 64
_SO_PEERGROUPS = 59  # include/uapi/asm-generic/socket.h; Python has no name for it
_LONGEST_OPTION = 1024  # the most that getsockopt() of Python takes: 256 groups
_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid


@dataclass(frozen=True)
class Peer:
    """Who is at the other end, as the kernel noted it when they connected."""

    pid: int
    uid: int
    groups: frozenset[int]

    def __str__(self) -> str:
        return f"process {self.pid} of user id {self.uid}"


@dataclass(frozen=True)
class Admission:
    """Who may ask: root, the service's own user, and these.

    Args:
        users, groups: ids.
    """

    users: frozenset[int] = frozenset()
    groups: frozenset[int] = frozenset()

    def admits(self, peer: Peer) -> bool:
        """Whether this peer may ask."""
        return peer.uid in {0, os.geteuid(), *self.users} or bool(peer.groups & self.groups)


def peer_of(connection: socket.socket) -> Peer:
    """Return who connected (unix(7): SO_PEERCRED, SO_PEERGROUPS)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(credentials)
    others = b""
    with suppress(OSError):  # somebody in more than 256 groups counts with the first one only
        others = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _LONGEST_OPTION)
    return Peer(pid, uid, frozenset({gid, *struct.unpack(f"={len(others) // 4}I", others)}))


def group_id(name: str) -> int | None:
    """Return a group's id; None if there is no such group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def activated(
    descriptors: Sequence[int], families: Sequence[socket.AddressFamily] = (socket.AF_UNIX,)
) -> socket.socket | None:
    """Return the listening stream socket that systemd handed over, None if it handed over none.

    Args:
        families: that are accepted.

    Raises:
        UsageError: it handed over something else.
    """
    if not descriptors:
        return None
    if len(descriptors) != 1 or not stat.S_ISSOCK(os.fstat(descriptors[0]).st_mode):
        raise UsageError(f"systemd handed over {len(descriptors)} descriptors; one listening socket is wanted")
    listener = socket.socket(fileno=descriptors[0])
    listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if listener.family not in families or listener.type != socket.SOCK_STREAM or not listening:
        listener.close()
        wanted = " or ".join(family.name for family in families)
        raise UsageError(f"the socket that systemd handed over is not a listening stream socket of {wanted}")
    listener.set_inheritable(False)
    return listener


def listen(path: Path, group: int | None) -> socket.socket:
    """Listen on a new unix socket that we, and the members of `group`, can connect to.

    A socket that a killed service left behind is replaced.

    Raises:
        SetupError: another service listens there, or something else lies there, or it cannot be made.
    """
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        if group is not None and _given_to(path, group):
            path.chmod(0o660)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise SetupError(f"cannot listen on {path}: {error.strerror or error}", "choose another: --socket") from None
    return listener


def _given_to(path: Path, group: int) -> bool:
    """Whether the socket could be given to the group: only root and its members may do that."""
    try:
        os.chown(path, -1, group)
    except PermissionError:
        return False
    return True


def _clear(path: Path) -> None:
    """Remove the socket of a service that is gone."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SetupError(f"{path} is there and is not a socket", "choose another one: --socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(str(path))
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ECONNREFUSED:
            raise SetupError(f"{path} cannot be looked at: {error.strerror or error}") from None
        path.unlink(missing_ok=True)
        return
    raise SetupError(f"another service listens on {path} already", "stop it first, or choose another one: --socket")
