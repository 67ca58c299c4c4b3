"""The socket: who is there, what they ask for; each observation runs in a thread of its own until its time is over."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple
from typing import Any

from schedagent.core.errors import Refused, SchedagentError, UsageError
from schedagent.core.host_profile import to_json
from schedagent.core.process.listener import Admission, Peer, peer_of
from schedagent.core.process.systemd import Notifier
from schedagent.core.terminal.answers import plain
from schedagent.observer.messages import LONGEST_REQUEST, read_request
from schedagent.observing.commands import name
from schedagent.observing.measure import Observed, Order

log = logging.getLogger(__name__)

CONNECTIONS = 16
AT_ONCE, EACH_AT_ONCE = 4, 2
"""Observations of all users, and of one: each one's programs run at every switch of a task."""
REQUEST_S, ANSWER_S = 10.0, 30.0
IDLE_S = 60.0
"""Without a connection for so long, a process that systemd starts again on demand ends."""

Observe = Callable[[Order, Callable[[float], bool]], Observed]


class Server:
    """Answers until it is stopped.

    Args:
        listener: listening unix socket.
        admission: who may ask.
        observe: as schedagent.observing.measure.observe.
        ends_idle: end after IDLE_S without a connection.
    """

    def __init__(
        self, listener: socket.socket, admission: Admission, observe: Observe, notifier: Notifier, ends_idle: bool
    ) -> None:
        self._listener, self._admission, self._observe, self._notifier = listener, admission, observe, notifier
        self._ends_idle = ends_idle
        self._connections: set[asyncio.Task[None]] = set()
        self._observing: Counter[int] = Counter()
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT, or nobody asks any more."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        server = await asyncio.start_unix_server(self._connected, sock=self._listener, limit=LONGEST_REQUEST)
        self._notifier.tell("READY=1")
        while not self._stop.is_set():
            try:
                await asyncio.wait_for(self._stop.wait(), IDLE_S)
            except TimeoutError:
                if self._ends_idle and not self._connections:
                    break
        self._notifier.tell("STOPPING=1")
        server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            answer = await self._answer(reader, peer_of(writer.get_extra_info("socket")))
            if answer is not None:
                writer.write(json.dumps(plain(answer)).encode() + b"\n")
                await asyncio.wait_for(writer.drain(), ANSWER_S)
        except (ConnectionError, TimeoutError) as error:
            log.info("no answer was taken: %s", type(error).__name__)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, peer: Peer) -> dict[str, Any] | None:
        """Return what to answer; None to somebody who is gone."""
        try:
            if not self._admission.admits(peer):
                raise Refused(f"{peer} may not ask the observer", "be of its group: schedagent")
            if len(self._connections) > CONNECTIONS:
                raise Refused("the observer has too many connections already", "try later")
            order = read_request(await self._line(reader)).order()
            if self._observing.total() >= AT_ONCE or self._observing[peer.uid] >= EACH_AT_ONCE:
                raise Refused("the observer watches enough already", "wait until another observation is over")
            log.info("observation of %s for %g s, for %s", order.target.words, order.seconds, peer)
            return await self._watched(reader, peer, order)
        except SchedagentError as error:
            log.info("refused %s: %s", peer, error.message)
            return {"error": {"kind": type(error).__name__, "message": error.message, "hint": error.hint}}

    async def _line(self, reader: asyncio.StreamReader) -> bytes:
        try:
            line = await asyncio.wait_for(reader.readline(), REQUEST_S)
        except TimeoutError:
            raise UsageError(f"nothing was asked within {REQUEST_S:g} s") from None
        except ValueError:
            raise UsageError(f"the request is longer than {LONGEST_REQUEST} bytes") from None
        if not line.endswith(b"\n"):
            raise UsageError("the request is no line")
        return line

    async def _watched(self, reader: asyncio.StreamReader, peer: Peer, order: Order) -> dict[str, Any] | None:
        """Watch as long as the peer is there."""
        ended = threading.Event()
        self._observing[peer.uid] += 1
        work = asyncio.ensure_future(asyncio.to_thread(self._observe, order, ended.wait))
        gone = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            ended.set()
            observed = await work
        finally:
            ended.set()
            gone.cancel()
            await asyncio.wait({work})
            self._observing[peer.uid] -= 1
        return _as_answer(observed)


def _as_answer(observed: Observed) -> dict[str, Any]:
    switches = [[*fields[:-1], name(fields[-1])] for fields in map(astuple, observed.switches)]
    return {
        "ok": {
            "profile": to_json(observed.profile),
            "switches": switches,
            "more_switches": observed.more_switches,
        }
    }
