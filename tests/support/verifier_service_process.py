"""The verifier service as a process over a scripted bench."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.paths import ROOT


class Service:
    """A running service."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.path = folder / "verifier.sock"
        self.keys = folder / "keys"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
        program = [sys.executable, ROOT / "tests/support/scripted_verifier_service.py", self.path, self.keys, *options]
        with (folder / "log").open("a") as log:
            self.process = subprocess.Popen(program, env=environment, stderr=log)
        wait_for(lambda: self.path.exists() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def left_behind(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.name.startswith("schedagent-"))

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(30)
        wait_for(lambda: not refused(connection, self.path))
        return connection

    def ask(self, message) -> list[dict]:
        """Send bytes, or a message; return all answers."""
        with self.connect() as connection:
            line = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n"
            with suppress(ConnectionError):
                connection.sendall(line)
            return answers(connection)

    def fault(self, message) -> tuple[str, str]:
        [answer] = self.ask(message)
        return answer["fault"]["kind"], answer["fault"]["message"]

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(20)


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def running(*options):
    folder = Path(tempfile.mkdtemp(prefix="service-"))
    folder.chmod(0o711)
    service = Service(folder, *options)
    try:
        yield service
    finally:
        service.process.kill()
        service.process.wait()
        shutil.rmtree(folder)


def refused(connection, path):
    try:
        connection.connect(str(path))
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    return False


def answers(connection) -> list[dict]:
    found = []
    with connection.makefile("rb") as stream, suppress(ConnectionError):  # told to go before all was sent
        for line in stream:
            found.append(json.loads(line))
    return found
