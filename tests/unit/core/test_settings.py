"""Settings: precedence, refusal of what is not accepted, and the folder check."""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from schedagent.cli.guide.topics import load_topics
from schedagent.core import settings as module
from schedagent.core.errors import SetupError, UsageError
from schedagent.core.settings import ModelPrice, Settings, activated_descriptors, load_settings, writable
from tests.support.paths import ROOT


def test_defaults_follow_the_base_directory_specification() -> None:
    plain = load_settings({"HOME": "/home/a"})
    assert (plain.cache_dir, plain.state_dir) == (
        Path("/home/a/.cache/schedagent"),
        Path("/home/a/.local/state/schedagent"),
    )
    moved = load_settings({"HOME": "/home/a", "XDG_CACHE_HOME": "/c", "XDG_STATE_HOME": "relative"})
    assert (moved.cache_dir, moved.state_dir) == (Path("/c/schedagent"), Path("/home/a/.local/state/schedagent"))


def test_environment_wins_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('cache_dir = "/from/file"\nvm_cpus = 4\nmodel_name = "small"\n')
    chosen = load_settings({"HOME": "/h", "SCHEDAGENT_CACHE": "/from/env", "SCHEDAGENT_STATE": ""}, config)
    assert (chosen.cache_dir, chosen.vm_cpus, chosen.model_name) == (Path("/from/env"), 4, "small")
    assert chosen.state_dir == Path("/h/.local/state/schedagent")


def test_user_file_is_found_through_xdg(tmp_path: Path) -> None:
    folder = tmp_path / "schedagent"
    folder.mkdir()
    (folder / "config.toml").write_text("vm_memory_mib = 1024\n")
    assert load_settings({"HOME": "/h", "XDG_CONFIG_HOME": str(tmp_path)}).vm_memory_mib == 1024


@pytest.mark.parametrize(
    ("variable", "value", "accepted"),
    [
        ("SCHEDAGENT_VM_CPUS", "0", "from 1 to 256"),
        ("SCHEDAGENT_VM_CPUS", "two", "from 1 to 256"),
        ("SCHEDAGENT_VM_MEMORY_MIB", "-512", "from 256"),
        ("SCHEDAGENT_KERNEL", "../../etc", "uname -r"),
        ("SCHEDAGENT_KERNEL", "-o", "uname -r"),
        ("SCHEDAGENT_VERIFIER_SOCKET", "/" + "x" * 107, "at most 107 bytes"),
        ("SCHEDAGENT_MODEL_MAX_DOLLARS", "-1", "amount of dollars"),
        ("SCHEDAGENT_MODEL_MAX_DOLLARS", "nan", "amount of dollars"),
        ("SCHEDAGENT_MODEL_MAX_DOLLARS", "much", "amount of dollars"),
        ("SCHEDAGENT_MODEL_ANSWERS", "yaml", "json_schema, tool, plain"),
        ("OPENAI_BASE_URL", "http://user:secret@host", "without a user"),
        ("SCHEDAGENT_MODEL_TIMEOUT_S", "0", "from 1 to 3600"),
        ("OPENAI_BASE_URL", "file:///etc/passwd", "http://"),
    ],
)
def test_bad_environment_value_is_named(variable: str, value: str, accepted: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_settings({"HOME": "/h", variable: value})
    assert f"{variable}={value!r}" in caught.value.message
    assert accepted in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vm_cpu = 2\n", "unknown key 'vm_cpu'"),
        ("vm_cpus = true\n", "vm_cpus = True"),
        ("vm_cpus = 2.5\n", "vm_cpus = 2.5"),
        ("cache_dir = 1\n", "cache_dir = 1"),
        ("vm_cpus = \n", "is not TOML"),
        ("model_max_dollars = true\n", "model_max_dollars = True"),
        ("model_prices = 3\n", "model_prices = 3"),
        ("[model_prices.small]\ninput = 1\n", "model_prices = {'small': {'input': 1}}"),
        ("[model_prices.small]\ninput = 1\noutput = '?'\n", "model_prices = {'small'"),
    ],
)
def test_bad_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "config.toml"
    config.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_settings({"HOME": "/h"}, config)
    assert message in caught.value.message
    assert str(config) in caught.value.message


def test_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load_settings({"HOME": "/h"}, tmp_path / "none.toml")


def test_secret_is_shown_nowhere(tmp_path: Path) -> None:
    assert "s3cret" not in repr(load_settings({"HOME": "/h", "OPENAI_API_KEY": "s3cret"}))
    config = tmp_path / "config.toml"
    config.write_text("model_api_key = 53219\n")
    with pytest.raises(UsageError) as caught:
        load_settings({"HOME": "/h"}, config)
    assert "53219" not in str(caught.value)


def test_models_of_roles_and_their_budget(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        'model_name = "large"\nmodel_learning = "small"\nmodel_max_dollars = 2\n'
        '[model_prices."large"]\ninput = 2.5\noutput = 10\n[model_prices."small"]\ninput = 0\noutput = 0.5\n'
    )
    chosen = load_settings(
        {"HOME": "/h", "SCHEDAGENT_MODEL_PLANNING": "huge", "SCHEDAGENT_MODEL_MAX_CALLS": "7"}, config
    )
    roles = ("observation", "planning", "execution", "learning")
    assert [chosen.model_for(role) for role in roles] == ["large", "huge", "large", "small"]
    assert (chosen.model_max_calls, chosen.model_max_dollars) == (7, 2.0)
    assert chosen.model_prices == (ModelPrice("large", 2.5, 10.0), ModelPrice("small", 0.0, 0.5))
    assert hash(chosen)


def test_the_topic_names_every_setting_of_the_model() -> None:
    topic = load_topics()["models"].text
    wanted = {
        name for key, option in module.OPTIONS.items() if key.startswith("model_") for name in (key, option.variable)
    }
    assert {name for name in wanted if name and f"`{name}`" not in topic} == set()


@pytest.mark.parametrize("key", ["s3cret\n", "s3 cret", "s3crét"])
def test_key_that_no_header_can_hold_is_refused(key: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_settings({"HOME": "/h", "OPENAI_API_KEY": key})
    assert "s3" not in str(caught.value)


@pytest.mark.parametrize(
    ("pid", "count", "expected"),
    [("self", "1", [3]), ("self", "2", [3, 4]), ("1", "1", []), ("self", "", []), ("", "1", []), ("self", "-1", [])],
)
def test_sockets_of_systemd_are_those_for_this_process(pid: str, count: str, expected: list[int]) -> None:
    env = {"LISTEN_PID": str(os.getpid()) if pid == "self" else pid, "LISTEN_FDS": count}
    assert list(activated_descriptors(env)) == expected


def test_writable_makes_the_folder(tmp_path: Path) -> None:
    assert writable(tmp_path / "a/b") == tmp_path / "a/b"
    assert (tmp_path / "a/b").is_dir()
    assert list((tmp_path / "a/b").iterdir()) == []


def test_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot be used") as caught:
        writable(tmp_path / "file/cache")
    assert "SCHEDAGENT_CACHE" in caught.value.hint


@pytest.mark.parametrize(
    ("number", "message"), [(errno.EROFS, "read-only"), (errno.EACCES, "read-only"), (errno.ENOSPC, "no space is left")]
)
def test_read_only_and_full_folders_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(SetupError) as caught:
        writable(tmp_path, "SCHEDAGENT_STATE")
    assert message in caught.value.message
    assert "SCHEDAGENT_STATE" in caught.value.hint


def test_every_field_is_an_option_with_a_meaning() -> None:
    assert {field.name for field in dataclasses.fields(Settings)} - {"config_path"} == set(module.OPTIONS)
    for key, option in module.OPTIONS.items():
        assert option.meaning.endswith("."), key
        assert option.variable or key in ("model_prices", "daemon"), "only tables have no variable"


def test_import_is_light() -> None:
    code = "import sys, schedagent.core.settings; print('tempfile' in sys.modules, 'tomllib' in sys.modules)"
    root = ROOT
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("named", "has_model"),
    [
        ({}, False),
        ({"model_name": "small"}, False),
        ({"model_base_url": "http://127.0.0.1:1/v1"}, False),
        ({"model_base_url": "http://127.0.0.1:1/v1", "model_name": "small"}, True),
        ({"model_base_url": "http://127.0.0.1:1/v1", "model_learning": "small"}, True),
    ],
)
def test_a_model_needs_an_address_and_a_name(named, has_model):
    assert Settings(Path("/c"), Path("/s"), **named).has_model is has_model


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be led by others' links")
@pytest.mark.parametrize("use", [module.private_file, module.private_folder, writable])
@pytest.mark.parametrize("way", ["their folder", "a link to their folder", "their link"])
def test_root_writes_nowhere_that_another_user_can_bend(tmp_path, use, way):
    precious = tmp_path / "precious"
    precious.mkdir(mode=0o755)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    place = theirs / "state"
    if way == "a link to their folder":
        (tmp_path / "ours").symlink_to(theirs)
        place = tmp_path / "ours" / "state"
    if way == "their link":
        place = tmp_path / "state"
        place.symlink_to(precious)
        os.chown(place, 12345, 12345, follow_symlinks=False)
    else:
        place.symlink_to(precious)
        os.chown(theirs, 12345, 12345)
    with pytest.raises(SetupError, match="belongs to user 12345: root would write wherever"):
        use(place)
    assert precious.stat().st_mode & 0o777 == 0o755
    assert list(precious.iterdir()) == []


def test_root_uses_its_own_folders(tmp_path):
    assert writable(tmp_path / "a" / "b").is_dir()
