"""Signing keys: made private, rotated without a moment in which none works, and the folder of trusted public keys."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from schedagent.core import trusted
from schedagent.core.errors import SetupError, TokenError, UsageError
from schedagent.core.token import CLOCK_SKEW_S, LONGEST_LIFETIME_S, Scope, check, decode, digest_inputs
from schedagent.core.trusted import distrust, load_trusted, trust, trusted_keys
from verifier.signer import Signer

USE = {
    "artifact_digest": "ab" * 32,
    "tunables": (("slice_us", 5000),),
    "inputs_digest": digest_inputs([], []),
    "report_digest": "ef" * 32,
    "kernel_release": "7.3.4",
    "btf_build_id": "cd" * 20,
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys" / "signing.key"


@pytest.fixture
def signer(path):
    return Signer(path)


@pytest.fixture
def folder(tmp_path):
    """A folder of trusted keys, without a private one."""
    return tmp_path / "trusted"


@pytest.fixture
def public(tmp_path):
    return Signer(tmp_path / "elsewhere" / "signing.key").public_key


def accepted(text, folder, at=None):
    now = time.time() if at is None else at
    return check(text, load_trusted(folder, now), **USE, live_patches=(), scope=Scope.FULL, now=now)


class TestIssue:
    def test_what_is_signed_can_be_checked(self, signer):
        first, second = (decode(signer.issue(**USE, lifetime_s=30)) for _ in range(2))
        assert first.expires_at - first.not_before == 30
        assert first.nonce != second.nonce
        assert first.key_id == signer.key_id
        token = accepted(signer.issue(**USE), signer.trusted_folder)
        assert (token.scope, token.tunables) == (Scope.FULL, USE["tunables"])

    def test_scope_and_start(self, signer):
        later = int(time.time()) + 3600
        text = signer.issue(**USE, scope=Scope.PARTIAL, cgroup="/a", not_before=later)
        token = decode(text)
        assert (token.scope, token.cgroup, token.not_before) == (Scope.PARTIAL, "/a", later)

    @pytest.mark.parametrize(
        ("lifetime_s", "later_s"), [(0, 0), (-5, 0), (LONGEST_LIFETIME_S + 1, 0), (3600, 7 * 86400)]
    )
    def test_lifetimes_beyond_the_trust_in_a_replaced_key(self, signer, lifetime_s, later_s):
        with pytest.raises(UsageError, match="cannot be valid for"):
            signer.issue(**USE, not_before=int(time.time()) + later_s, lifetime_s=lifetime_s)

    def test_nonsense_is_not_signed(self, signer):
        with pytest.raises(TokenError, match="artifact_digest"):
            signer.issue(**USE | {"artifact_digest": "x"})


class TestPrivateKey:
    def test_is_private_and_kept(self, path):
        public = Signer(path).public_key
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert Signer(path).public_key == public
        assert b"PUBLIC KEY" in public
        assert "PRIVATE" not in repr(Signer(path))
        assert sorted(entry.name for entry in path.parent.iterdir()) == ["signing.key", "trusted"]

    def test_is_private_whatever_the_umask_is(self, path):
        before = os.umask(0)
        try:
            Signer(path)
        finally:
            os.umask(before)
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)

    def test_two_creators_end_with_one_key(self, path):
        with ThreadPoolExecutor(8) as pool:
            assert len({signer.public_key for signer in pool.map(lambda _: Signer(path), range(8))}) == 1
        assert len(trusted_keys(path.parent / "trusted")) == 1

    def test_is_not_made_unless_asked(self, path):
        path.parent.mkdir(mode=0o700)
        with pytest.raises(SetupError, match="there is no signing key") as caught:
            Signer(path, create=False)
        assert "schedagent keys create" in caught.value.hint
        assert list(path.parent.iterdir()) == []

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
    def test_that_others_can_read_is_refused(self, signer, path, mode):
        path.chmod(mode)
        for use in (lambda: Signer(path), lambda: signer.issue(**USE), signer.rotate):
            with pytest.raises(SetupError, match="others can read the signing key") as caught:
                use()
        assert "keys rotate" in caught.value.hint

    def test_folder_others_can_enter_is_refused(self, signer, path):
        path.parent.chmod(0o755)
        with pytest.raises(SetupError, match="others can enter") as caught:
            Signer(path)
        assert "chmod 700" in caught.value.hint

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
    def test_of_another_user_is_refused(self, signer, path):
        os.chown(path, 65534, 65534)
        with pytest.raises(SetupError, match="is not a file of user id 0"):
            Signer(path)
        os.chown(path.parent, 65534, 65534)
        with pytest.raises(SetupError, match="is not of user id 0"):
            Signer(path)

    def test_symbolic_link_is_refused(self, signer, path):
        path.rename(path.with_name("real"))
        path.symlink_to("real")
        with pytest.raises(SetupError, match="cannot be used"):
            Signer(path)

    @pytest.mark.parametrize("kind", ["folder", "pipe"])
    def test_what_is_no_file_is_refused(self, signer, path, kind):
        path.unlink()
        path.mkdir() if kind == "folder" else os.mkfifo(path)
        with pytest.raises(SetupError, match=r"is not a file|Is a directory"):
            Signer(path)

    @pytest.mark.parametrize("content", [b"", b"nonsense", None])
    def test_damaged(self, signer, path, content):
        path.write_bytes(path.read_bytes()[:60] if content is None else content)
        for use in (lambda: Signer(path), lambda: signer.issue(**USE), signer.rotate):
            with pytest.raises(SetupError, match="damaged") as caught:
                use()
        assert f"mv {path}" in caught.value.hint

    def test_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(SetupError, match="Not a directory"):
            Signer(tmp_path / "file" / "keys" / "signing.pem")


class TestRotate:
    def test_old_tokens_live_on_until_they_expire(self, signer):
        old_text, old_id = signer.issue(**USE, lifetime_s=LONGEST_LIFETIME_S), signer.key_id
        retired = signer.rotate()
        assert retired.key_id == old_id != signer.key_id
        assert decode(signer.issue(**USE)).key_id == signer.key_id, "the new key signs at once"
        token = accepted(old_text, signer.trusted_folder)
        accepted(old_text, signer.trusted_folder, token.expires_at - 1)
        with pytest.raises(TokenError, match="expired"):
            accepted(old_text, signer.trusted_folder, token.expires_at + 1)
        with pytest.raises(TokenError, match="none of the trusted"):
            accepted(old_text, signer.trusted_folder, token.expires_at + 3 * CLOCK_SKEW_S)

    def test_a_running_signer_follows(self, signer, path):
        Signer(path).rotate()
        accepted(signer.issue(**USE), signer.trusted_folder, time.time())
        assert decode(signer.issue(**USE)).key_id == Signer(path).key_id

    def test_of_a_compromised_key(self, signer):
        text = signer.issue(**USE)
        distrust(signer.trusted_folder, signer.rotate().key_id)
        with pytest.raises(TokenError, match="none of the trusted"):
            accepted(text, signer.trusted_folder)

    def test_many_at_once(self, signer):
        with ThreadPoolExecutor(8) as pool:
            retired = [key.key_id for key in pool.map(lambda _: signer.rotate(), range(8))]
        keys = trusted_keys(signer.trusted_folder)
        assert len(set(retired)) == 8, "each replaced another one"
        assert [key.key_id for key in keys if key.until is None] == [signer.key_id]
        assert {key.key_id for key in keys} == {*retired, signer.key_id}

    def test_signing_while_rotating(self, signer):
        with ThreadPoolExecutor(4) as pool:
            rotations = [pool.submit(signer.rotate) for _ in range(10)]
            texts = [pool.submit(signer.issue, **USE) for _ in range(40)]
            for done in rotations:
                done.result()
        for text in texts:
            accepted(text.result(), signer.trusted_folder)

    def test_killed_at_every_step(self, tmp_path):
        """After kill -9 at any of its system calls a key works, old tokens count, and no draft is left behind."""
        steps = 0
        while True:
            path = tmp_path / str(steps) / "signing.key"
            signer = Signer(path)
            old_text, old_id = signer.issue(**USE), signer.key_id
            status = rotate_and_die(path, steps)
            after = Signer(path)
            token = accepted(after.issue(**USE), after.trusted_folder, time.time() + LONGEST_LIFETIME_S // 8)
            assert token.key_id == after.key_id
            accepted(old_text, after.trusted_folder)
            active = [key.key_id for key in trusted_keys(after.trusted_folder) if key.until is None]
            assert active == [after.key_id], f"killed at step {steps}"
            after.rotate()
            left = {entry.name for entry in [*path.parent.iterdir(), *after.trusted_folder.iterdir()]}
            assert {name for name in left if name.startswith(".")} == set()
            if status == 0:
                assert after.key_id != old_id
                break
            assert os.WTERMSIG(status) == signal.SIGKILL
            steps += 1
        assert steps > 15

    def test_killed_while_creating(self, path):
        for steps in range(6):
            assert os.WTERMSIG(rotate_and_die(path, steps, create=True)) == signal.SIGKILL
            assert accepted(Signer(path).issue(**USE), path.parent / "trusted")
            path.unlink()


def rotate_and_die(path: Path, steps: int, *, create: bool = False) -> int:
    """Rotate (or create) in a child that is killed when it has made so many system calls; return its status."""
    child = os.fork()
    if child == 0:
        left = [steps]

        def counted(call):
            def dying(*arguments, **options):
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return call(*arguments, **options)

            return dying

        for name in ("open", "fsync", "fchmod", "rename", "replace", "unlink", "mkdir"):
            setattr(os, name, counted(getattr(os, name)))
        try:
            Signer(path) if create else Signer(path).rotate()
            os._exit(0)
        finally:
            os._exit(99)
    return os.waitpid(child, 0)[1]


class TestTrusted:
    def test_trust_and_distrust(self, folder, public):
        assert load_trusted(folder) == ()
        key = trust(folder, public)
        assert load_trusted(folder) == (public,)
        assert trusted_keys(folder) == (key,)
        assert trust(folder, public) == key, "twice is once"
        distrust(folder, key.key_id)
        assert load_trusted(folder) == ()
        with pytest.raises(UsageError, match="no key"):
            distrust(folder, key.key_id)

    def test_until(self, folder, public):
        end = int(time.time()) + 100
        trust(folder, public, until=end)
        assert load_trusted(folder, end - 1) == (public,)
        assert load_trusted(folder, end) == ()
        assert b"Trusted-Until: 20" in trusted_keys(folder)[0].path.read_bytes()
        trust(folder, public)
        assert load_trusted(folder, end) == (public,)

    def test_others_can_read_it_whatever_the_umask_is(self, folder, public):
        before = os.umask(0o077)
        try:
            assert trust(folder, public).path.stat().st_mode & 0o777 == 0o644
        finally:
            os.umask(before)

    def test_a_copy_under_another_name_ends_with_it(self, folder, public):
        named = trust(folder, public).path
        (folder / "alice.pem").write_bytes(public)
        assert load_trusted(folder) == (public, public)
        trust(folder, public, until=5)
        assert load_trusted(folder) == ()
        assert [named, folder / "alice.pem"].count(trusted_keys(folder)[0].path) == 1
        assert len(trusted_keys(folder)) == 1

    def test_killed_drafts_are_no_keys(self, folder, public):
        trust(folder, public)
        draft = folder / ".0123.pem.0123456789abcdef"
        draft.write_bytes(b"half")
        assert load_trusted(folder) == (public,)
        trust(folder, public)
        assert not draft.exists()

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"nonsense",
            b"Trusted-Until: tomorrow\n%PEM",
            b"Trusted-Until: 2026-01-01T00:00:00\n%PEM",
            b"%PEM%PEM",
            b"remark\n%PEM",
            b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        ],
    )
    def test_damaged(self, folder, public, content):
        path = trust(folder, public).path
        path.write_bytes(content.replace(b"%PEM", public))
        with pytest.raises(SetupError, match="is damaged") as caught:
            load_trusted(folder)
        assert str(path) in caught.value.message

    def test_private_key_is_no_public_one(self, folder, signer, path):
        with pytest.raises(TokenError, match="not one public key") as caught:
            trust(folder, path.read_bytes())
        assert "PRIVATE" not in str(caught.value)
        assert not folder.exists()

    @pytest.mark.parametrize("mode", [0o666, 0o664, 0o602])
    def test_that_others_can_write_is_refused(self, folder, public, mode):
        trust(folder, public).path.chmod(mode)
        with pytest.raises(SetupError, match="others than its user can write"):
            load_trusted(folder)

    def test_folder_that_others_can_write_is_refused(self, folder, public):
        trust(folder, public)
        folder.chmod(0o777)
        with pytest.raises(SetupError, match="others than its user can write"):
            load_trusted(folder)

    def test_symbolic_links_are_refused(self, folder, public, tmp_path):
        real = trust(tmp_path / "real", public).path
        folder.mkdir()
        (folder / "a.pem").symlink_to(real)
        with pytest.raises(SetupError, match="cannot be read"):
            load_trusted(folder)
        (folder / "a.pem").unlink()
        folder.rmdir()
        folder.symlink_to(tmp_path / "real")
        with pytest.raises(SetupError, match="is not a folder"):
            load_trusted(folder)

    def test_folder_that_cannot_be_written(self, tmp_path, public):
        (tmp_path / "file").touch()
        with pytest.raises(SetupError, match="cannot be written"):
            trust(tmp_path / "file" / "trusted", public)

    def test_written_through_the_disk_before_it_is_renamed(self, folder, public, monkeypatch):
        calls = []
        for name in ("fsync", "rename"):
            real = getattr(os, name)
            monkeypatch.setattr(trusted.os, name, lambda *a, n=name, r=real, **k: (calls.append(n), r(*a, **k))[1])
        trust(folder, public)
        assert calls in (["fsync", "rename", "fsync"], ["fsync", "fsync"])
