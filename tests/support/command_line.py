"""The command line, called in this process, on folders of its own and with a scripted lab."""

from __future__ import annotations

import re
import signal

import pytest
from typer.testing import CliRunner

from schedagent.cli import app as cli
from schedagent.cli import common
from schedagent.run import opening
from tests.support import scripted_lab as scripted


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Cache, state and configuration of their own."""
    for variable, name in (("SCHEDAGENT_CACHE", "cache"), ("SCHEDAGENT_STATE", "state"), ("XDG_CONFIG_HOME", "config")):
        monkeypatch.setenv(variable, str(tmp_path / name))
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def run(folders):
    """Call the command line in this process; no traceback may ever reach the user."""

    def call(*words, given=None):
        result = CliRunner().invoke(cli.app, [str(word) for word in words], input=given)
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        assert "Traceback" not in result.output
        return result

    return call


@pytest.fixture
def script(folders, monkeypatch):
    """A lab and a verifier that follow a script, in the place of the micro-VM."""
    script = scripted.Script(folders)
    monkeypatch.setattr(opening, "open_lab", lambda _settings: scripted.Lab(script))
    monkeypatch.setattr(opening, "open_verifier", lambda _settings: scripted.Verifier(script))
    monkeypatch.setattr(opening, "load_library", lambda: scripted.LIBRARY)
    return script


def refused(result, message, status=common.EXIT_USAGE):
    """Whether a call ended with this status and message, on stderr only; rich-less text, words may be wrapped."""
    text = " ".join(result.stderr.split())
    assert result.exit_code == status, result.output
    assert re.search(message, text), text
    assert result.stdout == ""
    return text
