"""Process events and taskstats over raw netlink, decoded here with `socket` and `struct` alone.

For the micro-VM's guest: its initramfs holds only the standard library, and in an emulated machine every event that
Python handles takes time from the workload (11 us each here, 91 us in pyroute2 0.9.7). On a host use host_netlink.py,
which stands on pyroute2; it yields the very types defined here, and decodes taskstats with `decode_taskstats`.

Sources: include/uapi/linux/{netlink,connector,cn_proc,genetlink,taskstats}.h and drivers/connector/cn_proc.c.
Both families need CAP_NET_ADMIN and answer only in the initial network namespace.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Self

from schedagent.core.errors import SetupError

NETLINK_CONNECTOR = 11
NETLINK_GENERIC = 16

SOL_NETLINK = 270
NETLINK_NO_ENOBUFS = 5
SO_RCVBUFFORCE = 33
SO_MEMINFO = 55
RECEIVE_BUFFER_BYTES = 32 << 20
DATAGRAM_BYTES = 16 << 10
REPLY_TIMEOUT_S = 5.0

_NLMSGHDR = struct.Struct("=IHHII")
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_REQUEST = 1
_NLM_F_ACK = 4
_MEMINFO = struct.Struct("=9I")
_MEMINFO_RMEM_ALLOC, _MEMINFO_DROPS = 0, 8  # include/uapi/linux/sock_diag.h


@dataclass(frozen=True)
class ReceiveBuffer:
    """The state of a socket's buffer.

    Args:
        used_bytes: memory of the datagrams that wait, what the kernel needs for each of them included.
        dropped: datagrams lost so far because it was full.
    """

    used_bytes: int
    dropped: int


class NetlinkSocket:
    """One netlink socket with a large buffer that loses messages, rather than failing, when it overflows."""

    def __init__(self, protocol: int, groups: int = 0) -> None:
        """Open and bind.

        Raises:
            SetupError: the kernel lacks the protocol, or the caller lacks CAP_NET_ADMIN.
        """
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:
            raise SetupError(f"cannot open netlink protocol {protocol}: {error.strerror}") from error
        try:
            self._socket.setblocking(False)
            self._socket.bind((0, groups))
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_NO_ENOBUFS, 1)
        except OSError as error:
            self._socket.close()
            raise SetupError(
                f"cannot listen on netlink protocol {protocol}: {error.strerror}", "this needs root (CAP_NET_ADMIN)"
            ) from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def drain(self, take: Callable[[bytes], None], most: int | None = None) -> None:
        """Hand every datagram that is waiting (the first `most` of them) to `take`; do not block."""
        receive = self._socket.recv
        for _number in count() if most is None else range(most):
            try:
                datagram = receive(DATAGRAM_BYTES)
            except BlockingIOError:
                return
            take(datagram)

    def buffer(self) -> ReceiveBuffer:
        """Return how much is waiting, and how much was lost."""
        fields = _MEMINFO.unpack(self._socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size))
        return ReceiveBuffer(fields[_MEMINFO_RMEM_ALLOC], fields[_MEMINFO_DROPS])

    def send(self, kind: int, payload: bytes, flags: int = 0) -> None:
        header = _NLMSGHDR.pack(_NLMSGHDR.size + len(payload), kind, flags, 0, 0)
        self._socket.send(header + payload)

    def request(self, kind: int, payload: bytes) -> bytes:
        """Send a request and return the payload of its answer, empty if the kernel only acknowledged it.

        Raises:
            OSError: the kernel's own error, or TimeoutError if it does not answer.
        """
        self.send(kind, payload, _NLM_F_REQUEST | _NLM_F_ACK)
        answer = b""
        while True:
            if not select.select([self._socket], [], [], REPLY_TIMEOUT_S)[0]:
                raise TimeoutError(errno.ETIMEDOUT, f"no answer within {REPLY_TIMEOUT_S:g} s")
            for answer_kind, body in messages(self._socket.recv(DATAGRAM_BYTES)):
                if answer_kind != _NLMSG_ERROR:
                    answer = body
                    continue
                code = -int.from_bytes(body[:4], "little", signed=True)
                if code:
                    raise OSError(code, os.strerror(code))
                return answer


def messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (type, payload) of each netlink message in a datagram."""
    offset = 0
    while offset + _NLMSGHDR.size <= len(datagram):
        length, kind, _flags, _sequence, _port = _NLMSGHDR.unpack_from(datagram, offset)
        if length < _NLMSGHDR.size:
            return
        yield kind, datagram[offset + _NLMSGHDR.size : offset + length]
        offset += (length + 3) & ~3


# --- process events -------------------------------------------------------------------------------------------------

EVENT_FORK = 0x00000001
EVENT_EXEC = 0x00000002
EVENT_EXIT = 0x80000000

_CN_IDX_PROC = 1
_CN_VAL_PROC = 1
_MCAST_LISTEN = 1
_CN_MSG = struct.Struct("=IIIIHH")
# Every process event is one datagram: nlmsghdr, cn_msg, then struct proc_event {what, cpu, timestamp_ns, union}.
_EVENT = struct.Struct("=IIQ4I")
_EVENT_OFFSET = _NLMSGHDR.size + _CN_MSG.size
_SEQUENCE_OFFSET = _NLMSGHDR.size + 8
EVENT_DATAGRAM_BYTES = _EVENT_OFFSET + _EVENT.size
"""What a datagram holds at least; longer ones have what this module leaves alone."""


@dataclass(frozen=True, slots=True)
class ProcessEvent:
    """One fork, exec or exit.

    Args:
        what: EVENT_FORK, EVENT_EXEC or EVENT_EXIT; other values are kinds this module does not take apart.
        cpu: where it happened.
        sequence: number of the event among all events of that CPU, 32 bits.
        timestamp_ns: CLOCK_MONOTONIC.
        pid, tgid: the task: the child of a fork.
        parent_tgid: process that the kernel calls its parent; only for a fork, otherwise 0.
            For a new thread that is the parent of the process, not the thread that made it.
    """

    what: int
    cpu: int
    sequence: int
    timestamp_ns: int
    pid: int
    tgid: int
    parent_tgid: int


def decode_event(datagram: bytes) -> ProcessEvent | None:
    """Take a process event apart; None for acknowledgements and datagrams that are too short."""
    if len(datagram) < EVENT_DATAGRAM_BYTES:
        return None
    what, cpu, stamp, first, second, third, fourth = _EVENT.unpack_from(datagram, _EVENT_OFFSET)
    if what == 0:
        return None
    (sequence,) = struct.unpack_from("=I", datagram, _SEQUENCE_OFFSET)
    if what == EVENT_FORK:
        return ProcessEvent(what, cpu, sequence, stamp, third, fourth, second)
    return ProcessEvent(what, cpu, sequence, stamp, first, second, 0)


def exec_pid(datagram: bytes) -> int:
    """Return the pid of an exec event, 0 for anything else: the one thing that must be known at once."""
    what, _cpu, _stamp, pid = struct.unpack_from("=IIQI", datagram, _EVENT_OFFSET)
    return int(pid) if what == EVENT_EXEC else 0


class ProcessEvents(NetlinkSocket):
    """A socket that receives every process event of the machine from now on.

    No filter by kind is set, although kernels since 6.6 offer one: the kernel numbers the events before it filters,
    and a gap in the numbers is how lost events are counted.
    """

    def __init__(self) -> None:
        super().__init__(NETLINK_CONNECTOR, _CN_IDX_PROC)
        operation = struct.pack("=I", _MCAST_LISTEN)
        message = _CN_MSG.pack(_CN_IDX_PROC, _CN_VAL_PROC, 0, 0, len(operation), 0)
        try:
            self.send(_NLMSG_DONE, message + operation)
        except OSError as error:
            self.close()
            raise SetupError(
                f"the process event connector refused us: {error.strerror}",
                "it needs root and a kernel with CONFIG_PROC_EVENTS=y",
            ) from error


class LostEvents:
    """Counts process events that never arrived, by the gaps in each CPU's numbering."""

    def __init__(self) -> None:
        self.count = 0
        self._next: dict[int, int] = {}

    def see(self, event: ProcessEvent) -> None:
        expected = self._next.get(event.cpu, event.sequence)
        gap = (event.sequence - expected) & 0xFFFFFFFF
        self.count += gap if gap < 1 << 31 else 0
        self._next[event.cpu] = (event.sequence + 1) & 0xFFFFFFFF


# --- taskstats ------------------------------------------------------------------------------------------------------

_GENL_ID_CTRL = 16
_CTRL_CMD_GETFAMILY = 3
_CTRL_ATTR_FAMILY_ID = 1
_CTRL_ATTR_FAMILY_NAME = 2
_GENLMSGHDR = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_ATTRIBUTE_TYPE_MASK = 0x3FFF

_CMD_GET = 1
_CMD_ATTR_PID = 1
_CMD_ATTR_REGISTER_CPUMASK = 3
_TYPE_STATS = 3
_TYPE_AGGR_PID = 4

_VERSION_MINIMUM = 8
_VERSION_INTERLEAVED = 15
_VERSION_WITH_TGID = 12


@dataclass(frozen=True, slots=True)
class Taskstats:
    """What the kernel accounted for one task (struct taskstats), as far as schedagent uses it.

    Args:
        version: of the struct.
        pid, tgid, ppid: ids; tgid is 0 before version 12.
        comm: command name.
        elapsed_ns: life time so far (the kernel counts in microseconds).
        cpu_ns: time it ran, from the scheduler's own clock (cpu_run_virtual_total). The utime and stime fields
            count ticks on most kernels and miss short tasks. An exit record lacks what the task ran since
            the scheduler last looked: at most one tick (1 to 4 ms).
        run_delay_ns: time it was runnable and waited for a CPU (cpu_delay_total).
        voluntary_switches, involuntary_switches: context switches.
    """

    version: int
    pid: int
    tgid: int
    ppid: int
    comm: str
    elapsed_ns: int
    cpu_ns: int
    run_delay_ns: int
    voluntary_switches: int
    involuntary_switches: int


@dataclass(frozen=True)
class _Layout:
    """Byte offsets in struct taskstats of one group of versions."""

    cpu_delay_total: int = 24
    cpu_run_virtual_total: int = 72
    ac_comm: int = 80
    ac_pid: int = 128
    ac_etime: int = 144
    nvcsw: int = 272
    ac_tgid: int = 368


_APPENDING = _Layout()
"""Versions 8 to 14 and from 16 on: each one only appended (16 moved what 15 had inserted to the end)."""

_INTERLEAVED = _Layout(24, 72 + 48, 80 + 48, 128 + 48, 144 + 48, 272 + 48, 368 + 96)
"""Version 15 (Linux 6.14): a maximum and a minimum after each of cpu, blkio, swapin, freepages, thrashing, compact
(commits 658eb5ab916d and f65c64f311ee)."""


def decode_taskstats(stats: bytes) -> Taskstats:
    """Take a struct taskstats apart by the version it carries.

    Raises:
        SetupError: older than version 8 (Linux 2.6.31) or cut short.
    """
    version = int.from_bytes(stats[:2], "little")
    layout = _INTERLEAVED if version == _VERSION_INTERLEAVED else _APPENDING
    end = layout.ac_tgid + 4 if version >= _VERSION_WITH_TGID else layout.nvcsw + 16
    if version < _VERSION_MINIMUM or len(stats) < end:
        raise SetupError(
            f"cannot read taskstats version {version} of {len(stats)} bytes", "versions from 8 on are known"
        )
    pid, ppid = struct.unpack_from("=II", stats, layout.ac_pid)
    voluntary, involuntary = struct.unpack_from("=QQ", stats, layout.nvcsw)
    return Taskstats(
        version=version,
        pid=pid,
        tgid=_u32(stats, layout.ac_tgid) if version >= _VERSION_WITH_TGID else 0,
        ppid=ppid,
        comm=stats[layout.ac_comm : layout.ac_comm + 32].split(b"\0", 1)[0].decode(errors="replace"),
        elapsed_ns=_u64(stats, layout.ac_etime) * 1000,
        cpu_ns=_u64(stats, layout.cpu_run_virtual_total),
        run_delay_ns=_u64(stats, layout.cpu_delay_total),
        voluntary_switches=voluntary,
        involuntary_switches=involuntary,
    )


def _u32(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


def _u64(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 8], "little")


def attributes(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (type, value) of each netlink attribute."""
    offset = 0
    while offset + _ATTRIBUTE.size <= len(payload):
        length, kind = _ATTRIBUTE.unpack_from(payload, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _ATTRIBUTE_TYPE_MASK, payload[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def task_record(payload: bytes) -> bytes | None:
    """Return the struct taskstats of the task in a TASKSTATS message (generic header included).

    The record of the whole thread group, which follows that of its last thread, is left out: it repeats the sums
    of records that were delivered before.
    """
    for kind, aggregate in attributes(payload[_GENLMSGHDR.size :]):
        if kind == _TYPE_AGGR_PID:
            for inner, stats in attributes(aggregate):
                if inner == _TYPE_STATS:
                    return stats
    return None


def exit_record(datagram: bytes) -> bytes | None:
    """Return the struct taskstats in a datagram received after `listen`; None if it holds none."""
    for kind, payload in messages(datagram):
        if kind > _GENL_ID_CTRL:
            return task_record(payload)
    return None


class TaskstatsSocket(NetlinkSocket):
    """The TASKSTATS family. Use one socket to listen for exits and another for requests."""

    def __init__(self) -> None:
        super().__init__(NETLINK_GENERIC)
        try:
            self._family = self._resolve(b"TASKSTATS\0")
        except OSError as error:
            self.close()
            raise SetupError(
                f"the kernel has no taskstats: {error.strerror}", "it needs a kernel with CONFIG_TASKSTATS=y"
            ) from error

    def _resolve(self, name: bytes) -> int:
        header = _GENLMSGHDR.pack(_CTRL_CMD_GETFAMILY, 1, 0)
        answer = self.request(_GENL_ID_CTRL, header + _attribute(_CTRL_ATTR_FAMILY_NAME, name))
        family = dict(attributes(answer[_GENLMSGHDR.size :]))
        return int.from_bytes(family[_CTRL_ATTR_FAMILY_ID], "little")

    def _command(self, attribute: int, value: bytes) -> bytes:
        return self.request(self._family, _GENLMSGHDR.pack(_CMD_GET, 1, 0) + _attribute(attribute, value))

    def listen(self) -> None:
        """Ask for a record of every task that exits, on any CPU.

        Raises:
            SetupError: the kernel refused.
        """
        cpus = f"0-{os.sysconf('SC_NPROCESSORS_CONF') - 1}".encode()
        try:
            self._command(_CMD_ATTR_REGISTER_CPUMASK, cpus + b"\0")
        except OSError as error:
            raise SetupError(
                f"cannot listen for exits on CPUs {cpus.decode()}: {error.strerror}", "this needs root (CAP_NET_ADMIN)"
            ) from error

    def get(self, pid: int) -> Taskstats | None:
        """Return what is accounted for a living task so far; None if there is no such task.

        Raises:
            SetupError: the kernel refused.
        """
        try:
            answer = self._command(_CMD_ATTR_PID, struct.pack("=I", pid))
        except ProcessLookupError:
            return None
        except OSError as error:
            raise SetupError(f"taskstats of pid {pid} refused: {error.strerror}", "this needs root") from error
        stats = task_record(answer)
        return decode_taskstats(stats) if stats else None


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + b"\0" * (-length % 4)
