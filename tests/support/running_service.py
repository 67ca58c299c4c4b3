"""A service that runs, a Prometheus that knows of it, and a real schedagentd over a scripted kernel, for experiments.

The metric follows what the scripted kernel has in charge: nothing else of it is scripted. Windows are short.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

from kernel_bpf.load.sched_ext import KernelState
from schedagent.core import trusted
from schedagent.experiment import rule, spec, windows
from schedagent.hostlab import lab as host_lab
from schedagent.hostlab import machine
from schedagent.run import opening
from schedagent.schedagentd import decisions
from tests.support import scripted_lab as scripted
from tests.support.daemon_processes import Daemon
from tests.support.scripted_kernel import BUILD_ID, RELEASE
from verifier.signer import Signer

WINDOW = ("--window", "0.25s", "--wash-out", "0.05s")
BUSY = "import time\nwhile True:\n    time.sleep(0.002)\n    sum(range(2000))\n"


@contextmanager
def service():
    """A process that works a little, again and again."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()


class Timeline:
    """Since when which scheduler has been in charge, by looking at the scripted kernel all the time."""

    def __init__(self, daemon):
        self._daemon, self._seen, self._ends = daemon, [(0.0, False)], threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def close(self):
        self._ends.set()
        self._thread.join()

    def _look(self):
        while not self._ends.wait(0.005):
            enabled = self._daemon.state["enabled"]
            if enabled != self._seen[-1][1]:
                self._seen.append((time.time(), enabled))

    @property
    def pulses(self):
        """How often a policy came in charge."""
        return sum(enabled for _at, enabled in self._seen)

    def share(self, begin, end):
        """The part of a time in which a policy was in charge."""
        edges = [*self._seen, (float("inf"), False)]
        inside = [
            max(0.0, min(after, end) - max(at, begin))
            for (at, enabled), (after, _next) in itertools.pairwise(edges)
            if enabled
        ]
        return sum(inside) / max(1e-9, end - begin)


class Prometheus:
    """A real HTTP server that answers as Prometheus does.

    Args:
        value: called with begin and end of what is asked for (Unix time); None for no series.
    """

    def __init__(self, value):
        self.value, self.asked_for, self.answer = value, [], None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer._do(self)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def _do(self, handler):
        parts = urlsplit(handler.path)
        fields = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.asked_for.append((parts.path, fields))
        if self.answer:
            self.answer(handler)
            return
        ranged = parts.path.endswith("query_range")
        begin, end = (float(fields[name]) for name in (("start", "end") if ranged else ("time", "time")))
        number = self.value(begin, end)
        points = {"values": [[begin, f"{number}"], [end, f"{number}"]]} if ranged else {"value": [end, f"{number}"]}
        result = [] if number is None else [{"metric": {}, **points}]
        data = {"resultType": "matrix" if ranged else "vector", "result": result}
        content = json.dumps({"status": "success", "data": data}).encode()
        handler.send_response(200)
        handler.send_header("Content-Length", f"{len(content)}")
        handler.end_headers()
        handler.wfile.write(content)


class Experiments:
    """All of it.

    Args:
        ratio: the metric under a policy / under the default scheduler.
        noise: its standard deviation.
        trials_per_hour: that schedagentd allows.
    """

    def __init__(self, folder, kernel, run, patch, *, ratio=0.7, noise=0.02, trials_per_hour=3600):
        self.ratio, self.noise, self.random, self.run = ratio, noise, Random(3), run
        self.script = scripted.Script(folder, signs=True, kernel=(RELEASE, BUILD_ID))
        patch.setattr(decisions, "REST_S", 0.02)
        self.daemon = Daemon(folder / "daemon", kernel, trials_per_hour=trials_per_hour)
        signer = Signer(self.script.settings.keys_dir / "signing.key", create=True)
        trusted.trust(folder / "daemon" / "keys", signer.public_key)
        self.daemon.start()
        self.timeline = Timeline(self.daemon)
        self.prometheus = Prometheus(self._metric)
        self._patch(patch)

    def _patch(self, patch):
        patch.setattr(opening, "open_lab", lambda _settings: self.script.lab())
        patch.setattr(opening, "open_verifier", lambda _settings: self.script.verifier())
        patch.setattr(opening, "load_library", lambda: scripted.LIBRARY)
        patch.setattr(opening, "DaemonClient", lambda: self.daemon.client)
        patch.setattr(opening, "default_kernel", lambda _settings: SimpleNamespace(release=os.uname().release))
        for module in (host_lab, machine, windows):
            patch.setattr(module, "kernel_state", self.kernel_state)
        for module in (machine, windows):
            patch.setattr(module, "REST_S", 0.03)
        patch.setattr(rule, "BUILT_IN", ())  # in a fifth of a second they show what else this machine does
        patch.setattr(spec, "SHORTEST_WINDOW_S", 0.1)
        patch.setattr(spec, "SWITCHES_S", 0.2)

    def close(self):
        self.timeline.close()
        self.prometheus.close()
        self.daemon.end()

    def kernel_state(self):
        return KernelState(**self.daemon.tell_kernel("state"))

    def _metric(self, begin, end):
        usual = 10.0 * (1 + self.random.gauss(0, self.noise))
        return usual * (1 + self.timeline.share(begin, end) * (self.ratio - 1))

    def __call__(self, pid, *words, metric=True):
        """Call `schedagent experiment` on a process."""
        compared = ("--metric-query", self.prometheus.url, "p99", "--better", "lower") if metric else ()
        return self.run("experiment", "--pid", pid, *compared, *WINDOW, "--for", "30s", *words)
