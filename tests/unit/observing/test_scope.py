"""What is to be watched: units and containers by their cgroups, and one clear line for what is not there."""

from __future__ import annotations

import os

import pytest

from schedagent.core.errors import SetupError, UsageError
from schedagent.observing import scope
from schedagent.observing.scope import Target, check, folder, of_container, of_unit

IDENTITY = "0123456789abcdef" * 4


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A tree of cgroups."""
    for path in (
        "system.slice/nginx.service",
        "system.slice/nginx.service/workers",
        f"system.slice/docker-{IDENTITY}.scope",
        "machine.slice/machine-web.scope",
        "user.slice/user@1000.service/app.slice/twice.service",
        "user.slice/user@1001.service/app.slice/twice.service",
    ):
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
    for place in [tmp_path, *tmp_path.rglob("*")]:
        if place.is_dir():
            (place / "cgroup.procs").touch()

    def no_engine(words, **_options):
        raise SetupError(f"{words[0]} is not installed")

    monkeypatch.setattr(scope.proc, "run", no_engine)
    return tmp_path


@pytest.mark.parametrize("name", ["nginx", "nginx.service"])
def test_a_unit_is_watched_with_what_is_below_it(root, name):
    assert of_unit(name, root) == Target(cgroup="/system.slice/nginx.service")


def test_a_unit_that_is_not_there_or_twice_is_refused(root):
    with pytest.raises(UsageError, match=r"unit none\.service has no cgroup"):
        of_unit("none", root)
    with pytest.raises(UsageError, match="has 2 cgroups") as refusal:
        of_unit("twice", root)
    assert "--cgroup /user.slice/user@100" in refusal.value.hint
    with pytest.raises(UsageError, match="no name of a unit"):
        of_unit("../etc", root)


def test_a_container_by_its_id_or_as_its_manager_calls_it(root):
    expected = Target(cgroup=f"/system.slice/docker-{IDENTITY}.scope")
    assert of_container(IDENTITY, root) == of_container(IDENTITY[:12], root) == expected
    assert of_container("web", root) == Target(cgroup="/machine.slice/machine-web.scope")


def test_a_container_by_the_name_that_its_engine_knows(root, monkeypatch):
    asked_for = []

    def engine(words, **_options):
        asked_for.append(words)
        if words[0] == "docker":
            raise SetupError("docker is not installed")
        return type("Done", (), {"returncode": 0, "stdout": f"{IDENTITY}\n".encode()})

    monkeypatch.setattr(scope.proc, "run", engine)
    assert of_container("db", root).cgroup.endswith(f"docker-{IDENTITY}.scope")
    assert [words[0] for words in asked_for] == ["docker", "podman"]
    assert asked_for[0][-1] == "db"


@pytest.mark.parametrize("name", ["-v", "a b", "", "x" * 200, "a;b"])
def test_what_is_no_name_never_reaches_an_engine(root, name, monkeypatch):
    monkeypatch.setattr(scope.proc, "run", lambda *_a, **_k: pytest.fail("it was run"))
    with pytest.raises(UsageError, match="no name of a container"):
        of_container(name, root)


def test_cgroups(root):
    assert folder("/system.slice/nginx.service", root) == root / "system.slice/nginx.service"
    with pytest.raises(UsageError, match="there is no cgroup /none"):
        folder("/none", root)
    for wrong in ("../..", "/a/../b", "relative", ""):
        with pytest.raises(UsageError, match="no name of a cgroup"):
            folder(wrong, root)


def test_a_process_that_is_not_there_is_refused():
    check(Target(pid=os.getpid()))
    with pytest.raises(UsageError, match="there is no process 4194304"):
        check(Target(pid=4194304))
