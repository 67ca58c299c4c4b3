"""The container files: plain base images, nobody is root, and what they copy and install is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy.setup.environment import OURS, ROOT
from schedagent.setup.packages import REQUIRED

FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.partition(".")[0])


def instructions(path):
    """The instructions with their words; lines that go on are joined, comments left out."""
    text = re.sub(r"(?m)^#.*\n", "", path.read_text()).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line]


def stages(path):
    found = []
    for name, words in instructions(path):
        if name == "FROM":
            found.append([])
        found[-1].append((name, words))
    return found


@each_file
def test_base_images_are_named_without_a_registry(path):
    for name, words in instructions(path):
        if name == "FROM":
            assert re.fullmatch(r"[a-z]+:[a-z0-9-]+( AS \w+)?", words)


@each_file
def test_the_last_stage_is_not_root_and_copies_nothing_it_was_built_with(path):
    last = stages(path)[-1]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", dict(last)["USER"]), "in numbers, so that a host can see that it is not 0"
    copied = [words for name, words in last if name == "COPY"]
    assert all(words.startswith("--from=build ") for words in copied)
    assert not any("/src" in words or "/venv" in words for words in copied)
    names = [name for name, _ in last]
    assert names.index("USER") > max(number for number, name in enumerate(names) if name in ("RUN", "COPY"))


@each_file
def test_what_is_copied_exists_and_is_all_of_ours(path):
    sources = {source for name, words in stages(path)[0] if name == "COPY" for source in words.split()[:-1]}
    assert all(list(ROOT.glob(source)) for source in sources)
    assert set(OURS) | {"deploy", "pyproject.toml", "requirements.lock"} <= sources


def test_all_are_built_alike():
    first, *others = (stages(path)[0] for path in FILES)
    assert all(other == first for other in others)


def test_the_verifier_has_every_package_it_needs():
    run = next(words for name, words in stages(ROOT / "docker" / "verifier.Dockerfile")[-1] if name == "RUN")
    needed = {entry.package for entry in REQUIRED if not entry.only_for_checkout} - {"util-linux"}
    assert needed <= set(run.split()), "util-linux is in every Debian"


def test_folders_users_and_sockets_of_both_agree():
    agent, verifier = ((ROOT / "docker" / f"{name}.Dockerfile").read_text() for name in ("agent", "verifier"))
    socket = re.search(r"SCHEDAGENT_VERIFIER_SOCKET=(\S+)", agent).group(1)
    assert f'"--socket", "{socket}"' in verifier
    assert "--gid 970 schedagent" in agent
    assert "--gid 970 schedagent" in verifier
    assert f"schedagent -m 0750 {Path(socket).parent}" in verifier
