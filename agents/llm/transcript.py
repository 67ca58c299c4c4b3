"""The transcript of a run: every exchange with a model, as it was, in a JSON lines file beside the run.

It has three uses. People read it (`render`). A run that was cut short finds in it what was already answered, so no
call is paid for twice (`Transcript.recall`). And a whole run can be replayed without a network (`Replay`).

One line is one event: `run` (the first: run id and mark of the fences), `request`, `answer`, `error`, `tool`, `note`
(what an agent did without an answer, or refused of one). A request without an answer was cut short. The file
is for its owner only (mode 0600); it holds what was sent and answered, never a header or a key (agents.llm.model takes
the key out of every text before it gets here).
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, get_args

from agents.llm.budget import UsageRecord
from agents.llm.exchange import Failure, Form, Json, ModelRequest, Outcome, Reply, Role, ToolCall, Usage
from agents.llm.fences import new_mark
from schedagent.core.errors import ReplayDiverged, RepositoryError
from schedagent.core.settings import private_folder
from schedagent.core.terminal.printable import printable

VERSION = 1

_READ = (KeyError, TypeError, ValueError, AttributeError)
_LONG = (b'{"event": "request"', b'{"event": "tool"')
"""How lines begin that hold no usage."""


@dataclass(frozen=True)
class Exchange:
    """One request with its outcome.

    Args:
        number: of the request in its transcript, from 1.
        outcome: None: cut short.
        record: what it used; None without an answer.
        results: of the tools the answer called, by their place in it.
    """

    number: int
    request: ModelRequest
    outcome: Outcome | None = None
    record: UsageRecord | None = None
    results: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Note:
    """One sentence on what an agent did without an answer, or refused of one.

    Args:
        iteration: of the run, from 0.
    """

    role: Role
    iteration: int
    text: str


class Journal(Protocol):
    """Where a model keeps its exchanges: a Transcript, a Replay, or nowhere."""

    mark: str

    def recall(self, request: ModelRequest) -> Exchange | None:
        """Return what was answered to this request before; None if it has to be sent."""
        ...

    def begin(self, request: ModelRequest) -> int:
        """Note that a request is going to be sent, and return its number."""
        ...

    def end(self, number: int, outcome: Outcome, record: UsageRecord | None) -> None:
        """Note what came back."""
        ...

    def tool_result(self, number: int, place: int, name: str, result: str) -> None:
        """Note what a tool answered that the answer `number` called."""
        ...


class Unrecorded:
    """A journal that keeps nothing."""

    def __init__(self) -> None:
        self.mark = new_mark()

    def recall(self, request: ModelRequest) -> None:
        """Nothing is known."""

    def begin(self, request: ModelRequest) -> int:
        """Keep nothing."""
        return 0

    def end(self, number: int, outcome: Outcome, record: UsageRecord | None) -> None:
        """Keep nothing."""

    def tool_result(self, number: int, place: int, name: str, result: str) -> None:
        """Keep nothing."""


class Transcript:
    """The file of one run, read at the start and appended to.

    What an earlier process of the run was answered is recalled, each answer once and in its order: a request that is
    made twice in one process is sent twice.

    `mark` is that of the run's fences; `earlier` is what earlier processes of the run used, for the budget of this one.

    Args:
        path: made if need be, with its folder.
        run_id: of the run it belongs to.

    Raises:
        RepositoryError: it cannot be written, is damaged, or belongs to another run.
    """

    def __init__(self, path: Path, run_id: str) -> None:
        self.path = path
        self._descriptor = _open(path)
        try:
            header, exchanges = read_transcript(path) if os.fstat(self._descriptor).st_size else ({}, ())
            if header and header["run"] != run_id:
                raise RepositoryError(f"transcript {path} belongs to run {header['run']}, not to {run_id}")
        except BaseException:
            self.close()
            raise
        self.mark: str = header["mark"] if header else new_mark()
        self.earlier = tuple(exchange.record for exchange in exchanges if exchange.record)
        self._count = len(exchanges)
        self._notes = set(read_notes(path)) if header else set()
        self._known: dict[tuple[str, int, str], deque[Exchange]] = {}
        for exchange in exchanges:
            if isinstance(exchange.outcome, Reply):
                self._known.setdefault(_key(exchange.request), deque()).append(exchange)
        if not header:
            self._write("run", run=run_id, mark=self.mark, version=VERSION)

    def recall(self, request: ModelRequest) -> Exchange | None:
        """Return what an earlier process of this run was answered."""
        known = self._known.get(_key(request))
        return known.popleft() if known else None

    def begin(self, request: ModelRequest) -> int:
        """Write down a request that is going to be sent."""
        self._count += 1
        about = {"role": request.role, "iteration": request.iteration, "digest": request.digest}
        self._write("request", number=self._count, **about, body=request.body)
        return self._count

    def end(self, number: int, outcome: Outcome, record: UsageRecord | None) -> None:
        """Write down what came back."""
        used = {"record": asdict(record)} if record else {}
        self._write("answer" if isinstance(outcome, Reply) else "error", number=number, **asdict(outcome), **used)

    def tool_result(self, number: int, place: int, name: str, result: str) -> None:
        """Write down what a tool answered."""
        self._write("tool", number=number, place=place, name=name, result=result)

    def note(self, role: Role, iteration: int, text: str) -> None:
        """Write down what happened besides the exchanges; a step that is repeated adds no second note."""
        note = Note(role, iteration, text)
        if note not in self._notes:
            self._notes.add(note)
            self._write("note", **asdict(note))

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Transcript:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, event: str, **values: Any) -> None:
        line = {"event": event, "at": datetime.now(UTC).isoformat(timespec="milliseconds"), **values}
        data = (json.dumps(line) + "\n").encode()
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            raise RepositoryError(f"transcript {self.path} cannot be written: {error.strerror}") from None


class Replay:
    """Answers from a recorded transcript, without a network. Every request must be the one recorded at its place.

    Args:
        path: of the transcript.

    Raises:
        RepositoryError: it cannot be read, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        header, exchanges = read_transcript(path)
        self.path = path
        self.mark: str = header["mark"]
        self._left = deque(_final(exchanges))
        self.count = len(self._left)

    @property
    def left(self) -> int:
        """How many of its `count` exchanges were not replayed yet."""
        return len(self._left)

    def expects(self, role: Role, iteration: int) -> bool:
        """Whether the next exchange is of this agent, in this iteration."""
        return bool(self._left) and (self._left[0].request.role, self._left[0].request.iteration) == (role, iteration)

    def asked_by(self, role: Role) -> tuple[str, Form]:
        """Return which model this agent asked first in what is left of the recording, and in which form."""
        first = next((exchange.request for exchange in self._left if exchange.request.role == role), None)
        return (first.model, first.form) if first else ("", "plain")

    def recall(self, request: ModelRequest) -> Exchange:
        """Return the next exchange.

        Raises:
            ReplayDiverged: it holds another request, with the place where they differ; or the recording ends here.
        """
        if not self._left:
            asker = f"{request.role}, iteration {request.iteration}"
            raise ReplayDiverged(f"transcript {self.path} ends before this request ({asker})")
        exchange = self._left.popleft()
        if _key(exchange.request) != _key(request):
            where = difference(exchange.request, request)
            raise ReplayDiverged(
                f"request {exchange.number} of transcript {self.path} is another one: {where}",
                "the program, a prompt or what it works on changed since the recording",
            )
        return exchange

    def begin(self, request: ModelRequest) -> int:
        """Refuse: nothing is sent in a replay."""
        raise ReplayDiverged(f"transcript {self.path} holds no answer to this request of {request.role}")

    def end(self, number: int, outcome: Outcome, record: UsageRecord | None) -> None:
        """Write nothing."""

    def tool_result(self, number: int, place: int, name: str, result: str) -> None:
        """Write nothing."""

    def note(self, role: Role, iteration: int, text: str) -> None:
        """Write nothing."""

    def close(self) -> None:
        """Nothing is open."""


def transcript_path(state_dir: Path, run_id: str) -> Path:
    """Return where the transcript of a run is kept."""
    return state_dir / "runs" / f"{run_id}.transcript.jsonl"


def read_transcript(path: Path) -> tuple[Json, tuple[Exchange, ...]]:
    """Read a transcript: its first line and its exchanges. A last line that was cut short is left out.

    Raises:
        RepositoryError: it cannot be read, or is damaged.
    """
    exchanges: dict[int, Exchange] = {}
    header: Json = {}
    for number, event in _events(path):
        with _naming_damage(path, number):
            if number == 1:
                header = {"run": str(event["run"]), "mark": str(event["mark"]), "at": str(event["at"])}
                if event["version"] != VERSION:
                    raise ValueError(f"version {event['version']}")
            else:
                _READERS[event["event"]](exchanges, event)
    if not header:
        raise RepositoryError(f"transcript {path} is empty")
    return header, tuple(exchanges.values())


def read_notes(path: Path) -> tuple[Note, ...]:
    """Return what was noted besides the exchanges, in its order.

    Raises:
        RepositoryError: it cannot be read, or is damaged.
    """
    notes = []
    for number, event in _events(path):
        with _naming_damage(path, number):
            if event["event"] == "note":
                notes.append(Note(event["role"], int(event["iteration"]), str(event["text"])))
    return tuple(notes)


def read_usage(path: Path, offset: int = 0) -> tuple[tuple[UsageRecord, ...], int, int]:
    """Return what the answers after a place of a growing transcript used, without reading the long requests.

    Args:
        offset: in bytes; 0, or what an earlier call returned.

    Returns:
        What answers used, how many requests failed, and the place to continue from.

    Raises:
        RepositoryError: it cannot be read, or is damaged.
    """
    used, failed = [], 0
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    break  # it is being written
                offset += len(line)
                if line.startswith(_LONG):
                    continue
                with _naming_damage(path, offset, "byte"):
                    event = json.loads(line)
                    failed += event["event"] == "error"
                    if event["event"] == "answer":
                        used.append(UsageRecord(**event["record"]))
    except OSError as error:
        raise RepositoryError(f"transcript {path} cannot be read: {error.strerror}") from None
    return tuple(used), failed, offset


def _events(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield each whole line with its number, from 1."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise RepositoryError(f"transcript {path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        with _naming_damage(path, number):
            event = json.loads(line)
        yield number, event


@contextmanager
def _naming_damage(path: Path, number: int, unit: str = "line") -> Iterator[None]:
    try:
        yield
    except _READ as error:
        raise RepositoryError(f"transcript {path}, {unit} {number} is damaged: {error}") from None


def render(header: Json, exchanges: Sequence[Exchange], longest: int = 4000) -> Iterator[str]:
    """Yield a transcript for people, in blocks of text. What steers a terminal is shown as an escape.

    Args:
        longest: characters shown of each text.
    """
    yield f"Transcript of run {header['run']}, begun {header['at']}: {len(exchanges)} requests"
    shown: tuple[Json, ...] = ()
    for exchange in exchanges:
        request = exchange.request
        yield f"--- {exchange.number}: {request.role}, iteration {request.iteration}, to {request.model}"
        continues = request.messages[: len(shown)] == shown and bool(shown)
        if continues:
            yield f"(after the {len(shown)} messages above)"
        new = request.messages[len(shown) if continues else 0 :]
        repeated = ("assistant", "tool") if continues else ()  # they stand above as answer and results
        yield from (_shown(_message_text(message), longest) for message in new if message["role"] not in repeated)
        yield _shown(_ending(exchange), longest)
        yield from (_shown(f"[result {place}] {text}", longest) for place, text in sorted(exchange.results.items()))
        shown = request.messages


def difference(recorded: ModelRequest, present: ModelRequest) -> str:
    """Return in one line where two requests differ."""
    for name in ("role", "iteration", "model"):
        before, now = getattr(recorded, name), getattr(present, name)
        if before != now:
            return f"its {name} is {before!r}, asked now: {now!r}"
    for number, (before, now) in enumerate(zip(recorded.messages, present.messages, strict=False)):
        if before != now:
            return f"message {number} ({now.get('role')}) differs: {_apart(_message_text(before), _message_text(now))}"
    if len(recorded.messages) != len(present.messages):
        return f"it has {len(recorded.messages)} messages, asked now: {len(present.messages)}"
    return "tools or answer schema differ"


def _apart(before: str, now: str) -> str:
    place = next((i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), min(len(before), len(now)))
    start = max(0, place - 20)
    return f"at character {place}, recorded {before[start : place + 40]!r}, now {now[start : place + 40]!r}"


def _final(exchanges: Sequence[Exchange]) -> Iterator[Exchange]:
    """Leave out requests that were cut short, and failures that a later process of the run asked again with success."""
    answered = {
        (_key(exchange.request), exchange.number) for exchange in exchanges if isinstance(exchange.outcome, Reply)
    }
    for exchange in exchanges:
        later = any(key == _key(exchange.request) and number > exchange.number for key, number in answered)
        if isinstance(exchange.outcome, Reply) or (exchange.outcome and not later):
            yield exchange


def _key(request: ModelRequest) -> tuple[str, int, str]:
    return request.role, request.iteration, request.digest


def _message_text(message: Json) -> str:
    calls = [
        f"[calls {call['function']['name']}] {call['function']['arguments']}" for call in message.get("tool_calls", ())
    ]
    return "\n".join([f"[{message['role']}] {message.get('content') or ''}", *calls])


def _ending(exchange: Exchange) -> str:
    outcome = exchange.outcome
    if outcome is None:
        return "[cut short: no answer was received]"
    if isinstance(outcome, Failure):
        return f"[error] {outcome.message}"
    calls = [f"[calls {call.name}] {call.arguments}" for call in outcome.tool_calls]
    usage = f"[{outcome.usage.input_tokens} tokens sent, {outcome.usage.output_tokens} answered]"
    return "\n".join([*([f"[answer] {outcome.text}"] if outcome.text else []), *calls, usage])


def _shown(text: str, longest: int) -> str:
    cut = text if len(text) <= longest else f"{text[:longest]}\n... ({len(text) - longest} more characters)"
    return printable(cut)


def _open(path: Path) -> int:
    """Open for appending, as the owner's only, without an unfinished last line."""
    try:
        private_folder(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        os.fchmod(descriptor, 0o600)
        whole = path.read_bytes().rfind(b"\n") + 1
        os.ftruncate(descriptor, whole)
    except OSError as error:
        raise RepositoryError(f"transcript {path} cannot be opened: {error.strerror}") from None
    return descriptor


# --- reading events -------------------------------------------------------------------------------------------------

_Exchanges = dict[int, Exchange]


def _read_request(exchanges: _Exchanges, event: Json) -> None:
    if event["role"] not in get_args(Role) or event["number"] != len(exchanges) + 1:
        raise ValueError(f"request {event['number']} of {event['role']}")
    body = event["body"]
    request = ModelRequest(
        event["role"],
        event["iteration"],
        body["model"],
        tuple(body["messages"]),
        tuple(body.get("tools", ())),
        body.get("response_format"),
        body.get("tool_choice", ""),
    )
    if request.digest != event["digest"]:
        raise ValueError("the digest does not fit the request")
    exchanges[event["number"]] = Exchange(event["number"], request)


def _read_answer(exchanges: _Exchanges, event: Json) -> None:
    calls = tuple(ToolCall(**call) for call in event["tool_calls"])
    reply = Reply(event["text"], calls, event["finish_reason"], Usage(**event["usage"]))
    _finish(exchanges, event["number"], reply, UsageRecord(**event["record"]))


def _read_error(exchanges: _Exchanges, event: Json) -> None:
    failure = Failure(event["kind"], event["message"], event["hint"], event["status"])
    _finish(exchanges, event["number"], failure, None)


def _read_tool(exchanges: _Exchanges, event: Json) -> None:
    exchange = exchanges[event["number"]]
    results = {**exchange.results, int(event["place"]): str(event["result"])}
    exchanges[event["number"]] = replace(exchange, results=results)


def _finish(exchanges: _Exchanges, number: int, outcome: Outcome, record: UsageRecord | None) -> None:
    exchanges[number] = replace(exchanges[number], outcome=outcome, record=record)


_READERS: Mapping[str, Callable[[_Exchanges, Json], None]] = {
    "request": _read_request,
    "answer": _read_answer,
    "error": _read_error,
    "tool": _read_tool,
    "note": lambda _exchanges, _event: None,
}
