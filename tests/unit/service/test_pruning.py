"""The agent service removes what is old once a day, unless it works, or is not to."""

import logging
import time
from dataclasses import replace

import pytest

from repo_store.store import PolicyRepository
from schedagent.core.service_settings import ServiceSettings
from schedagent.core.settings import REPOSITORY, Settings
from schedagent.service import loop
from schedagent.service.loop import PRUNE_EVERY_S, TICK_S, Service
from schedagent.service.pruning import prune_old
from tests.support import old_state


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setattr("schedagent.retention.deployed.RECORD", tmp_path / "schedagentd" / "record.sqlite")
    daemon = ServiceSettings(socket=tmp_path / "none.sock")
    return Settings(cache_dir=tmp_path / "cache", state_dir=tmp_path / "state", daemon=daemon)


class Idle:
    """A keeper and a meter that have nothing to do."""

    poll_s = 1.0

    def tick(self):
        pass

    def read(self):
        return []


class Pruning:
    """A service whose clock goes as a test wants, and when it pruned."""

    def __init__(self, settings, repository):
        self.now, self.at = 1e9, []
        self.service = Service(
            settings, repository, Idle(), Idle(), None, lambda: self.now, prune=lambda: self.at.append(self.now)
        )

    def live(self, seconds):
        for _ in range(seconds):
            self.now += 1
            self.service.tick()


@pytest.fixture
def repository(settings):
    with PolicyRepository(settings.state_dir / REPOSITORY) as opened:
        yield opened


def test_it_prunes_when_it_begins_and_once_a_day(settings, repository, monkeypatch):
    monkeypatch.setattr(loop, "PRUNE_EVERY_S", 100.0)
    pruning = Pruning(settings, repository)
    pruning.live(250)
    assert pruning.at == [1e9 + 1, 1e9 + 101, 1e9 + 201]
    assert PRUNE_EVERY_S == 86400 > TICK_S


def test_it_waits_for_what_is_being_carried_out(settings, repository, monkeypatch):
    pruning = Pruning(settings, repository)
    monkeypatch.setattr(Service, "_works", True)
    pruning.live(5)
    assert pruning.at == []
    monkeypatch.setattr(Service, "_works", False)
    pruning.live(5)
    assert pruning.at == [1e9 + 6]


def test_it_need_not_prune(settings, repository):
    never = replace(settings, daemon=replace(settings.daemon, prune_days=0))
    pruning = Pruning(never, repository)
    pruning.live(5)
    assert pruning.at == []


def test_what_is_older_than_its_days_goes_and_is_logged(settings, caplog):
    caplog.set_level(logging.INFO, "schedagent.service")
    runs = old_state.pile(60, days=200, now=time.time())
    old_state.store(settings.state_dir / REPOSITORY, runs)
    prune_old(replace(settings, daemon=replace(settings.daemon, prune_days=100)))
    with PolicyRepository(settings.state_dir / REPOSITORY) as repository:
        left = set(repository.statuses())
    assert {run.id for run in runs if run.at > time.time() - 100 * old_state.DAY_S} <= left
    assert len(left) < 60
    assert f"{60 - len(left):>7}" in caplog.text


def test_a_damaged_repository_does_not_end_the_service(settings, caplog):
    settings.state_dir.mkdir()
    (settings.state_dir / REPOSITORY).write_bytes(b"nothing" * 1000)
    prune_old(settings)
    assert "nothing was pruned: " in caplog.text
    assert "is damaged" in caplog.text
