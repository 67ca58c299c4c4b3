"""`schedagent deploy --keep`: a lease is renewed and the workload's metric reported for as long as the keeper lives."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner

from schedagent.cli.app import app
from schedagent.client.keeper import CommandMetric, Keeper, QueryMetric
from schedagent.core.errors import MetricUnavailable, Refused, SetupError, UsageError
from schedagent.core.token import digest_inputs
from tests.support.daemon_processes import ROOT, Agent, Daemon, until
from tests.support.deploy_orders import CANARY, content_of, order_of
from tests.support.scripted_kernel import RemoteWorld

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def start(tmp_path, kernel):
    world = RemoteWorld(kernel)
    world.reset()
    daemons = []

    def started(**config):
        daemons.append(Daemon(tmp_path / "d", kernel, **config).start())
        return daemons[-1]

    yield started
    for daemon in daemons:
        daemon.end()
    world.close()


def newest(daemon):
    return daemon.client.ask("history", limit=1)["history"][0]


def ended(daemon):
    return daemon.client.ask("status")["active"] is None


class TestLease:
    def test_it_lives_as_long_as_its_keeper(self, start):
        daemon = start()
        agent = Agent(daemon, daemon.deploy(lease_s=1)["deployment"])
        time.sleep(2.2)
        assert daemon.state["enabled"]
        agent.kill()
        until(lambda: ended(daemon), 2)
        assert (newest(daemon)["end"], newest(daemon)["detail"]) == ("lease lapsed", "nobody renewed it")
        assert not daemon.state["enabled"]

    def test_it_tells_what_happens_and_ends_with_it(self, start):
        daemon = start(probation_s={"canary": 0.3, "full": 0.0})
        number = daemon.deploy(lease_s=1)["deployment"]
        agent = Agent(daemon, number)
        said = daemon.folder / "agent"
        until(lambda: said.exists() and "proven" in said.read_text(), 5)
        daemon.tell_kernel("end_policy")
        assert agent.wait() == 3
        assert (daemon.folder / "agent").read_text().splitlines() == [
            f"deployment {number}: running, stage canary",
            f"deployment {number}: running and proven, stage canary",
        ]

    def test_it_goes_on_when_schedagentd_starts_again(self, start):
        daemon = start(rollback="not_on_exit")
        number = daemon.deploy(lease_s=3)["deployment"]
        agent = Agent(daemon, number, lease_s=3.0)
        until(lambda: daemon.client.ask("status")["active"]["pinned"])
        daemon.end()
        time.sleep(0.8)
        daemon.start()
        assert daemon.client.ask("status")["active"]["deployment"] == number
        daemon.client.ask("rollback")
        assert agent.wait() == 0
        assert "schedagentd is not running" in (daemon.folder / "agent").read_text()

    def test_what_is_restored_is_kept_on(self, start):
        """Its keeper stands by while another one is in charge, for nobody else would renew it."""
        daemon = start()
        first = daemon.deploy("first", lease_s=1)["deployment"]
        until(lambda: daemon.client.ask("status")["active"]["proven"])
        agent = Agent(daemon, first)
        second = daemon.deploy("second", lease_s=60)["deployment"]
        said = daemon.folder / "agent"
        until(lambda: said.exists() and "kept on" in said.read_text(), 5)
        daemon.tell_kernel("end_policy")
        until(lambda: daemon.client.ask("status")["active"]["restores"] == first)
        until(lambda: f"deployment {second + 1}: running" in said.read_text(), 5)
        until(lambda: daemon.client.ask("status")["active"]["since_s"] > 2, 5)  # its lease is a second
        daemon.client.ask("rollback")
        assert agent.wait() == 0
        assert f"deployment {first}: replaced by deployment {second}" in said.read_text()

    def test_ctrl_c_of_one_that_stands_by_leaves_the_other_alone(self, start):
        daemon = start()
        first = daemon.deploy("first", lease_s=60)["deployment"]
        until(lambda: daemon.client.ask("status")["active"]["proven"])
        keeper = Keeper(daemon.client, first, 60.0, lambda _line: None)
        second = daemon.deploy("second", lease_s=60)["deployment"]
        assert keeper._check() is None
        assert keeper.roll_back()["end"] == "replaced"
        assert daemon.client.ask("status")["active"]["deployment"] == second

    def test_it_bears_being_refused_for_a_while(self, start):
        """Another process of the user asks too often."""
        daemon = start()
        number = daemon.deploy(lease_s=30)["deployment"]
        answers, said = iter([False, False, True]), []

        class Busy:
            def ask(self, verb, **fields):
                if not next(answers, True):
                    raise Refused("more than 10 requests a second")
                if verb == "renew":
                    daemon.client.ask("rollback")
                return daemon.client.ask(verb, **fields)

        told = Keeper(Busy(), number, 0.5, said.append).run()
        assert (told["end"], said[0]) == ("rolled back", "more than 10 requests a second")

    def test_it_gives_up_with_the_lease(self, start):
        daemon = start()
        number = daemon.deploy(lease_s=1)["deployment"]
        daemon.end()
        begun = time.monotonic()
        with pytest.raises(SetupError, match="not running"):
            Keeper(daemon.client, number, 1.0, lambda _line: None).run()
        assert 3 < time.monotonic() - begun < 5


class TestMetric:
    def test_worse_than_before_trips_it(self, start, tmp_path):
        daemon = start(baseline_samples=12)
        value = tmp_path / "value"
        value.write_text("100")
        request = request_with(better="higher")
        agent = Agent(daemon, request=request, lease_s=2.0, metric=lambda: float(value.read_text()), every_s=0.0)
        until(lambda: daemon.state["enabled"])
        value.write_text("50")
        assert agent.wait() == 3
        assert newest(daemon)["end"] == "worse workload metric"
        assert newest(daemon)["detail"].endswith("100 before it")

    def test_one_that_cannot_be_measured_any_more(self, start):
        daemon = start()
        values = iter([1.0])

        def metric():
            try:
                return next(values)
            except StopIteration:
                raise MetricUnavailable("it is gone") from None

        number = daemon.deploy(lease_s=30, better="lower")["deployment"]
        said = []
        with pytest.raises(MetricUnavailable, match="was rolled back, because it could not be watched: it is gone"):
            Keeper(daemon.client, number, 1.0, said.append, metric, 0.0).run()
        assert (newest(daemon)["end"], daemon.state["enabled"]) == ("rolled back", False)
        assert said.count("it is gone") == 1

    @pytest.mark.parametrize(
        ("command", "why"),
        [
            ("echo fast", "is not a number"),
            ("echo nan", "is not a number"),
            ("echo 1e300", "is not a number"),
            ("echo", "is not a number"),
            ("sh -c 'echo 3; exit 4'", "ended with status 4"),
            ("no-such-program", "is not installed"),
            ("sleep 5", "did not end"),
        ],
    )
    def test_commands_without_a_number(self, command, why):
        with pytest.raises(MetricUnavailable, match=why):
            CommandMetric(command, 0.3)()

    @pytest.mark.parametrize(("command", "why"), [("echo 'a", "cannot be read"), ("", "is empty")])
    def test_no_commands(self, command, why):
        with pytest.raises(UsageError, match=why):
            CommandMetric(command, 0.3)

    def test_a_command(self):
        assert CommandMetric("echo -12.5", 5.0)() == -12.5
        assert CommandMetric("echo 3; echo 4", 5.0).command, "no shell runs it"
        with pytest.raises(MetricUnavailable):
            CommandMetric("echo 3; echo 4", 5.0)()


class _Prometheus(BaseHTTPRequestHandler):
    def do_GET(self):
        query = parse_qs(urlsplit(self.path).query)["query"][0]
        result = {
            "up": [{"metric": {}, "value": [1.0, "1"]}],
            "two": [{"value": [1.0, "1"]}, {"value": [1.0, "2"]}],
            "none": [],
            "nan": [{"value": [1.0, "NaN"]}],
            "scalar(up)": [1.0, "7.5"],
        }.get(query)
        kind = "scalar" if query.startswith("scalar") else "vector"
        content = json.dumps({"status": "success", "data": {"resultType": kind, "result": result}}).encode()
        if query == "garbage":
            self.wfile.write(b"SSH-2.0-OpenSSH_9.9\r\n")
            return
        self.send_response(200 if result is not None else 400)
        self.end_headers()
        self.wfile.write(content if query != "up" or self.path.startswith("/api/v1/query?") else b"")

    def log_message(self, *_):
        pass


@pytest.fixture
def url():
    """Of a server whose thread is gone before another test forks."""
    with HTTPServer(("127.0.0.1", 0), _Prometheus) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class TestQuery:
    """Against the HTTP API of Prometheus as its documentation has it."""

    def test_values(self, url):
        assert (QueryMetric(url, "up", 5.0)(), QueryMetric(f"{url}/", "scalar(up)", 5.0)()) == (1.0, 7.5)

    @pytest.mark.parametrize(
        ("query", "why"),
        [
            ("two", "has 2 values"),
            ("none", "has no value"),
            ("nan", "is not a number"),
            ("bad(", "was not answered"),
            ("garbage", "was not answered"),
        ],
    )
    def test_no_values(self, url, query, why):
        with pytest.raises(MetricUnavailable, match=why):
            QueryMetric(url, query, 5.0)()

    def test_a_server_that_is_down(self):
        with pytest.raises(MetricUnavailable, match="was not answered"):
            QueryMetric("http://127.0.0.1:1", "up", 1.0)()

    @pytest.mark.parametrize("url", ["file:///etc", "prometheus", ""])
    def test_no_servers(self, url):
        with pytest.raises(UsageError, match="is not the address"):
            QueryMetric(url, "up", 1.0)


def request_with(**fields):
    from tests.support.daemon_processes import request_of

    return request_of() | {"cgroup": CANARY, "stage": "canary"} | fields


@pytest.fixture
def files(tmp_path):
    object_file, report = tmp_path / "good.bpf.o", tmp_path / "good.json"
    object_file.write_bytes(content_of())
    token = order_of(inputs_digest=digest_inputs((), ())).token
    report.write_text(json.dumps({"policy": "good", "token": token, "passed": True}))
    return [str(object_file), "--report", str(report), "--cgroup", CANARY, "--stage", "canary"]


class TestCommandLine:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_stopping_it_rolls_back(self, start, files, number):
        daemon = start()
        words = [sys.executable, "-m", "schedagent", "deploy", *files, "--keep", "--lease", "30"]
        words += ["--metric-command", "echo 5", "--metric-better", "lower", "--metric-every", "1"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        words += ["--socket", str(daemon.config.socket)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(words, env=environment, stdout=pipe, stderr=pipe, text=True)
        assert re.match(r"deployment \d+: running", process.stderr.readline())
        process.send_signal(number)
        told, errors = process.communicate(timeout=20)
        assert (process.returncode, "ended: rolled back" in told) == (0, True), errors
        assert "stopping: rolling back" in errors
        assert not daemon.state["enabled"]

    @pytest.mark.parametrize(
        ("words", "why"),
        [
            (["--keep", "--lease", "5"], "cannot be kept"),
            (["--metric-command", "echo 5"], "which way the metric is better"),
            (["--metric-better", "lower"], "a metric is one of"),
            (["--metric-command", "x", "--metric-query", "u", "q", "--metric-better", "lower"], "a metric is one of"),
            (["--metric-command", "echo 5", "--metric-better", "lower"], "add --keep"),
            (["--metric-command", "echo 5", "--metric-better", "faster", "--keep"], "is not one of 'higher', 'lower'"),
            (["--metric-command", "echo 'x", "--metric-better", "lower", "--keep"], "cannot be read"),
            (["--metric-query", "prometheus", "up", "--metric-better", "lower", "--keep"], "is not the address"),
        ],
    )
    def test_mistakes_deploy_nothing(self, start, files, words, why):
        daemon = start()
        result = CliRunner().invoke(app, ["deploy", *files, *words, "--socket", str(daemon.config.socket)])
        assert (result.exit_code, why in result.output) == (2, True), result.output
        assert daemon.client.ask("history")["history"] == []

    @pytest.mark.parametrize(
        ("words", "why"),
        [
            (["--metric-command", "echo x"], "is not a number"),
            (["--metric-command", "false"], "ended with status 1"),
            (["--metric-query", "http://127.0.0.1:1", "up"], "was not answered"),
        ],
    )
    def test_a_metric_that_cannot_be_measured_deploys_nothing(self, start, files, words, why):
        """A failure (1), not bad usage (2): the same words work once the server is up."""
        daemon = start()
        words = ["deploy", *files, *words, "--metric-better", "lower", "--keep", "--socket", str(daemon.config.socket)]
        result = CliRunner().invoke(app, words)
        assert (result.exit_code, why in result.output) == (1, True), result.output
        assert daemon.client.ask("history")["history"] == []

    def test_a_process_tree(self, start, files):
        daemon = start()
        words = ["deploy", *files[:3], "--pid", "42", "--socket", str(daemon.config.socket)]
        result = CliRunner().invoke(app, words)
        assert "stage pulse (process 42 and its descendants)" in result.output
        assert "pulses of 0.02 s, 0 pairs compared" in result.output
        assert daemon.state["moved"] == []
