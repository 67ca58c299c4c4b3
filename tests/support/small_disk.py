"""A disk of its own that can really be full or read-only: a tmpfs in user and mount namespaces, for which no rights are
needed."""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from pathlib import Path

from kernel_bpf.load.linux import MS_RDONLY, mount

_NEWUSER, _NEWNS, _REMOUNT = 0x10000000, 0x00020000, 0x20  # include/uapi/linux/sched.h, mount.h
_libc = ctypes.CDLL(None, use_errno=True)


class SmallDisk:
    """Mounted on a folder, for those who `enter`; a process of its own holds it."""

    def __init__(self, folder, kib=512):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        user, group = os.geteuid(), os.getegid()
        reader, writer = os.pipe()
        self._holder = os.fork()
        if self._holder == 0:
            try:
                _checked(_libc.unshare(_NEWUSER | _NEWNS))
                Path("/proc/self/setgroups").write_text("deny")
                Path("/proc/self/uid_map").write_text(f"0 {user} 1")
                Path("/proc/self/gid_map").write_text(f"0 {group} 1")
                mount("tmpfs", folder, "tmpfs", options=f"size={kib}k,mode=700")
                os.write(writer, b"x")
                signal.pause()
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader, "rb") as ready:
            assert ready.read(1) == b"x", "no namespaces of users here: sysctl user.max_user_namespaces"

    @property
    def seen(self):
        """The folder as those inside see it."""
        return Path(f"/proc/{self._holder}/root{self._folder}")

    def enter(self):
        """Let this process, which has one thread, see the disk."""
        for name, kind in (("user", _NEWUSER), ("mnt", _NEWNS)):
            descriptor = os.open(f"/proc/{self._holder}/ns/{name}", os.O_RDONLY)
            _checked(_libc.setns(descriptor, kind))
            os.close(descriptor)

    def fill(self):
        """Leave no byte, nor what SQLite keeps of its last journal, in which small changes would still find room."""
        for journal in self.seen.glob("*-journal"):
            os.truncate(journal, 0)
        with suppress(OSError), (self.seen / "filling").open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def free(self):
        (self.seen / "filling").unlink()

    def make_read_only(self, again=True):
        """Or writable again; nobody may have a file open for writing."""
        child = os.fork()
        if child == 0:
            try:
                self.enter()
                mount("tmpfs", self._folder, "tmpfs", _REMOUNT | (MS_RDONLY if again else 0))
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0

    def close(self):
        os.kill(self._holder, signal.SIGKILL)
        os.waitpid(self._holder, 0)


def _checked(status):
    if status != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
