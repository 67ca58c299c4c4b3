"""What schedagentd has deployed is known from itself and, while it does not run, from its record."""

import hashlib
import time

import pytest

from repo_store.retention.unneeded import Deployed
from schedagent.client.daemon import DaemonClient
from schedagent.retention import deployed as deployments
from schedagent.retention.deployed import known_deployments
from tests.support.daemon_processes import Daemon
from tests.support.deploy_orders import content_of


@pytest.fixture
def daemon(kernel, tmp_path, monkeypatch):
    running = Daemon(tmp_path / "d", kernel)
    monkeypatch.setattr(deployments, "RECORD", running.config.state_dir / "record.sqlite")
    yield running
    running.end()


def test_a_daemon_and_its_record_tell_the_same(daemon):
    daemon.start()
    assert known_deployments(daemon.client) == ()
    daemon.deploy("good")
    asked = known_deployments(daemon.client)
    (deployment,) = asked
    assert (deployment.policy, deployment.digest) == ("good", hashlib.sha256(content_of("good")).hexdigest())
    assert abs(deployment.created_at - time.time()) < 60
    daemon.end()
    assert known_deployments(daemon.client) == asked


def test_where_there_never_was_a_daemon_nothing_is_deployed(daemon):
    assert known_deployments(daemon.client) == ()


def test_a_record_that_may_not_be_read_is_not_taken_for_an_empty_one(daemon, tmp_path, monkeypatch):
    record = tmp_path / "of_root" / "record.sqlite"
    record.parent.mkdir()
    monkeypatch.setattr(deployments, "RECORD", record)
    assert known_deployments(DaemonClient(tmp_path / "nobody.sock")) is None, "there is a folder, and no record in it"
    record.write_bytes(b"no database" * 100)
    assert known_deployments(DaemonClient(tmp_path / "nobody.sock")) is None
    assert not list(tmp_path.glob("of_root/*-journal"))


def test_a_deployment_is_listed_once():
    asked = {"digest": "ab", "policy": "good", "created_at": 1.0}

    class Client:
        def ask(self, verb, **_fields):
            return {"active": asked, "waiting": None} if verb == "status" else {"history": [asked]}

    assert known_deployments(Client()) == (Deployed("good", "ab", 1.0),)
