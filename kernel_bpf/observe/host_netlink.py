"""Process events and taskstats on a host, through pyroute2: what kernel_bpf.observe.netlink reads in the guest.

    with HostProcessEvents() as events:
        ...
        events.drain(take)          # take(ProcessEvent(...)) for each that has come

pyroute2 owns the sockets, the requests and the framing. The values are those of netlink.py, decoded there where
pyroute2 0.9.7 cannot: of struct taskstats it knows one version's layout, 15, and the beginning that the others share;
and the news of a command name that is not UTF-8 ends its reading of process events. So does a burst, by ENOBUFS; here
a burst loses messages, which `LostEvents` counts.

Import this module where it is used, not at the top of a file: pyroute2 takes 0.2 s, and neither the guest nor
schedagentd has it. Open, use and close a socket in one thread, in which no asyncio loop runs: pyroute2 opens another
socket for each thread and runs a loop of its own. Both families need CAP_NET_ADMIN and the initial namespaces.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST, NLMSG_DONE, genlmsg, nla
from pyroute2.netlink.connector.cn_proc import (
    CN_IDX_PROC,
    CN_VAL_PROC,
    PROC_CN_MCAST_LISTEN,
    PROC_EVENT_COMM,
    ProcEventMarshal,
    ProcEventSocket,
    proc_event_control,
    proc_event_exec,
)
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.taskstats import TASKSTATS_CMD_GET, TaskStats, tcmd

from kernel_bpf.observe.netlink import (
    DATAGRAM_BYTES,
    EVENT_DATAGRAM_BYTES,
    EVENT_FORK,
    NETLINK_NO_ENOBUFS,
    RECEIVE_BUFFER_BYTES,
    REPLY_TIMEOUT_S,
    SO_RCVBUFFORCE,
    SOL_NETLINK,
    ProcessEvent,
    Taskstats,
    decode_taskstats,
)
from schedagent.core.errors import SetupError

_RIGHTS = "this needs root (CAP_NET_ADMIN)"


class _HostSocket:
    """A pyroute2 socket with a large buffer that loses messages, rather than failing, when it overflows."""

    def __init__(self, netlink: Any) -> None:
        self._netlink = netlink
        self._thread = threading.get_ident()

    def _bind(self) -> None:
        """Bind, and make bursts a loss instead of an error.

        Raises:
            OSError: refused; pyroute2 raises KeyError then, after it has tried 180 port numbers.
        """
        try:
            self._netlink.bind()
        except KeyError:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM)) from None
        self._netlink.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        self._netlink.setsockopt(SOL_NETLINK, NETLINK_NO_ENOBUFS, 1)

    def fileno(self) -> int:
        descriptor: int = self._netlink.fileno()
        return descriptor

    def close(self) -> None:
        self._netlink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _check_thread(self) -> None:
        """Raise RuntimeError in another thread, where pyroute2 would silently use a fresh socket that hears nothing."""
        if threading.get_ident() != self._thread:
            raise RuntimeError("a pyroute2 socket is used in the thread that opened it")

    def _messages(self) -> Iterator[Any]:
        """Yield pyroute2's message of each datagram that is waiting; do not block."""
        self._check_thread()
        while True:
            try:
                datagram = self._netlink.recv(DATAGRAM_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            yield from self._parsed(datagram)

    def _parsed(self, datagram: bytes) -> Iterator[Any]:
        yield from self._netlink.marshal.parse(datagram)


@contextmanager
def _setup_errors(what: str, hint: str) -> Iterator[None]:
    """Turn what pyroute2 raises into SetupError."""
    try:
        yield
    except NetlinkError as error:
        raise SetupError(f"{what}: {os.strerror(error.code)}", hint) from error
    except OSError as error:
        raise SetupError(f"{what}: {error.strerror}", hint) from error


# --- process events -------------------------------------------------------------------------------------------------


class _EventMarshal(ProcEventMarshal):  # type: ignore[misc]
    """pyroute2's, but for two things: a changed command name need not be UTF-8, and unknown kinds have a pid, too."""

    default_message_class = proc_event_exec

    def __init__(self) -> None:
        super().__init__()
        self.msg_map[PROC_EVENT_COMM] = proc_event_exec


class HostProcessEvents(_HostSocket):
    """A socket that receives every process event of the machine from now on; see netlink.ProcessEvents."""

    def __init__(self) -> None:
        """Open, bind and subscribe.

        Raises:
            SetupError: no right, no CONFIG_PROC_EVENTS, or a kernel that does not answer us.
        """
        hint = f"{_RIGHTS} and a kernel with CONFIG_PROC_EVENTS=y"
        with _setup_errors("cannot listen to process events", hint):
            super().__init__(ProcEventSocket())
            try:
                self._netlink.set_marshal(_EventMarshal())
                self._bind()
                self._subscribe()
            except BaseException:
                self.close()
                raise

    def _subscribe(self) -> None:
        """What ProcEventSocket.control() does, which waits for an answer without end where the kernel gives none."""
        request = proc_event_control()
        request["action"] = PROC_CN_MCAST_LISTEN
        request["idx"], request["val"], request["len"] = CN_IDX_PROC, CN_VAL_PROC, 4
        self._netlink.put(request, NLMSG_DONE, msg_flags=0, msg_seq=0)
        if not select.select([self], [], [], REPLY_TIMEOUT_S)[0]:
            raise SetupError(
                f"the process event connector did not answer within {REPLY_TIMEOUT_S:g} s",
                "listen in the initial namespaces, not in a container",
            )

    def drain(self, take: Callable[[ProcessEvent], None]) -> None:
        """Hand every event that is waiting to `take`; do not block."""
        for message in self._messages():
            event = event_of(message)
            if event:
                take(event)

    def _parsed(self, datagram: bytes) -> Iterator[Any]:
        if len(datagram) >= EVENT_DATAGRAM_BYTES:
            yield from super()._parsed(datagram)


def event_of(message: Any) -> ProcessEvent | None:
    """Return pyroute2's process event as ours; None for acknowledgements."""
    what = message["what"]
    if what == 0:
        return None
    place = (message["cpu"], message["seq"], message["timestamp_ns"])
    if what == EVENT_FORK:
        return ProcessEvent(what, *place, message["child_pid"], message["child_tgid"], message["parent_tgid"])
    return ProcessEvent(what, *place, message["process_pid"], message["process_tgid"], 0)


# --- taskstats ------------------------------------------------------------------------------------------------------


class _TaskstatsMessage(genlmsg):  # type: ignore[misc]
    """A message of the TASKSTATS family whose struct taskstats is left as it came."""

    nla_map = (
        ("TASKSTATS_TYPE_UNSPEC", "none"),
        ("TASKSTATS_TYPE_PID", "uint32"),
        ("TASKSTATS_TYPE_TGID", "uint32"),
        ("TASKSTATS_TYPE_STATS", "cdata"),
        ("TASKSTATS_TYPE_AGGR_PID", "aggregate"),
        ("TASKSTATS_TYPE_AGGR_TGID", "aggregate"),
    )

    class aggregate(nla):  # type: ignore[misc]
        nla_map = (
            ("TASKSTATS_TYPE_UNSPEC", "none"),
            ("TASKSTATS_TYPE_PID", "uint32"),
            ("TASKSTATS_TYPE_TGID", "uint32"),
            ("TASKSTATS_TYPE_STATS", "cdata"),
        )


class HostTaskstats(_HostSocket):
    """The TASKSTATS family. Use one socket to listen for exits and another for requests."""

    def __init__(self) -> None:
        """Open, bind and look the family up.

        Raises:
            SetupError: no right, or no CONFIG_TASKSTATS.
        """
        with _setup_errors("cannot open taskstats", f"{_RIGHTS} and a kernel with CONFIG_TASKSTATS=y"):
            super().__init__(TaskStats())
            try:
                self._netlink.asyncore.module_err_level = "debug"  # the exception carries it
                self._bind()
                self._netlink.register_policy(self._netlink.prid, _TaskstatsMessage)
            except BaseException:
                self.close()
                raise

    def listen(self) -> None:
        """Ask for a record of every task that exits, on any CPU.

        Raises:
            SetupError: the kernel refused.
        """
        self._check_thread()
        cpus = f"0-{os.sysconf('SC_NPROCESSORS_CONF') - 1}"
        request = tcmd()
        request["cmd"], request["version"] = TASKSTATS_CMD_GET, 1
        request["attrs"].append(["TASKSTATS_CMD_ATTR_REGISTER_CPUMASK", cpus])
        with _setup_errors(f"cannot listen for exits on CPUs {cpus}", _RIGHTS):
            # not register_mask(), which asks for no acknowledgement and so never learns of a refusal
            list(self._netlink.nlm_request(request, self._netlink.prid, msg_flags=NLM_F_REQUEST | NLM_F_ACK))

    def drain(self, take: Callable[[Taskstats], None]) -> None:
        """Hand the record of every task that has exited to `take`; do not block.

        Raises:
            SetupError: a version of struct taskstats that nobody knows.
        """
        for message in self._messages():
            stats = stats_of(message)
            if stats:
                take(stats)

    def get(self, pid: int) -> Taskstats | None:
        """Return what is accounted for a living task so far; None if there is no such task.

        Raises:
            SetupError: the kernel refused.
        """
        self._check_thread()
        with _setup_errors(f"taskstats of pid {pid} refused", _RIGHTS):
            try:
                [message] = self._netlink.get_pid_stat(pid)
            except NetlinkError as error:
                if error.code == errno.ESRCH:
                    return None
                raise
        return stats_of(message)


def stats_of(message: Any) -> Taskstats | None:
    """Return the record of the task in pyroute2's message, not that of its thread group; None if it holds none."""
    aggregate = message.get_attr("TASKSTATS_TYPE_AGGR_PID")
    stats = aggregate.get_attr("TASKSTATS_TYPE_STATS") if aggregate else None
    return decode_taskstats(stats) if stats else None
