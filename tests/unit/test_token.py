"""Deployment tokens and the signer: what is accepted, every reason for refusal, and how the key is kept."""

import base64
import dataclasses
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from schedagent.core import token as tokens
from schedagent.core.errors import SetupError, TokenError
from schedagent.core.token import CLOCK_SKEW_S, DeploymentToken, check, decode, digest_inputs
from verifier.signer import Signer

NOW = 1_785_000_000
USE = {
    "artifact_digest": "ab" * 32,
    "tunables": (("slice_us", 5000), ("starvation_ms", 900)),
    "inputs_digest": digest_inputs([(2**64 - 1, 2**63)], []),
    "kernel_release": "7.3.4+deb13-amd64",
    "btf_build_id": "cd" * 20,
}
TOKEN = DeploymentToken(**USE, issued_at=NOW, expires_at=NOW + 600, nonce="0123456789abcdef")


@pytest.fixture(scope="module")
def signer(tmp_path_factory):
    return Signer(tmp_path_factory.mktemp("keys") / "private" / "signing.pem")


@pytest.fixture
def text(signer):
    return signer.sign(TOKEN)


class TestCheck:
    def test_round_trip(self, signer, text):
        assert check(text, [signer.public_key], **USE, now=NOW) == TOKEN
        assert decode(text) == TOKEN
        assert text == signer.sign(TOKEN), "one token has one text"

    def test_any_trusted_key_will_do(self, signer, text, tmp_path):
        other = Signer(tmp_path / "keys" / "other.pem").public_key
        assert check(text, [other, signer.public_key], **USE, now=NOW) == TOKEN
        with pytest.raises(TokenError, match="none of the trusted"):
            check(text, [other], **USE, now=NOW)
        with pytest.raises(TokenError, match="none of the trusted"):
            check(text, [], **USE, now=NOW)

    @pytest.mark.parametrize("name", list(USE))
    def test_made_for_something_else(self, signer, text, name):
        value = (("slice_us", 5001), ("starvation_ms", 900)) if name == "tunables" else USE[name] + "0"
        with pytest.raises(TokenError, match=f"the token is for {name}="):
            check(text, [signer.public_key], **USE | {name: value}, now=NOW)

    def test_order_of_tunables_does_not_matter(self, signer, text):
        check(text, [signer.public_key], **USE | {"tunables": USE["tunables"][::-1]}, now=NOW)

    def test_valid_until_it_expires(self, signer, text):
        check(text, [signer.public_key], **USE, now=NOW + 599.9)
        for late in (NOW + 600, NOW + 1e6):
            with pytest.raises(TokenError, match="expired at 2026"):
                check(text, [signer.public_key], **USE, now=late)

    def test_issued_in_the_future(self, signer, text):
        check(text, [signer.public_key], **USE, now=NOW - CLOCK_SKEW_S)
        with pytest.raises(TokenError, match="future"):
            check(text, [signer.public_key], **USE, now=NOW - CLOCK_SKEW_S - 1)

    def test_used_before(self, signer, text):
        with pytest.raises(TokenError, match="used before"):
            check(text, [signer.public_key], **USE, now=NOW, used_nonces={TOKEN.nonce})

    def test_altered_payload(self, signer, text):
        forged = dataclasses.replace(TOKEN, expires_at=NOW + 10**9)
        prefix, _, signature = text.split(".")
        payload = tokens.encode(forged, lambda _: b"").split(".")[1]
        with pytest.raises(TokenError, match="none of the trusted"):
            check(f"{prefix}.{payload}.{signature}", [signer.public_key], **USE, now=NOW)

    def test_every_changed_character_is_refused(self, signer, text):
        for position, character in enumerate(text):
            changed = text[:position] + ("A" if character != "A" else "B") + text[position + 1 :]
            with pytest.raises(TokenError):
                check(changed, [signer.public_key], **USE, now=NOW)

    def test_signature_without_the_context_is_refused(self, signer):
        bare = tokens.encode(TOKEN, lambda content: signer._key.sign(content.split(b"\0", 1)[1]))
        with pytest.raises(TokenError, match="none of the trusted"):
            check(bare, [signer.public_key], **USE, now=NOW)

    @pytest.mark.parametrize(
        "broken", ["", "x", "sat1.a", "sat1.!.!", "sat2.e30.e30", "sat1.é.é", "sat1.e30=.e30", "a" * 99999]
    )
    def test_malformed(self, signer, broken):
        with pytest.raises(TokenError, match="not a deployment token"):
            check(broken, [], **USE, now=NOW)
        with pytest.raises(TokenError, match="not a deployment token"):
            decode(broken)

    @pytest.mark.parametrize(
        "payload",
        [
            b"[]",
            b"{}",
            b"\xff",
            b"[" * 40000,
            tokens._payload(TOKEN).replace(b"600", b'"x"'),
            tokens._payload(TOKEN).replace(b":", b": "),
            tokens._payload(TOKEN).replace(b"5000", b"true"),
            tokens._payload(TOKEN).replace(b"5000", b"5e3"),
            tokens._payload(TOKEN).replace(b"0123456789abcdef", b""),
        ],
    )
    def test_signed_nonsense(self, signer, payload):
        parts = (payload, signer._key.sign(b"schedagent deployment token 1\0" + payload))
        text = ".".join(["sat1", *(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)])
        with pytest.raises(TokenError, match="not a deployment token"):
            check(text, [signer.public_key], **USE, now=NOW)

    def test_unusable_public_key(self, text, tmp_path):
        with pytest.raises(TokenError, match="public key cannot be read"):
            check(text, [b"nonsense"], **USE, now=NOW)
        public = (
            rsa.generate_private_key(65537, 1024)
            .public_key()
            .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
        with pytest.raises(TokenError, match="not an Ed25519 key"):
            check(text, [public], **USE, now=NOW)

    def test_digest_of_inputs(self):
        assert digest_inputs([(1, 2), (3, 4)], []) == digest_inputs([(3, 4), (1, 2)], [])
        assert digest_inputs([(1, 2)], []) != digest_inputs([], [(1, 2)])


class TestSigner:
    def test_issue(self, signer):
        first, second = (decode(signer.issue(**USE, lifetime_s=30)) for _ in range(2))
        assert first.expires_at - first.issued_at == 30
        assert first.nonce != second.nonce
        assert check(signer.issue(**USE), [signer.public_key], **USE, now=first.issued_at).tunables == USE["tunables"]

    def test_key_is_private_and_kept(self, tmp_path):
        path = tmp_path / "keys" / "signing.pem"
        public = Signer(path).public_key
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert Signer(path).public_key == public
        assert list(path.parent.iterdir()) == [path]
        assert b"PUBLIC KEY" in public
        assert "PRIVATE" not in repr(Signer(path))

    def test_two_creators_end_with_one_key(self, tmp_path):
        path = tmp_path / "keys" / "signing.pem"
        with ThreadPoolExecutor(8) as pool:
            assert len({signer.public_key for signer in pool.map(lambda _: Signer(path), range(8))}) == 1

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
    def test_key_others_can_read_is_refused(self, tmp_path, mode):
        path = tmp_path / "keys" / "signing.pem"
        Signer(path)
        path.chmod(mode)
        with pytest.raises(SetupError, match="others can read the signing key"):
            Signer(path)

    def test_folder_others_can_enter_is_refused(self, tmp_path):
        path = tmp_path / "keys" / "signing.pem"
        Signer(path)
        path.parent.chmod(0o755)
        with pytest.raises(SetupError, match="chmod 700"):
            Signer(path)

    def test_symbolic_link_is_refused(self, tmp_path):
        Signer(tmp_path / "keys" / "real.pem")
        link = tmp_path / "keys" / "signing.pem"
        link.symlink_to("real.pem")
        with pytest.raises(SetupError, match="cannot be used"):
            Signer(link)

    def test_damaged_key(self, tmp_path):
        path = tmp_path / "keys" / "signing.pem"
        Signer(path)
        path.write_bytes(path.read_bytes()[:60])
        with pytest.raises(SetupError, match="damaged") as caught:
            Signer(path)
        assert f"mv {path}" in caught.value.hint

    def test_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(SetupError, match="Not a directory"):
            Signer(tmp_path / "file" / "keys" / "signing.pem")


def test_cryptography_is_imported_only_when_used():
    code = "import sys, schedagent.core.token, verifier.signer; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
