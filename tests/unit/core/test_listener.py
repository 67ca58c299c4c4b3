"""The socket of the verifier service: who may open it, and what is taken over from systemd."""

from __future__ import annotations

import os
import socket
import stat

import pytest

from schedagent.core.errors import SetupError, UsageError
from schedagent.core.process.listener import activated, listen


class TestListening:
    def test_private_unless_a_group_is_named(self, tmp_path):
        with listen(tmp_path / "deep" / "s", None):
            mode = (tmp_path / "deep" / "s").stat().st_mode
        assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
        with listen(tmp_path / "t", os.getegid()):
            assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o660

    def test_a_second_service_is_refused(self, tmp_path):
        with listen(tmp_path / "s", None), pytest.raises(SetupError, match=r"listens on .* already"):
            listen(tmp_path / "s", None)
        with listen(tmp_path / "s", None):
            pass

    @pytest.mark.parametrize("kind", ["file", "folder", "link"])
    def test_what_is_no_socket_is_left_alone(self, tmp_path, kind):
        path = tmp_path / "s"
        {"file": path.touch, "folder": path.mkdir, "link": lambda: path.symlink_to("t")}[kind]()
        with pytest.raises(SetupError, match="is not a socket"):
            listen(path, None)
        assert os.path.lexists(path)

    def test_a_path_that_is_too_long(self, tmp_path):
        with pytest.raises(SetupError, match="too long"):
            listen(tmp_path / ("x" * 120), None)

    def test_socket_activation(self, tmp_path):
        assert activated(range(0)) is None
        with listen(tmp_path / "s", None) as listener:
            taken = activated([os.dup(listener.fileno())])
            assert taken.getsockname() == str(tmp_path / "s")
            taken.close()
        ours, theirs = socket.socketpair()
        with ours, theirs, (tmp_path / "f").open("w") as file:
            copy = os.dup(ours.fileno())
            for wrong in ([copy], [file.fileno()], [1, 2]):
                with pytest.raises(UsageError, match="systemd"):
                    activated(wrong)
