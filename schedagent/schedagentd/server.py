"""The socket: who is there, what they ask, and one thread that answers, ticks the roll-out and notifies systemd.

One thread, because everything that changes the kernel must happen one after the other anyway; a policy that is being
loaded makes other requests wait for a second or so. A mistake in here ends the process, and with it what is not pinned:
the kernel's own safety net is better than one of ours.
"""

from __future__ import annotations

import json
import logging
import selectors
import signal
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from schedagent.core.deployment import Event
from schedagent.core.errors import Refused, SchedagentError, UsageError
from schedagent.core.process.listener import Peer, peer_of
from schedagent.core.process.systemd import Notifier
from schedagent.core.terminal.answers import plain
from schedagent.schedagentd.messages import (
    CHANGES,
    LIMITS_ACCEPTED,
    LONGEST_QUESTION,
    LONGEST_REQUEST,
    Deploy,
    Events,
    History,
    Policies,
    Promote,
    Renew,
    Request,
    Rollback,
    Status,
    Trial,
    read_request,
)
from schedagent.schedagentd.rollout import Rollout

log = logging.getLogger(__name__)

TICK_S = 1.0
IDLE_S = 10.0
BUSY_S, REST_S = 0.1, 0.005
"""How long it works without having to wait for anything, and how long it sleeps then."""
REQUEST_S = 10.0
ANSWER_S = 10.0
CONNECTIONS = 64
CONNECTIONS_EACH = 16
KEPT_FOR_CHANGES = 16
"""Connections that those who may only read cannot take, so that a rollback always gets through."""
BURST, PER_S = 30.0, 10.0
"""Requests that one user may make at once, and in the long run."""
COST_OF_CHANGE = 3.0
ENTRIES_AT_ONE = 50
"""Deployments or events in answers that cost as much as a request. Events come out of a bucket of their own: whoever
reads many must still be able to ask for a rollback."""
PIECES, PIECE_BYTES = 16, 1024
"""A request may come in so many pieces, and in one more for each so many bytes: every piece wakes us."""
NOTICE_S = 0.5
"""systemd hears from us no more often."""
UNREAD_BYTES = 256 << 10
MOST_RECEIVED_BYTES = 64 << 20
"""Of all requests together that are not complete yet; so many that memory would run out are not taken."""
MOST_UNREAD_BYTES = 32 << 20
"""Of all answers together that nobody has fetched yet: while it is more, nothing is answered but changes."""
EVENTS_AT_ONCE = 500
_PIECE = 64 << 10


@dataclass(frozen=True)
class Gate:
    """Who may do what, besides root.

    Args:
        groups: whose members may ask for what changes nothing.
        users: who may ask for everything.
    """

    groups: frozenset[int] = frozenset()
    users: frozenset[int] = frozenset()

    def may_look(self, peer: Peer) -> bool:
        """Whether this peer may ask for what changes nothing."""
        return self.may_change(peer) or bool(peer.groups & self.groups)

    def may_change(self, peer: Peer) -> bool:
        """Whether this peer may ask for everything."""
        return peer.uid == 0 or peer.uid in self.users


class Rates:
    """How much each user may still ask for: a bucket that fills with time."""

    def __init__(self) -> None:
        self._buckets: dict[int, tuple[float, float]] = {}

    def left(self, uid: int, now: float) -> float:
        """How much is in a user's bucket."""
        level, then = self._buckets.get(uid, (BURST, now))
        return min(BURST, level + (now - then) * PER_S)

    def take(self, uid: int, cost: float, now: float) -> bool:
        """Take `cost` out of a user's bucket, if that much is in it."""
        level = self.left(uid, now)
        enough = level >= cost
        self._buckets[uid] = (level - cost if enough else level, now)
        if len(self._buckets) > 4 * CONNECTIONS:
            full_s = BURST / PER_S
            self._buckets = {user: bucket for user, bucket in self._buckets.items() if now - bucket[1] < full_s}
        return enough


@dataclass
class Connection:
    """One peer.

    Args:
        limit: longest request, in bytes.
        deadline: when (monotonic) it must have asked, or read its answer; None for one that reads events.
        after: number of the last event that was sent to it; None for one that does not read events.
        trial: number of the trial that ends with it; 0 for none.
        closing: close it when everything is written.
        pieces: in how many its request has come so far.
        behind: whether there are events that it has not been sent yet.
    """

    socket: socket.socket
    peer: Peer
    limit: int
    deadline: float | None
    received: bytearray = field(default_factory=bytearray)
    unsent: bytearray = field(default_factory=bytearray)
    after: int | None = None
    trial: int = 0
    closing: bool = False
    pieces: int = 0
    behind: bool = False


class Server:
    """Answers until it is stopped."""

    def __init__(self, listener: socket.socket, rollout: Rollout, gate: Gate, notifier: Notifier) -> None:
        self._listener, self._rollout, self._gate, self._notifier = listener, rollout, gate, notifier
        self._selector = selectors.DefaultSelector()
        self._connections: dict[int, Connection] = {}
        self._rates, self._streamed = Rates(), Rates()
        self._stopping = False
        self._next_tick = self._next_notice = 0.0
        self._rested = 0.0

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; the roll-out is stopped then, by the caller."""
        woken, waker = socket.socketpair()
        for end in (woken, waker):
            end.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(woken, selectors.EVENT_READ)
        self._notifier.tell(f"READY=1\nSTATUS={self._rollout.in_charge}")
        while not self._stopping:
            self._step(woken)
        self._notifier.tell("STOPPING=1")
        for connection in list(self._connections.values()):
            self._close(connection)
        self._selector.close()

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _step(self, woken: socket.socket) -> None:
        """Wait for something to do, and do it."""
        for key, events in self._selector.select(self._patience()):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is woken:
                with suppress(BlockingIOError):
                    woken.recv(4096)
            elif (connection := self._connections.get(key.fd)) is not None:
                self._serve(connection, events)
        now = self._rest()
        if self._rollout.busy and (now >= self._next_tick or self._rollout.next_in_s <= 0):
            self._next_tick = now + TICK_S
            self._rollout.tick()
        if not self._rollout.driver.is_timed:
            self._rollout.driver.keep_time()
        for connection in list(self._connections.values()):
            if connection.deadline is not None and now >= connection.deadline:
                if not connection.closing:
                    self._answer(connection, _fault(UsageError(f"nothing was asked within {REQUEST_S:g} s")))
                self._close(connection)
        self._send_events()
        self._end_connections_of_trials()
        if now >= self._next_notice:
            self._next_notice = now + NOTICE_S
            self._notifier.tell(f"WATCHDOG=1\nSTATUS={self._rollout.in_charge}")

    def _rest(self) -> float:
        """Sleep a little if there was something to do all the time, and return the time (monotonic).

        A real-time task that never sleeps takes a CPU from everybody, and is ended by its limit.
        """
        if time.monotonic() >= self._rested + BUSY_S:
            time.sleep(REST_S)
            self._rested = time.monotonic()
        return time.monotonic()

    def _patience(self) -> float:
        """How long to wait for something to do, in seconds."""
        waits = [IDLE_S]
        if self._notifier.watchdog_s:
            waits.append(self._notifier.watchdog_s / 3)
        now = time.monotonic()
        if self._rollout.busy:
            waits += [self._next_tick - now, self._rollout.next_in_s]
        if any(connection.behind for connection in self._connections.values()):
            waits.append(TICK_S)
        waits += [
            connection.deadline - now for connection in self._connections.values() if connection.deadline is not None
        ]
        return max(0.0, min(waits))

    # Connections

    def _accept(self) -> None:
        try:
            accepted, _address = self._listener.accept()
        except OSError as error:  # the peer is gone again, or no descriptor is left
            log.warning("nobody could be let in: %s", error)
            return
        accepted.setblocking(False)
        peer = peer_of(accepted)
        change = self._gate.may_change(peer)
        limit = LONGEST_REQUEST if change else LONGEST_QUESTION
        connection = Connection(accepted, peer, limit, time.monotonic() + REQUEST_S)
        refusal = self._refusal(peer)
        self._connections[accepted.fileno()] = connection
        self._selector.register(accepted, selectors.EVENT_READ)
        if refusal is not None:
            self._answer(connection, _fault(refusal))

    def _refusal(self, peer: Peer) -> SchedagentError | None:
        """Why not to listen to a peer at all; None if there is no reason."""
        if not self._gate.may_look(peer):
            return Refused(
                f"{peer} may not ask schedagentd", "be of its group, or be named under users in its configuration"
            )
        same = sum(1 for other in self._connections.values() if other.peer.uid == peer.uid)
        most = CONNECTIONS if self._gate.may_change(peer) else CONNECTIONS - KEPT_FOR_CHANGES
        if len(self._connections) >= most or same >= CONNECTIONS_EACH:
            return Refused("schedagentd has too many connections already", "close some, or try later")
        if not self._rates.take(peer.uid, 1.0, time.monotonic()):
            return Refused(f"more than {PER_S:g} requests a second from user id {peer.uid}", "ask less often")
        return None

    def _serve(self, connection: Connection, events: int) -> None:
        """Read what is there, answer what is complete, send what is waiting."""
        if events & selectors.EVENT_READ:
            try:
                piece = connection.socket.recv(_PIECE)
            except BlockingIOError:
                return
            except OSError:
                piece = b""
            if not piece:
                self._hang_up(connection)
                return
            if connection.trial and not connection.closing:
                self._hang_up(connection)
            elif connection.after is not None and not connection.closing:
                self._answer(connection, _fault(UsageError("who reads events has asked; nothing more may be said")))
            elif not connection.closing:
                self._receive(connection, piece)
        if events & selectors.EVENT_WRITE:
            self._flush(connection)

    def _receive(self, connection: Connection, piece: bytes) -> None:
        """Take a piece of a request; only so much is held for everybody together."""
        held = sum(len(other.received) for other in self._connections.values())
        if held + len(piece) > MOST_RECEIVED_BYTES:
            self._answer(connection, _fault(Refused("too many large requests at once", "try later")))
            return
        connection.received += piece
        connection.pieces += 1
        if connection.pieces > PIECES + len(connection.received) // PIECE_BYTES:
            self._answer(connection, _fault(UsageError("the request comes in too many pieces", "send it at once")))
            return
        self._read(connection)

    def _read(self, connection: Connection) -> None:
        end = connection.received.find(b"\n")
        if end < 0 and len(connection.received) < connection.limit:
            return
        if end < 0 or end >= connection.limit:
            self._answer(connection, _fault(UsageError(f"the request is longer than {connection.limit} bytes")))
            return
        line = bytes(connection.received[:end])
        connection.received = bytearray()
        try:
            request = read_request(line)
            del line
            self._require_leave(connection.peer, request)
            if isinstance(request, Events):
                self._begin_stream(connection, request)
                return
            if isinstance(request, Trial):
                self._begin_trial(connection, request)
                return
            answer = {"ok": self._do(connection.peer, request)}
        except SchedagentError as error:
            log.info("refused %s: %s", connection.peer, error.message)
            answer = _fault(error)
        self._answer(connection, answer)

    def _require_leave(self, peer: Peer, request: Request) -> None:
        if not isinstance(request, CHANGES):
            if sum(len(other.unsent) for other in self._connections.values()) > MOST_UNREAD_BYTES:
                raise Refused("too many answers wait to be read", "read them, or try later")
            cost = request.limit / ENTRIES_AT_ONE if isinstance(request, History) else 0.0
            if not self._rates.take(peer.uid, cost, time.monotonic()):
                raise Refused(f"too much history for user id {peer.uid}", "ask less often, or for less")
            return
        verb = type(request).__name__.lower()
        if not self._gate.may_change(peer):
            raise Refused(f"{peer} may not {verb}", "ask root, or be named under users in schedagentd's configuration")
        if not self._rates.take(peer.uid, COST_OF_CHANGE, time.monotonic()):
            raise Refused(f"too many changes at once from user id {peer.uid}", "ask less often")
        log.info("%s from %s", verb, peer)

    def _answer(self, connection: Connection, answer: dict[str, Any]) -> None:
        """Send the one answer, then close."""
        connection.closing = True
        connection.received = bytearray()
        connection.deadline = time.monotonic() + ANSWER_S
        self._send(connection, [answer])

    def _send(self, connection: Connection, messages: Iterable[dict[str, Any]]) -> None:
        for message in messages:
            connection.unsent += json.dumps(plain(message)).encode() + b"\n"
        self._flush(connection)

    def _flush(self, connection: Connection) -> None:
        try:
            while connection.unsent:
                sent = connection.socket.send(connection.unsent[:_PIECE])
                del connection.unsent[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._close(connection)
            return
        if connection.closing and not connection.unsent:
            self._close(connection)
            return
        # Whoever has its answer is not listened to: what it says on would wake us.
        reading = 0 if connection.closing else selectors.EVENT_READ
        self._selector.modify(connection.socket, reading | (selectors.EVENT_WRITE if connection.unsent else 0))

    def _close(self, connection: Connection) -> None:
        """Close a connection, whoever ended it and when; the trial that hangs on it ends with it."""
        if self._connections.pop(connection.socket.fileno(), None) is not None:
            self._selector.unregister(connection.socket)
            connection.socket.close()
        if connection.trial:
            self._rollout.end_trial(connection.trial)

    # Trials

    def _begin_trial(self, connection: Connection, request: Trial) -> None:
        """Put a policy in charge for as long as its client stays, at most for its time."""
        rollout = self._rollout
        begun = rollout.trial(
            connection.peer.uid,
            request.order,
            request.content,
            request.lease_s,
            request.again,
            accept_limits=LIMITS_ACCEPTED in request.accept,
        )
        connection.trial, connection.deadline = begun.number, None
        self._send(connection, [{"ok": begun.summary(rollout.clock.boot())}])

    def _hang_up(self, connection: Connection) -> None:
        """Close the connection of a peer that is gone, or done: its trial ends with it."""
        if not connection.trial:
            self._close(connection)
            return
        self._rollout.end_trial(connection.trial)

    def _end_connections_of_trials(self) -> None:
        """Send to clients of trials that have ended how they did."""
        running = self._rollout.driver.running
        for connection in list(self._connections.values()):
            if connection.trial and not connection.closing and (not running or running.number != connection.trial):
                ended = self._rollout.ended(connection.trial)
                self._answer(connection, {"ok": {"trial": ended and ended.summary(self._rollout.clock.boot())}})

    # Events

    def _begin_stream(self, connection: Connection, request: Events) -> None:
        record = self._rollout.record
        connection.after = record.last_event if request.after < 0 else request.after
        if not request.follow:
            events = self._take_events(connection.peer, connection.after)
            if not events and record.last_event > connection.after:
                raise Refused(f"too many events for user id {connection.peer.uid}", "ask less often")
            self._send(connection, _event_lines(events))
            self._answer(connection, {"ok": {}})
            return
        connection.deadline = None
        self._send(connection, [{"ok": {"after": connection.after}}])

    def _send_events(self) -> None:
        """Send what happened to those who listen, as much as each user may have; whoever does not read is dropped."""
        listening = [each for each in self._connections.values() if each.after is not None and not each.closing]
        try:
            newest = self._rollout.record.last_event if listening else 0
            for connection in listening:
                self._send_new(connection, newest)
        except SchedagentError as error:
            for connection in listening:
                self._answer(connection, _fault(error))

    def _send_new(self, connection: Connection, newest: int) -> None:
        assert connection.after is not None
        if len(connection.unsent) > UNREAD_BYTES:
            self._close(connection)
        elif connection.after < newest:
            events = self._take_events(connection.peer, connection.after)
            if events:
                connection.after = events[-1].number
                self._send(connection, _event_lines(events))
            connection.behind = connection.after < newest
        else:
            connection.behind = False

    def _take_events(self, peer: Peer, after: int) -> tuple[Event, ...]:
        """Return the events after number `after`, as many as this user may have now."""
        now = time.monotonic()
        most = min(EVENTS_AT_ONCE, int(self._streamed.left(peer.uid, now) * ENTRIES_AT_ONE))
        events = self._rollout.record.events(after, most) if most else ()
        self._streamed.take(peer.uid, len(events) / ENTRIES_AT_ONE, now)
        return events

    # Verbs

    def _do(self, peer: Peer, request: Request) -> dict[str, Any]:  # noqa: PLR0911 - one return for each verb
        rollout = self._rollout
        boot = rollout.clock.boot  # called afterwards: what is new began a moment ago, not in a moment
        match request:
            case Status():
                return rollout.status() | {"may_change": self._gate.may_change(peer)}
            case Policies():
                return rollout.policies()
            case History():
                deployments = rollout.record.history(request.limit)
                now = boot()
                return {
                    "recorded": rollout.record.recorded,
                    "history": [
                        deployment.summary(now) | ({} if self._gate.may_change(peer) else {"own_words": ""})
                        for deployment in deployments
                    ],
                }
            case Deploy():
                deployment = rollout.deploy(
                    peer.uid,
                    request.order,
                    request.content,
                    request.stage,
                    request.cgroup,
                    request.lease_s,
                    request.again,
                    request.pid,
                    request.better,
                    LIMITS_ACCEPTED in request.accept,
                )
                return deployment.summary(boot())
            case Renew():
                renewed = rollout.renew(
                    request.deployment, request.lease_s, request.token, request.report_digest, request.metric
                )
                return renewed.summary(boot())
            case Promote():
                promoted = rollout.promote(
                    request.deployment, uid=peer.uid, accept_limits=LIMITS_ACCEPTED in request.accept
                )
                return promoted.summary(boot())
            case Rollback():
                return {"in_charge": rollout.rollback(request.deployment, request.to_default)}
        raise AssertionError("every request has its verb")


def _event_lines(events: Iterable[Any]) -> list[dict[str, Any]]:
    return [{"event": asdict(event)} for event in events]


def _fault(error: SchedagentError) -> dict[str, Any]:
    return {"error": {"kind": type(error).__name__, "message": error.message[-4000:], "hint": error.hint}}
