"""The guest agent's port: it may appear only after the driver that was loaded for it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from verifier.guest import agent
from verifier.microvm import jobs


@pytest.fixture
def ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(agent, "PORTS", tmp_path)
    monkeypatch.setattr("os.open", lambda path, _flags: path)
    return tmp_path


def test_a_port_that_appears_late_is_opened(ports: Path) -> None:
    def appear() -> None:
        time.sleep(0.1)
        for name, folder in (("another", "vport0p1"), (jobs.PORT_NAME, "vport0p2")):
            (ports / folder).mkdir()
            (ports / folder / "name").write_text(f"{name}\n")

    thread = threading.Thread(target=appear)
    thread.start()
    assert agent.open_port() == "/dev/vport0p2"
    thread.join()


@pytest.mark.usefixtures("ports")
def test_a_machine_without_the_port_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "PORT_WAIT_S", 0.05)
    with pytest.raises(FileNotFoundError, match=jobs.PORT_NAME):
        agent.open_port()
