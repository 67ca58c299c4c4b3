"""Print what an installation might have changed, as JSON: sched_ext, sysctls, processes and their scheduling, files."""

import json
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

KERNEL = (Path("/sys/kernel/sched_ext"), Path("/sys/fs/bpf"))
RUNTIME = ("/proc", "/sys", "/dev", "/run", "/tmp", "/var/log/journal", "/var/lib/systemd")


def text(path):
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text().strip()
    return None


def below(folder):
    return {str(path): text(path) for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()}


def process(folder):
    """How one process is scheduled; None for kernel threads, which come and go, and for those that are gone."""
    with suppress(OSError):
        pid = int(folder.name)
        command = (folder / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
        if command:
            return {
                "command": command,
                "unit": (folder / "cgroup").read_text().strip().rpartition("/")[2],
                "policy": os.sched_getscheduler(pid),
                "nice": os.getpriority(os.PRIO_PROCESS, pid),
                "cpus": sorted(os.sched_getaffinity(pid)),
            }
    return None


def files():
    """Every file of the disk: kind and mode, size, and when its content changed."""
    seen = {}
    for base, folders, names in os.walk("/"):
        folders[:] = [name for name in folders if str(Path(base, name)) not in RUNTIME]
        for name in names:
            path = str(Path(base, name))
            with suppress(OSError):
                status = os.lstat(path)
                seen[path] = [stat.filemode(status.st_mode), status.st_size, status.st_mtime_ns]
    return seen


def main():
    processes = {folder.name: process(folder) for folder in Path("/proc").iterdir() if folder.name.isdecimal()}
    seen = {
        "kernel": {str(folder): below(folder) for folder in KERNEL},
        "sysctls": below(Path("/proc/sys")),
        "processes": {pid: state for pid, state in processes.items() if state},
        "files": files(),
    }
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
