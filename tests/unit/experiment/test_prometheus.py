"""Numbers from a Prometheus server over real HTTP, whatever it answers."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from schedagent.core.errors import MetricUnavailable, UsageError
from schedagent.experiment import prometheus
from schedagent.experiment.prometheus import look_back_s, server_of
from tests.support.running_service import Prometheus


@pytest.fixture
def server():
    made = Prometheus(lambda begin, end: 12.5)
    yield made
    made.close()


def answering(server, content, status=200, **headers):
    """Have the server answer with this."""
    content = content if isinstance(content, bytes) else json.dumps(content).encode()

    def answer(handler):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", f"{len(content)}")
        handler.end_headers()
        handler.wfile.write(content)

    server.answer = answer


def asked(server, query="up"):
    return server_of(server.url).value(query, 1000.0, 1016.0)


def data(result, kind="matrix"):
    return {"status": "success", "data": {"resultType": kind, "result": result}}


def test_a_query_is_asked_for_all_along_the_window_and_its_mean_counts(server):
    assert asked(server) == 12.5
    [(path, fields)] = server.asked_for
    assert path == "/api/v1/query_range"
    assert fields == {"query": "up", "start": "1000.000", "end": "1016.000", "step": "1.000"}
    answering(server, data([{"metric": {}, "values": [[1000, "1"], [1001, "NaN"], [1002, "2"]]}]))
    assert asked(server) == 1.5


def test_a_query_over_the_window_is_asked_for_at_its_end(server):
    assert asked(server, "rate(x[$window]) / rate(y[$window])") == 12.5
    [(path, fields)] = server.asked_for
    assert path == "/api/v1/query"
    assert fields == {"query": "rate(x[16000ms]) / rate(y[16000ms])", "time": "1016.000"}


def test_a_path_before_the_api_is_kept(server):
    assert server_of(f"{server.url}/prom/").value("up", 1000.0, 1016.0) == 12.5
    assert server.asked_for[0][0] == "/prom/api/v1/query_range"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (data([]), "has no number in this window"),
        (data([{"metric": {}, "values": [[1, "NaN"], [2, "+Inf"]]}]), "has no number in this window"),
        (data([{"values": [[1, "1"]]}, {"values": [[1, "2"]]}]), "has 2 values"),
        (data([{"metric": {}, "values": [[1, 7]]}]), "cannot be read"),
        (data([{"metric": {}, "values": [[1, "seven"]]}]), "cannot be read"),
        (data([{"metric": {}, "values": [[1, "1" * 5000]]}]), "cannot be read"),
        (data([{"metric": {}, "values": {"a": 1}}]), "cannot be read"),
        (data("none", "string"), "has 4 values"),
        (data(7), "cannot be read"),
        ({"data": {}}, "cannot be read"),
        ([], "cannot be read"),
        (None, "cannot be read"),
        (b"<html>", "was not answered"),
        (b"[" * 200_000, "was not answered"),
        (b'"' + b"x" * (5 << 20) + b'"', "longer than 4 MiB"),
    ],
)
def test_an_answer_without_one_number_is_none(server, content, why):
    answering(server, content)
    with pytest.raises(MetricUnavailable, match=why):
        asked(server)


def test_what_the_server_says_is_quoted(server):
    answering(server, {"status": "error", "error": "\x1b[31mparse error\nVerdict: better"}, status=400)
    with pytest.raises(MetricUnavailable) as refused:
        asked(server)
    assert "\x1b" not in refused.value.message
    assert "\n" not in refused.value.message
    assert "parse error" in refused.value.message


@pytest.mark.parametrize("status", [301, 302, 404, 500])
def test_no_other_status_is_an_answer_and_no_redirection_is_followed(server, status):
    answering(server, data([]), status=status, Location=f"{server.url}/elsewhere")
    with pytest.raises(MetricUnavailable, match=f"status {status}"):
        asked(server)
    assert len(server.asked_for) == 1


def test_a_server_that_sends_a_byte_now_and_then_is_given_up(monkeypatch):
    monkeypatch.setattr(prometheus, "LIMIT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ends = threading.Event()

        def drip():
            connection, _peer = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while not ends.wait(0.1):
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        with pytest.raises(MetricUnavailable, match="was not answered"):
            server_of(f"http://127.0.0.1:{listener.getsockname()[1]}").value("up", 1.0, 2.0)
        assert time.monotonic() - began < 20, "not for as long as it drips"
        ends.set()
        thread.join()


def test_a_server_that_is_not_there_is_named():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(MetricUnavailable, match=rf"was not answered by 127\.0\.0\.1:{port}"):
        server_of(f"http://127.0.0.1:{port}").value("up", 1.0, 2.0)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "9090",
        "ftp://x",
        "http://",
        "file:///etc/passwd",
        "http://u:p@x",
        "http://x?a=1",
        "http://x:99999",
        "http://a b",
    ],
)
def test_what_is_no_server_is_refused(address):
    with pytest.raises(UsageError):
        server_of(address)


@pytest.mark.parametrize(
    ("query", "seconds"),
    [
        ("up", 0),
        ("rate(x[5m])", 300),
        ("rate(x[1m30s]) + y[10s:1s]", 90),
        ('rate(x{a="[9h]"}[250ms])', 0.25),
        ("rate(x[$window])", 0),
    ],
)
def test_how_far_a_query_looks_back_is_seen(query, seconds):
    assert look_back_s(query) == seconds
