"""Runs a program where systemd puts schedagent-metrics: no network, only unix sockets, the listening one at 3.

python without_network.py DESCRIPTOR PROGRAM ARGUMENT...
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys

CLONE_NEWNET, CLONE_NEWUSER = 0x40000000, 0x10000000
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
SOCKET = 41  # arch/x86/entry/syscalls/syscall_64.tbl
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
NUMBER, FIRST_ARGUMENT = 0, 16  # offsets in struct seccomp_data


def only_unix_sockets() -> None:
    """RestrictAddressFamilies=AF_UNIX."""
    load, equal, give = 0x20, 0x15, 0x06
    program = [
        (load, 0, 0, NUMBER),
        (equal, 0, 3, SOCKET),
        (load, 0, 0, FIRST_ARGUMENT),
        (equal, 1, 0, socket.AF_UNIX),
        (give, 0, 0, ERRNO | errno.EAFNOSUPPORT),
        (give, 0, 0, ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    filters = struct.pack("@HP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filters, 0, 0) == 0, os.strerror(ctypes.get_errno())


def main(descriptor: int, *words: str) -> None:
    """Hand the socket over as systemd does, and become the program."""
    assert ctypes.CDLL(None).unshare(CLONE_NEWNET | (CLONE_NEWUSER if os.geteuid() else 0)) == 0
    only_unix_sockets()
    try:
        socket.socket(socket.AF_INET)
    except OSError as error:
        assert error.errno == errno.EAFNOSUPPORT  # noqa: PT017 - this is no test
    else:
        raise AssertionError("a socket of the network could be made")
    if descriptor != 3:
        os.dup2(descriptor, 3)
    os.set_inheritable(3, True)
    os.execve(words[0], words, {**os.environ, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
