"""`schedagent keys` and `schedagent verifier serve` as a user meets them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from schedagent.cli import app as cli
from schedagent.cli import common
from schedagent.cli.verify import DEFAULT_GROUP, admitted, socket_path
from schedagent.core.errors import UsageError
from schedagent.core.settings import load_settings
from schedagent.core.token import key_id
from schedagent.core.trusted import load_trusted, trust
from schedagent.run import opening
from schedagent.run.opening import open_verifier
from schedagent.verification.files import VerifyOptions, choose_verifier
from verifier.service.client import RemoteVerifier
from verifier.signer import Signer

PRIVATE = re.compile(rb"PRIVATE|MC4CAQAwBQYDK2Vw")
"""What every Ed25519 private key in PKCS#8 begins with, in base64."""


@pytest.fixture
def state(tmp_path, monkeypatch):
    for variable, name in (("SCHEDAGENT_CACHE", "cache"), ("SCHEDAGENT_STATE", "state"), ("XDG_CONFIG_HOME", "config")):
        monkeypatch.setenv(variable, str(tmp_path / name))
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path / "state"
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def keys(state):
    """Call `schedagent keys`; it never shows a private key or a traceback."""

    def call(*words, **options):
        result = CliRunner().invoke(cli.app, ["keys", *map(str, words)], **options)
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        assert "Traceback" not in result.output
        assert not PRIVATE.search(result.output.encode())
        return result

    return call


def listed(keys):
    return {row["key"]: row["state"] for row in json.loads(keys("list", "--json").stdout)}


def signing(keys):
    [named] = [key for key, state in listed(keys).items() if state == "signs"]
    return named


@pytest.fixture
def other(tmp_path):
    """Another verifier's public key."""
    path = tmp_path / "other.pem"
    path.write_bytes(Signer(tmp_path / "other" / "signing.key").public_key)
    return path


def test_a_life(keys, state):
    assert "there are no keys" in keys("list").stdout
    first = json.loads(keys("create", "--json").stdout)
    assert [row["state"] for row in first] == ["signs"]
    assert PRIVATE.search((state / "keys" / "signing.key").read_bytes()), "the pattern finds what it must not find"
    second = json.loads(keys("rotate", "--json").stdout)
    states = {row["key"]: (row["state"], row["until"]) for row in second}
    assert states.pop(first[0]["key"])[0] == "replaced"
    assert list(states.values()) == [("signs", None)]
    keys("distrust", first[0]["key"])
    assert list(listed(keys).values()) == ["signs"]
    assert signing(keys) in keys("list").stdout


def test_create_keeps_what_is_there(keys, state):
    keys("create")
    before = (state / "keys" / "signing.key").read_bytes()
    again = keys("create")
    assert again.exit_code == common.EXIT_USAGE
    assert "keys rotate" in again.stderr
    assert (state / "keys" / "signing.key").read_bytes() == before


def test_export_gives_what_others_trust(keys, state, tmp_path):
    keys("create")
    pem = keys("export").stdout
    assert key_id(pem.encode()) == signing(keys)
    assert load_trusted(state / "keys" / "trusted") == (pem.encode(),)
    keys("export", "--output", tmp_path / "out.pem")
    assert (tmp_path / "out.pem").read_text() == pem
    assert keys("export", signing(keys)).stdout == pem
    assert keys("export", "0" * 16).exit_code == common.EXIT_USAGE


def test_trust_from_a_file_and_from_stdin(keys, other, state):
    named = key_id(other.read_bytes())
    assert json.loads(keys("trust", other, "--json").stdout)[0]["key"] == named
    assert (state / "keys").stat().st_mode & 0o777 == 0o700
    assert listed(keys) == {named: "trusted"}
    keys("distrust", named)
    keys("trust", "-", input=other.read_bytes())
    assert listed(keys) == {named: "trusted"}


@pytest.mark.parametrize("words", [["rotate"], ["export"]])
def test_nothing_is_made_unasked(keys, state, words):
    result = keys(*words)
    assert (result.exit_code, result.stdout) == (common.EXIT_FAILED, "")
    assert "keys create" in result.stderr
    assert not (state / "keys" / "signing.key").exists()


def test_the_signing_key_cannot_be_distrusted(keys):
    keys("create")
    result = keys("distrust", signing(keys))
    assert result.exit_code == common.EXIT_USAGE
    assert "keys rotate" in result.stderr
    assert keys("distrust", "0" * 16).exit_code == common.EXIT_USAGE


def test_what_is_no_public_key_is_not_trusted(keys, state, tmp_path):
    keys("create")
    (tmp_path / "text").write_text("nonsense")
    for file in (state / "keys" / "signing.key", tmp_path / "text"):
        result = keys("trust", file)
        assert (result.exit_code, result.stdout) == (common.EXIT_FAILED, "")
    for file in (tmp_path / "none", tmp_path):
        result = keys("trust", file)
        assert (result.exit_code, result.stdout) == (common.EXIT_USAGE, "")
        assert "cannot be read" in result.stderr
    assert list(listed(keys).values()) == ["signs"]


@pytest.mark.parametrize("fault", ["readable", "damaged", "missing", "linked", "trusted damaged", "trusted writable"])
def test_faults_are_named_with_what_to_do(keys, state, fault):
    keys("create")
    path = state / "keys" / "signing.key"
    [public] = (state / "keys" / "trusted").iterdir()
    if fault == "readable":
        path.chmod(0o644)
    elif fault == "damaged":
        path.write_bytes(b"x")
    elif fault == "missing":
        path.unlink()
    elif fault == "linked":
        path.rename(path.with_name("real"))
        path.symlink_to("real")
    elif fault == "trusted damaged":
        public.write_bytes(b"x")
    else:
        public.chmod(0o666)
    result = keys("rotate")
    assert (result.exit_code, result.stdout) == (common.EXIT_FAILED, "")
    assert str(public if "trusted" in fault else path) in result.stderr
    assert "hint: " in result.stderr


# --- verifier serve --------------------------------------------------------------------------------------------------


def test_where_the_service_listens(tmp_path):
    settings = replace(load_settings({"HOME": "/h"}), state_dir=tmp_path)
    assert socket_path(settings, None) == tmp_path / "verifier.sock"
    assert socket_path(replace(settings, verifier_socket=Path("/a")), None) == Path("/a")
    assert socket_path(replace(settings, verifier_socket=Path("/a")), Path("/b")) == Path("/b")


def test_who_may_ask():
    assert admitted(["nobody"], DEFAULT_GROUP).users == {65534}
    assert admitted([], "root").groups == {0}
    with pytest.raises(UsageError, match="no user 'no-such-user-here'"):
        admitted(["no-such-user-here"], DEFAULT_GROUP)
    with pytest.raises(UsageError, match="no group"):
        admitted([], "no-such-group-here")


def test_a_socket_in_the_settings_is_asked(tmp_path, other, monkeypatch):
    chosen = {"HOME": "/h", "SCHEDAGENT_VERIFIER_SOCKET": "/run/v.sock", "SCHEDAGENT_STATE": str(tmp_path)}
    settings = load_settings(chosen)
    trusted = trust(settings.keys_dir / "trusted", other.read_bytes()).pem
    monkeypatch.setattr(opening, "default_kernel", lambda _settings: SimpleNamespace(release="7.3.4"))
    found = open_verifier(settings)
    assert found == RemoteVerifier(Path("/run/v.sock"), on_gate=found.on_gate, kernel="7.3.4", trusted=(trusted,))
    chosen = choose_verifier(settings, VerifyOptions(kernel="6.18"))
    assert chosen == RemoteVerifier(Path("/run/v.sock"), on_gate=chosen.on_gate, kernel="6.18", trusted=(trusted,))
    with pytest.raises(UsageError, match="the verifier service decides on depth, topologies"):
        choose_verifier(settings, VerifyOptions(topologies=("flat",)))


PROGRAM = """
import sys
from schedagent.cli import app as cli
from schedagent.run import opening
from schedagent.verification import service
service.default_kernel = lambda _settings: None  # a service without a kernel does not start
cli.main()
"""


def handed_over(listener, words):
    """Do as systemd does: the socket is descriptor 3, and the pid is that of the program."""
    return ["bash", "-c", f'exec 3<&{listener.fileno()}; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"', "bash", *words]


@pytest.mark.timeout(60)
def test_a_socket_of_systemd_and_one_of_the_command_line_are_one_too_many(state, tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        words = [sys.executable, "-c", PROGRAM, "verifier", "serve", "--socket", tmp_path / "other"]
        done = subprocess.run(
            handed_over(listener, words), pass_fds=[listener.fileno()], capture_output=True, text=True, check=False
        )
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "error: systemd passed a socket already")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("activated", [False, True])
def test_serve(state, tmp_path, activated):
    """The program itself: it listens, refuses nonsense, and goes when told, taking only a socket of its own with it."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        words = [sys.executable, "-c", PROGRAM, "verifier", "serve"]
        if activated:
            listener.bind(str(path))
            listener.listen()
            words = handed_over(listener, words)
        else:
            words += ["--socket", path]
        process = subprocess.Popen(words, pass_fds=[listener.fileno()], stderr=subprocess.PIPE, env=dict(os.environ))
    deadline = time.monotonic() + 30
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.settimeout(30)
        connection.sendall(b"nonsense\n")
        assert json.loads(connection.makefile().readline())["fault"]["kind"] == "UsageError"
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1].decode()
    assert process.returncode == 0, said
    assert path.exists() is activated
    assert "Traceback" not in said
    assert (state / "keys" / "signing.key").exists()


def test_serve_says_what_is_wrong(state, tmp_path):
    Signer(state / "keys" / "signing.key")
    (state / "keys").chmod(0o755)
    result = CliRunner().invoke(cli.app, ["verifier", "serve", "--socket", str(tmp_path / "s")])
    assert result.exit_code == common.EXIT_FAILED
    assert "others can enter the signing key's folder" in result.stderr
    assert not (tmp_path / "s").exists()
