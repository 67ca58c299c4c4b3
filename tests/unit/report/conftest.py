"""A repository with two measured runs, and their reports."""

from __future__ import annotations

import pytest

from repo_store.store import PolicyRepository
from schedagent.report.build import build_report
from tests.support.measured_runs import build_run, service_run


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    with PolicyRepository(tmp_path_factory.mktemp("measured") / "repository.sqlite") as opened:
        yield opened


@pytest.fixture(scope="module")
def build(repository):
    return build_report(repository, build_run(repository))


@pytest.fixture(scope="module")
def service(repository):
    return build_report(repository, service_run(repository))
