"""The exporter as a process over a socket that was there before it, without any way to the network of its own."""

from __future__ import annotations

import gzip
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from schedagent.core.errors import SetupError, UsageError
from schedagent.metrics import server
from schedagent.metrics.catalog import FAMILIES, PARTS
from schedagent.metrics.exporter import build_registry
from schedagent.metrics.server import AT_ONCE, MetricsServer, listen
from tests.support.exporter_process import ROOT, Scrape, exporting

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """An exporter beside a daemon that runs a policy, and a repository with a run in it."""
    with exporting(tmp_path_factory.mktemp("exported")) as process:
        yield process
    assert process.status == 0, process.log
    assert "Traceback" not in process.log


def test_every_part_is_scraped(running):
    found = running.scrape()
    assert {part: found("up", part=part) for part in PARTS} == dict.fromkeys(PARTS, 1.0), running.log
    assert found("deployment_info", policy="fifo", stage="canary") == 1
    assert found("runs", status="finished") == 1
    assert found("model_calls_total", role="planning") == 1
    assert found("run_queue_watched_threads") > 1
    time.sleep(1.1)
    assert running.scrape()("run_queue_delay_seconds_count") > 0


def test_every_family_is_described(running):
    text = running.scrape().text
    for family in (one for group in FAMILIES.values() for one in group):
        assert f"# TYPE {family.name} {family.kind}\n" in text
        assert f"# HELP {family.name} {family.text}\n" in text


def test_formats(running):
    with running.get(Accept="application/openmetrics-text; version=1.0.0") as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        assert list(text_string_to_metric_families(answer.read().decode()))
    with running.get(**{"Accept-Encoding": "gzip"}) as answer:
        assert "schedagent_up" in gzip.decompress(answer.read()).decode()
    with running.get("/metrics?name[]=schedagent_up") as answer:
        assert Scrape(answer.read().decode()).names == {"schedagent_up"}
    with running.get("/") as answer:
        assert b"/metrics" in answer.read()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        running.get("/etc/passwd")


def test_nonsense_and_silence_leave_it_alone(running):
    connections = []
    for content in (b"", b"\r\n\r\n", b"GET\r\n\r\n", b"x" * 200_000, b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x00"):
        connection = socket.create_connection(("127.0.0.1", running.port))
        connections.append(connection)
        connection.sendall(content)
    assert running.scrape()("up", part="kernel") == 1
    for connection in connections:
        connection.close()
    assert running.scrape()("up", part="kernel") == 1


def test_the_daemon_may_come_and_go(running):
    running.daemon.end(signal.SIGTERM)
    time.sleep(1.1)
    found = running.scrape()
    assert (found("up", part="schedagentd"), found("up", part="repository")) == (0, 1)
    assert found("deployment_in_charge") is None
    running.daemon.start()
    time.sleep(1.1)
    found = running.scrape()
    assert (found("up", part="schedagentd"), found("deployment_in_charge")) == (1, 0)
    assert found("deployments_ended_total", stage="canary", end="stopped") == 1


class TestAlone:
    """Without systemd."""

    def test_listening_by_itself(self, tmp_path):
        words = [sys.executable, "-m", "schedagent", "metrics", "serve", "--listen", "127.0.0.1:0"]
        environment = {"PYTHONPATH": str(ROOT), "SCHEDAGENT_STATE": str(tmp_path), "HOME": str(tmp_path)}
        process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            address = process.stderr.readline().strip()
            assert address.startswith("http://127.0.0.1:")
            port = int(address.removesuffix("/metrics").rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
            assert b'schedagent_up{part="kernel"} 1.0' in answer
            assert list(tmp_path.iterdir()) == [], "looking makes no files"
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        finally:
            process.kill()
            process.communicate()

    def test_show_prints_once(self, tmp_path):
        words = [sys.executable, "-m", "schedagent", "metrics", "show", "--socket", str(tmp_path / "none")]
        environment = {"PYTHONPATH": str(ROOT), "SCHEDAGENT_STATE": str(tmp_path), "HOME": str(tmp_path)}
        shown = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=True)
        found = Scrape(shown.stdout)
        assert (found("up", part="host"), found("up", part="schedagentd")) == (1, 0)
        assert "nobody listens on" in shown.stderr
        as_json = subprocess.run([*words, "--json"], env=environment, capture_output=True, timeout=60, check=True)
        families = {family["name"]: family for family in json.loads(as_json.stdout)["metrics"]}
        up = {sample["labels"]["part"]: sample["value"] for sample in families["schedagent_up"]["samples"]}
        assert (up["host"], up["schedagentd"]) == (1, 0)
        assert families["schedagent_up"]["type"] == "gauge"
        assert found.names == {sample["name"] for family in families.values() for sample in family["samples"]}

    @pytest.mark.parametrize("address", ["", "9759", ":9759", "host:", "127.0.0.1:http", "127.0.0.1:65536"])
    def test_addresses_that_are_none(self, address):
        with pytest.raises(UsageError, match="no address"):
            listen(address)

    def test_an_address_that_is_taken(self):
        with listen("127.0.0.1:0") as first, pytest.raises(SetupError, match="cannot listen"):
            listen(f"127.0.0.1:{first.getsockname()[1]}")

    def test_ipv6(self):
        if socket.has_ipv6:
            with listen("[::1]:0") as listener:
                assert listener.family == socket.AF_INET6


def test_room_for_a_few_at_a_time(monkeypatch):
    """Those who keep still are let go after a while; until then others find the door shut, and no heap of threads."""
    monkeypatch.setattr(server.Handler, "timeout", 1.0)
    others = threading.active_count()
    with listen("127.0.0.1:0") as listener:
        place = listener.getsockname()
        serving = MetricsServer(listener, build_registry([]))
        thread = threading.Thread(target=serving.serve_forever, args=(0.05,))
        thread.start()
        try:
            idle = [socket.create_connection(place) for _ in range(AT_ONCE)]
            time.sleep(0.2)
            late = socket.create_connection(place)
            assert late.recv(1) == b""
            assert threading.active_count() - others < AT_ONCE + 10
            assert idle[0].recv(1) == b"", "it said nothing for a second"
            time.sleep(0.3)
            with socket.create_connection(place) as again:
                again.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert again.recv(15) == b"HTTP/1.0 200 OK"
            for connection in (late, *idle):
                connection.close()
        finally:
            serving.shutdown()
            thread.join()
