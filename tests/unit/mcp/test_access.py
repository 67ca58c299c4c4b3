"""The token of the MCP server: where it comes from, and which requests carry it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from schedagent.core.errors import SetupError, UsageError
from schedagent.core.settings import Settings, load_settings
from schedagent.mcp.bearer import admits, bearer_token

TOKEN = "0123456789abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(tmp_path / "cache", tmp_path / "state")


class TestFile:
    def test_it_is_made_once_for_its_owner_only(self, settings):
        token, where = bearer_token(settings)
        assert len(token) >= 40
        assert stat.S_IMODE(Path(where).stat().st_mode) == 0o600
        assert bearer_token(settings) == (token, where)
        assert sorted(path.name for path in settings.state_dir.iterdir()) == ["mcp.token"]

    def test_another_state_folder_has_another_token(self, settings, tmp_path):
        assert bearer_token(settings)[0] != bearer_token(Settings(tmp_path / "c", tmp_path / "other"))[0]

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
    def test_one_that_others_can_read_is_refused(self, settings, mode):
        where = Path(bearer_token(settings)[1])
        where.chmod(mode)
        with pytest.raises(SetupError, match="is not yours alone") as told:
            bearer_token(settings)
        assert told.value.hint.endswith(f"rm {where}")

    def test_a_link_is_refused(self, settings, tmp_path):
        where = Path(bearer_token(settings)[1])
        where.rename(tmp_path / "elsewhere")
        where.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(SetupError, match="symbolic link"):
            bearer_token(settings)

    def test_a_pipe_is_refused_without_waiting(self, settings):
        where = Path(bearer_token(settings)[1])
        where.unlink()
        os.mkfifo(where, 0o600)
        with pytest.raises(SetupError, match="is not yours alone"):
            bearer_token(settings)

    @pytest.mark.parametrize("content", ["", "short\n", "two words that are long enough to be one\n", "x" * 31])
    def test_what_is_no_token_is_refused(self, settings, content):
        where = Path(bearer_token(settings)[1])
        where.write_text(content)
        with pytest.raises(SetupError, match="holds no token"):
            bearer_token(settings)


class TestSetting:
    def test_it_comes_first_and_writes_nothing(self, tmp_path):
        settings = load_settings({"HOME": str(tmp_path), "SCHEDAGENT_MCP_TOKEN": TOKEN})
        assert bearer_token(settings)[0] == TOKEN
        assert not settings.state_dir.exists()

    def test_it_is_shown_nowhere(self, tmp_path):
        settings = load_settings({"HOME": str(tmp_path), "SCHEDAGENT_MCP_TOKEN": TOKEN})
        assert TOKEN not in repr(settings)
        with pytest.raises(UsageError, match="at least 32") as told:
            load_settings({"HOME": str(tmp_path), "SCHEDAGENT_MCP_TOKEN": "s3cret"})
        assert "s3cret" not in str(told.value)


class TestRequests:
    @pytest.mark.parametrize("value", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER  {TOKEN} "])
    def test_the_right_token(self, value):
        assert admits(TOKEN, [value.encode()])

    @pytest.mark.parametrize(
        "values",
        [
            [],
            [b""],
            [b"Bearer"],
            [b"Bearer "],
            [TOKEN.encode()],
            [f"Basic {TOKEN}".encode()],
            [f"Bearer {TOKEN[:-1]}".encode()],
            [f"Bearer {TOKEN}x".encode()],
            [f"Bearer {TOKEN.upper()}".encode()],
            [f"Bearer {TOKEN}".encode(), f"Bearer {TOKEN}".encode()],
            ["Bearer ünlesbar".encode()],
            [b"Bearer \xff\xfe"],
        ],
    )
    def test_any_other(self, values):
        assert not admits(TOKEN, values)
