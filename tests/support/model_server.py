"""An OpenAI-compatible server over real HTTP whose answers are a script: for tests and demos.

    with ModelServer([{"content": {"plan": "keep"}}, {"status": 429, "retry_after": 1}]) as server:
        ...  # server.url is the base URL; server.requests holds what was asked

    python -m tests.support.model_server SCRIPT.json     # prints its base URL, serves until Ctrl-C

A script is a list of turns, taken one for each chat request, or a function from the request's body to a turn. A turn is
a JSON object; see `Turn` for what may stand in it. Behind the last turn the server answers HTTP 410, which no client
retries. It also answers `GET /v1/models` and `POST /v1/embeddings` (vectors made of the words, so that texts with
common words are near each other).
"""

from __future__ import annotations

import argparse
import hashlib
import http.server
import json
import math
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CHARS_PER_TOKEN = 4
_PIECE = 16
_DIMENSIONS = 64
_END = {"status": 410, "message": "the script has no more turns"}
_REPORTED = object()


@dataclass(frozen=True)
class Turn:
    """One answer.

    Args:
        content: of the message; what is not a string is sent as its JSON text.
        tool_calls: what the model wants called: `name` and `arguments` (an object, or a text to be sent as it is).
        finish_reason: empty for the one that fits.
        usage: {"input": tokens, "output": tokens}; None to report none; not given: four characters are a token.
        delay_s: wait this long before the answer.
        status: of HTTP; an error carries `message`, and `retry_after` (seconds or a date) as header.
        raw: body to send instead of a chat completion, as it is.
        drip_s: wait this long between the bytes of the answer.
        cut: close the connection in the middle of the answer.
    """

    content: Any = ""
    tool_calls: Sequence[Mapping[str, Any]] = ()
    finish_reason: str = ""
    usage: Any = _REPORTED
    delay_s: float = 0.0
    status: int = 200
    message: str = "scripted error"
    retry_after: float | str | None = None
    raw: str | None = None
    drip_s: float = 0.0
    cut: bool = False

    def text(self) -> str:
        """Return the content as it is sent."""
        return self.content if isinstance(self.content, str) else json.dumps(self.content)

    def calls(self) -> list[dict[str, Any]]:
        """Return the tool calls as they are sent."""
        return [
            {
                "id": f"call_{place}",
                "type": "function",
                "function": {"name": call["name"], "arguments": _json_text(call)},
            }
            for place, call in enumerate(self.tool_calls, 1)
        ]

    def finish(self) -> str:
        """Return why the answer ends."""
        return self.finish_reason or ("tool_calls" if self.tool_calls else "stop")

    def used(self, body: Mapping[str, Any]) -> dict[str, int] | None:
        """Return the tokens that are reported."""
        if self.usage is None:
            return None
        if self.usage is _REPORTED:
            sent, answered = _tokens(json.dumps(body["messages"])), _tokens(self.text() + json.dumps(self.calls()))
        else:
            sent, answered = self.usage["input"], self.usage["output"]
        return {"prompt_tokens": sent, "completion_tokens": answered, "total_tokens": sent + answered}


Script = Sequence[Mapping[str, Any]] | Callable[[dict[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class Seen:
    """One request: path, header fields in lower case, body."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any] = field(default_factory=dict)


class ModelServer:
    """The server; a context manager that serves in a thread.

    Args:
        script: see the module.
        api_key: answer HTTP 401 to everybody else; empty: answer everybody.
        model: what GET /v1/models lists.
    """

    def __init__(self, script: Script, *, api_key: str = "", model: str = "scripted", port: int = 0) -> None:
        self.requests: list[Seen] = []
        self.api_key = api_key
        self.model = model
        self._lock = threading.Lock()
        self._script = script if callable(script) else None
        self._turns = iter(()) if callable(script) else iter(script)
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def chats(self) -> list[dict[str, Any]]:
        """The bodies of the chat requests so far."""
        return [seen.body for seen in self.requests if seen.path.endswith("/chat/completions")]

    def turn(self, body: dict[str, Any]) -> Turn:
        """Return the answer to a chat request."""
        with self._lock:
            told = self._script(body) if self._script else next(self._turns, _END)
        return Turn(**told)

    def seen(self, request: Seen) -> None:
        """Remember a request."""
        with self._lock:
            self.requests.append(request)

    def __enter__(self) -> ModelServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a delayed answer may still sleep
    owner: ModelServer

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        if self._admitted({}):
            model = {"id": self.server.owner.model, "object": "model", "created": 0, "owned_by": "tests"}
            known = self.path == "/v1/models"
            self._send(
                200 if known else 404, {"object": "list", "data": [model]} if known else _error(404, "no such path")
            )

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._admitted(body):
            return
        if self.path == "/v1/chat/completions":
            self._chat(body)
        elif self.path == "/v1/embeddings":
            self._send(200, _embeddings(body))
        else:
            self._send(404, _error(404, "no such path"))

    def _admitted(self, body: dict[str, Any]) -> bool:
        owner = self.server.owner
        headers = {name.lower(): value for name, value in self.headers.items()}
        owner.seen(Seen(self.path, headers, body))
        admitted = not owner.api_key or headers.get("authorization") == f"Bearer {owner.api_key}"
        if not admitted:
            self._send(401, _error(401, f"wrong key: {headers.get('authorization', 'none')}"))
        return admitted

    def _chat(self, body: dict[str, Any]) -> None:
        turn = self.server.owner.turn(body)
        time.sleep(turn.delay_s)
        if turn.status != 200:
            self._send(turn.status, _error(turn.status, turn.message), retry_after=turn.retry_after)
        elif turn.raw is not None:
            self._send(200, turn.raw)
        elif turn.drip_s:
            self._drip(json.dumps(_completion(turn, body)).encode(), turn.drip_s)
        elif turn.cut:
            self._send(200, _completion(turn, body), cut=True)
        elif body.get("stream"):
            self._stream(turn, body)
        else:
            self._send(200, _completion(turn, body))

    def _send(
        self, status: int, body: Mapping[str, Any] | str, *, retry_after: float | str | None = None, cut: bool = False
    ) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def _drip(self, data: bytes, pause_s: float) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        for number in range(len(data)):
            time.sleep(pause_s)
            self.wfile.write(data[number : number + 1])

    def _stream(self, turn: Turn, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for chunk in _chunks(turn, body):
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_: object) -> None:
        pass


def _completion(turn: Turn, body: Mapping[str, Any]) -> dict[str, Any]:
    calls = {"tool_calls": turn.calls()} if turn.tool_calls else {}
    message = {"role": "assistant", "content": turn.text() or None, **calls}
    usage = turn.used(body)
    return {
        **_head("chat.completion", body),
        "choices": [{"index": 0, "message": message, "finish_reason": turn.finish()}],
        **({"usage": usage} if usage else {}),
    }


def _chunks(turn: Turn, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the pieces of a streamed answer."""
    head = _head("chat.completion.chunk", body)

    def piece(delta: Mapping[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    yield piece({"role": "assistant", "content": ""})
    text = turn.text()
    for start in range(0, len(text), _PIECE):
        yield piece({"content": text[start : start + _PIECE]})
    for place, call in enumerate(turn.calls()):
        yield piece({"tool_calls": [{"index": place, **call}]})
    yield piece({}, turn.finish())
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {**head, "choices": [], "usage": turn.used(body)}


def _head(kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": "chatcmpl-scripted", "object": kind, "created": 0, "model": body["model"]}


def _error(status: int, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "scripted", "code": str(status)}}


def _embeddings(body: Mapping[str, Any]) -> dict[str, Any]:
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    vectors = [
        {"object": "embedding", "index": index, "embedding": _vector(str(text))} for index, text in enumerate(texts)
    ]
    tokens = _tokens("".join(map(str, texts)))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": body["model"], "data": vectors, "usage": usage}


def _vector(text: str) -> list[float]:
    """Return a unit vector: each word adds to a place that a digest of it names."""
    counts = [0.0] * _DIMENSIONS
    for word in re.findall(r"\w+", text.lower()):
        counts[hashlib.sha256(word.encode()).digest()[0] % _DIMENSIONS] += 1
    length = math.hypot(*counts) or 1.0
    return [count / length for count in counts]


def _tokens(text: str) -> int:
    return math.ceil(len(text) / _CHARS_PER_TOKEN)


def _json_text(call: Mapping[str, Any]) -> str:
    arguments = call.get("arguments", {})
    return arguments if isinstance(arguments, str) else json.dumps(arguments)


def main() -> None:
    """Serve a script until Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.model_server", description="A scripted model endpoint."
    )
    parser.add_argument("script", type=Path, help="JSON file with a list of turns")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--api-key", default="", help="answer only to those who send it")
    chosen = parser.parse_args()
    with ModelServer(json.loads(chosen.script.read_text()), port=chosen.port, api_key=chosen.api_key) as server:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
