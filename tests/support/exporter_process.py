"""The exporter as a process over an inherited socket, and what it has to look at: really recorded runs, a daemon."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.daemon_processes import Daemon, scripted_kernel
from tests.support.model_server import ModelServer
from tests.support.model_session import proposed
from tests.support.paths import ROOT
from tests.support.scripted_lab import Script
from tests.support.scripted_model import COMPOSED, ONE_PLAN, Mind, on, plan

LAUNCHER = Path(__file__).with_name("without_network.py")


def recorded_run(folder):
    """Drive a run with a scripted lab and a scripted model to its end; return the script and the run's report."""
    (folder / "state").mkdir(exist_ok=True)
    script = Script(folder, options=ONE_PLAN, ratios={"tail_first": 0.8, "longest_first": 1.3}, faults={"fifo": "exit"})
    with ModelServer(Mind([plan(COMPOSED, proposed())])) as server:
        thinking = on(script, server)
        return thinking, thinking.drive(thinking.create())


class Scrape:
    """What the exporter answered.

    Args:
        text: in Prometheus' format.
    """

    def __init__(self, text):
        self.text = text
        self.samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def __call__(self, name, **labels):
        """The value of one series; None if there is none."""
        return self.samples.get((f"schedagent_{name}", tuple(sorted(labels.items()))))

    @property
    def names(self):
        return {name for name, _labels in self.samples}


class Process:
    """A running exporter."""

    def __init__(self, process, port):
        self.process, self.port = process, port

    def get(self, path="/metrics", **headers):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return opener.open(request, timeout=20)

    def scrape(self):
        with self.get() as answer:
            return Scrape(answer.read().decode())


@contextmanager
def exporter(state_dir, daemon_socket, *launcher):
    """Start the exporter as systemd does: the socket is there before it.

    Args:
        launcher: words before the program; by default what takes the network away.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        words = [sys.executable, "-m", "schedagent", "metrics", "serve", "--socket", str(daemon_socket)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "SCHEDAGENT_STATE": str(state_dir)}
        fd = listener.fileno()
        before = launcher or (sys.executable, str(LAUNCHER), str(fd))
        process = subprocess.Popen([*before, *words], env=environment, pass_fds=(fd,), stderr=subprocess.PIPE)
        running = Process(process, listener.getsockname()[1])
    try:
        yield running
    finally:
        process.terminate()
        running.log = process.communicate(timeout=20)[1].decode()
        running.status = process.returncode


@contextmanager
def exporting(folder):
    """An exporter beside a daemon that runs a policy, and a repository with a run in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "127.0.0.1")
        script, _report = recorded_run(folder)
    with scripted_kernel(folder) as kernel:
        daemon = Daemon(folder / "d", kernel).start()
        daemon.deploy("fifo")
        with exporter(script.settings.state_dir, daemon.config.socket) as process:
            process.daemon = daemon
            yield process
        daemon.end()
