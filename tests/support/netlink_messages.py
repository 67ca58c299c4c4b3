"""Messages of the kernel's netlink families, laid out byte by byte."""

from __future__ import annotations

import struct

DELAYS_WITH_PEAKS = ("cpu", "blkio", "swapin", "freepages", "thrashing", "compact")


def taskstats(version: int, **values: int | bytes) -> bytes:
    """Lay out struct taskstats field by field, as include/uapi/linux/taskstats.h of that version declares it."""
    data = bytearray()

    def put(name: str, size: int, align: int = 1) -> None:
        data.extend(b"\0" * (-len(data) % align))
        value = values.get(name, 0)
        data.extend(value.ljust(size, b"\0") if isinstance(value, bytes) else value.to_bytes(size, "little"))

    def delay(name: str) -> None:
        put(f"{name}_count", 8, 8)
        put(f"{name}_delay_total", 8)
        if version == 15 and name in DELAYS_WITH_PEAKS:
            put(f"{name}_delay_max", 8)
            put(f"{name}_delay_min", 8)

    values.setdefault("version", version)
    put("version", 2)
    put("ac_exitcode", 4, 4)
    put("ac_flag", 1)
    put("ac_nice", 1)
    for name in ("cpu", "blkio", "swapin"):
        delay(name)
    put("cpu_run_real_total", 8)
    put("cpu_run_virtual_total", 8)
    put("ac_comm", 32)
    put("ac_sched", 1, 8)
    put("ac_pad", 3)
    put("ac_uid", 4, 8)
    for name in ("ac_gid", "ac_pid", "ac_ppid", "ac_btime"):
        put(name, 4)
    put("ac_etime", 8, 8)
    for name in ("ac_utime", "ac_stime", "ac_minflt", "ac_majflt", "coremem", "virtmem", "hiwater_rss", "hiwater_vm"):
        put(name, 8)
    for name in (
        "read_char",
        "write_char",
        "read_syscalls",
        "write_syscalls",
        "read_bytes",
        "write_bytes",
        "cancelled",
    ):
        put(name, 8)
    for name in ("nvcsw", "nivcsw", "ac_utimescaled", "ac_stimescaled", "cpu_scaled_run_real_total"):
        put(name, 8)
    delay("freepages")
    if version >= 9:
        delay("thrashing")
    if version >= 10:
        put("ac_btime64", 8)
    if version >= 11:
        delay("compact")
    if version >= 12:
        put("ac_tgid", 4)
        for name in ("ac_tgetime", "ac_exe_dev", "ac_exe_inode"):
            put(name, 8, 8)
    return bytes(data)


def event(what: int, cpu: int, sequence: int, *ids: int, rest: bytes = b"") -> bytes:
    """Lay out a process event: up to four numbers, and what follows them."""
    body = struct.pack("=IIQ4I", what, cpu, 123, *ids, *[0] * (4 - len(ids))) + rest
    message = struct.pack("=IIIIHH", 1, 1, sequence, 0, len(body), 0) + body
    return struct.pack("=IHHII", 16 + len(message), 3, 0, 0, 0) + message


TASKSTATS_FAMILY = 0x1B


def exit_message(stats: bytes, group: bytes = b"") -> bytes:
    """Lay out what the kernel sends when a task exits: its record, and with its last thread's that of the group."""

    def attribute(kind: int, value: bytes) -> bytes:
        return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)

    body = struct.pack("=BBH", 2, 1, 0)
    for aggregate, id_kind, record in ((4, 1, stats), (5, 2, group)):
        if record:
            body += attribute(aggregate, attribute(id_kind, struct.pack("=I", 70)) + attribute(3, record))
    return struct.pack("=IHHII", 16 + len(body), TASKSTATS_FAMILY, 0, 0, 0) + body
