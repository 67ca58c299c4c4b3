"""Deployment tokens: what is accepted, and every way in which one is altered, stretched, moved or made up."""

import base64
import dataclasses
import json
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from schedagent.core import token as tokens
from schedagent.core.errors import TokenError
from schedagent.core.token import (
    CLOCK_SKEW_S,
    LONGEST_LIFETIME_S,
    DeploymentToken,
    Scope,
    check,
    decode,
    digest_inputs,
    encode,
    key_id,
)
from schedagent.core.verification import (
    Finding,
    GateResult,
    GateStatus,
    KernelResult,
    OracleResult,
    Severity,
    Step,
    VerificationReport,
)

NOW = 1_785_000_000
KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
CONTEXT = b"schedagent deployment token 3\0"
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493  # of Ed25519, RFC 8032 section 5.1


def pem(key):
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


PUBLIC, OTHER_PUBLIC = pem(KEY), pem(OTHER)
USE = {
    "artifact_digest": "ab" * 32,
    "tunables": (("slice_us", 5000), ("starvation_ms", 900)),
    "inputs_digest": digest_inputs([(2**64 - 1, 2**63)], []),
    "report_digest": "ef" * 32,
    "kernel_release": "7.3.4+deb13-amd64",
    "btf_build_id": "cd" * 20,
    "live_patches": (),
}
PATCHES = ("a:abcdefab", "livepatch_2026-01:unknown")
UNWANTED = {"tunables": (("slice_us", 5001), ("starvation_ms", 900)), "live_patches": PATCHES}
"""What is not wanted, where it is no text."""
TOKEN = DeploymentToken(
    **USE,
    scope=Scope.FULL,
    cgroup="",
    not_before=NOW,
    expires_at=NOW + 600,
    nonce="0123456789abcdef" * 2,
    key_id=key_id(PUBLIC),
    declares=("idle machine", "weights"),
    reads=("comm",),
)
TEXT = encode(TOKEN, KEY.sign)
PAYLOAD = tokens._payload(TOKEN)


def accept(text, keys=(PUBLIC,), **changes):
    return check(text, keys, **{**USE, "scope": Scope.FULL, "now": NOW} | changes)


def refuse(text, why, keys=(PUBLIC,), **changes):
    with pytest.raises(TokenError, match=why):
        accept(text, keys, **changes)


def signed(payload, key=KEY, named=TOKEN.key_id):
    """A token whose payload is anything, rightly signed."""
    text = f"sat3.{named}.{to_base64(payload)}"
    return f"{text}.{to_base64(key.sign(CONTEXT + text.encode()))}"


def to_base64(content):
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def altered(**changes):
    """The token with other contents and the old signature."""
    changed = encode(dataclasses.replace(TOKEN, **changes), lambda _: b"").rpartition(".")[0]
    return f"{changed}.{TEXT.rpartition('.')[2]}"


def test_round_trip():
    assert accept(TEXT) == TOKEN
    assert decode(TEXT) == TOKEN
    assert encode(TOKEN, KEY.sign) == TEXT, "one token has one text"
    accept(TEXT, tunables=USE["tunables"][::-1])


def test_what_the_submitter_declares_is_signed():
    assert accept(TEXT).declares == ("idle machine", "weights")
    refuse(altered(declares=()), "not one of the trusted key")
    refuse(altered(reads=()), "not one of the trusted key")


def test_a_token_of_before_declarations_is_named_as_such():
    refuse(TEXT.replace("sat3", "sat2"), "sat2 does not show what the policy declares away", keys=())


class TestForged:
    def test_by_an_unknown_key(self):
        forged = encode(dataclasses.replace(TOKEN, key_id=key_id(OTHER_PUBLIC)), OTHER.sign)
        refuse(forged, f"key {key_id(OTHER_PUBLIC)}, which is none of the trusted ones: {TOKEN.key_id}")
        refuse(TEXT, "there are none", keys=())
        assert accept(forged, keys=(PUBLIC, OTHER_PUBLIC)).key_id == key_id(OTHER_PUBLIC)

    def test_under_the_name_of_a_trusted_key(self):
        refuse(encode(TOKEN, OTHER.sign), "not one of the trusted key")

    def test_key_id_swapped_for_that_of_another_trusted_key(self):
        swapped = TEXT.replace(TOKEN.key_id, key_id(OTHER_PUBLIC))
        refuse(swapped, "not one of the trusted key", keys=(PUBLIC, OTHER_PUBLIC))

    def test_signature_for_another_purpose(self):
        for purpose in (b"", b"schedagent deployment token 1\0", CONTEXT[:-1]):
            refuse(
                encode(TOKEN, lambda content, p=purpose: KEY.sign(p + content[len(CONTEXT) :])), "not one of the trus"
            )

    def test_every_changed_character(self):
        for position, character in enumerate(TEXT):
            changed = TEXT[:position] + ("A" if character != "A" else "B") + TEXT[position + 1 :]
            with pytest.raises(TokenError):
                accept(changed)

    def test_every_truncation(self):
        for length in range(len(TEXT)):
            with pytest.raises(TokenError):
                accept(TEXT[:length])

    @pytest.mark.parametrize("size", [0, 1, 63, 65, 128])
    def test_signature_of_another_size(self, size):
        refuse(TEXT.rpartition(".")[0] + "." + to_base64(bytes(size)), "not one of the trusted key")

    def test_signature_with_a_scalar_beyond_the_group_order(self):
        """The same point and S + L: a lax checker accepts it, and one token has two texts."""
        signature = base64.urlsafe_b64decode(TEXT.rpartition(".")[2] + "==")
        scalar = int.from_bytes(signature[32:], "little") + GROUP_ORDER
        twin = signature[:32] + scalar.to_bytes(32, "little")
        refuse(TEXT.rpartition(".")[0] + "." + to_base64(twin), "not one of the trusted key")

    @pytest.mark.parametrize("tail", ["\n", " ", "=", "\0", ".", ".x", "A", "é"])
    def test_trailing_text(self, tail):
        refuse(TEXT + tail, "not a deployment token|not one of the trusted key")
        refuse(tail + TEXT, "not a deployment token")

    def test_base64_with_another_spelling_of_the_same_bytes(self):
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        head, _, signature = TEXT.rpartition(".")
        last = alphabet.index(signature[-1])
        twin = signature[:-1] + alphabet[last ^ 1]  # 64 bytes leave four unused bits in the last character
        assert base64.urlsafe_b64decode(twin + "==") == base64.urlsafe_b64decode(signature + "==")
        refuse(f"{head}.{twin}", "not canonical base64url")
        refuse(f"{head}.{signature}==", "not a deployment token")
        refuse(f"{head}.{signature[:40]}\n{signature[40:]}", "not a deployment token")


class TestMadeForSomethingElse:
    @pytest.mark.parametrize("name", list(USE))
    def test_another_target(self, name):
        value = UNWANTED.get(name) or USE[name][:-1] + "0"
        refuse(TEXT, f"the token is for {name}=", **{name: value})
        refuse(TEXT, f"the token is for {name}=", **{name: UNWANTED.get(name) or USE[name][:-1]})

    def test_a_token_for_live_patches_is_for_exactly_those(self):
        """None is issued: the lab has none. The reverse must hold all the same."""
        text = encode(dataclasses.replace(TOKEN, live_patches=PATCHES), KEY.sign)
        accept(text, live_patches=PATCHES)
        for other in ((), PATCHES[:1], PATCHES[::-1], ("a:unknown", PATCHES[1])):
            refuse(text, "the token is for live_patches=", live_patches=other)

    @pytest.mark.parametrize("name", ["", "a", "a:", "a:xyz", "../a:abcdefab", "a b:abcdefab", "a:abcdefab\n", 7, None])
    def test_a_live_patch_has_a_name_and_a_build_id(self, name):
        with pytest.raises(TokenError, match="live_patches is"):
            dataclasses.replace(TOKEN, live_patches=(name,))

    @pytest.mark.parametrize("name", list(USE))
    def test_contents_replaced_by_what_is_wanted(self, name):
        value = UNWANTED.get(name) or USE[name][:-1] + "0"
        refuse(altered(**{name: value}), "not one of the trusted key", **{name: value})

    def test_a_number_is_no_text_and_a_truth_no_number(self):
        token = dataclasses.replace(TOKEN, tunables=(("on", 1),))
        text = encode(token, KEY.sign)
        accept(text, tunables=(("on", 1),))
        for other in (True, "1", 1.0):
            refuse(text, "the token is for tunables", tunables=(("on", other),))


class TestScope:
    @pytest.mark.parametrize(
        ("granted", "wanted", "allowed"),
        [
            (("full", ""), ("full", ""), True),
            (("full", ""), ("partial", ""), True),
            (("full", ""), ("partial", "/a"), True),
            (("partial", ""), ("full", ""), False),
            (("partial", ""), ("partial", ""), True),
            (("partial", ""), ("partial", "/a"), True),
            (("partial", "/a"), ("full", ""), False),
            (("partial", "/a"), ("partial", ""), False),
            (("partial", "/a"), ("partial", "/a"), True),
            (("partial", "/a"), ("partial", "/a/b"), True),
            (("partial", "/a"), ("partial", "/ab"), False),
            (("partial", "/a"), ("partial", "/A"), False),
            (("partial", "/a/b"), ("partial", "/a"), False),
        ],
    )
    def test_exact_or_narrower(self, granted, wanted, allowed):
        text = encode(dataclasses.replace(TOKEN, scope=Scope(granted[0]), cgroup=granted[1]), KEY.sign)
        if allowed:
            accept(text, scope=Scope(wanted[0]), cgroup=wanted[1])
        else:
            refuse(text, "the token is for scope partial", scope=Scope(wanted[0]), cgroup=wanted[1])

    @pytest.mark.parametrize(
        "tricky", ["/a/../b", "/a/.", "/a//b", "/a/", "a", "/a\n", "/a\0", "/a\u0430", "/" + "x" * 300]
    )
    def test_paths_that_mean_another_one(self, tricky):
        partial = encode(dataclasses.replace(TOKEN, scope=Scope.PARTIAL, cgroup="/a"), KEY.sign)
        refuse(partial, "not for scope partial", scope=Scope.PARTIAL, cgroup=tricky)
        refuse(TEXT, "not for scope partial", scope=Scope.PARTIAL, cgroup=tricky)
        with pytest.raises(TokenError, match="not a deployment token: cgroup is"):
            dataclasses.replace(TOKEN, scope=Scope.PARTIAL, cgroup=tricky)

    def test_dots_in_names_are_fine(self):
        text = encode(dataclasses.replace(TOKEN, scope=Scope.PARTIAL, cgroup="/build.slice/..a"), KEY.sign)
        accept(text, scope=Scope.PARTIAL, cgroup="/build.slice/..a/.b")

    def test_no_full_scope_of_one_cgroup(self):
        refuse(TEXT, "not for scope full of cgroup", cgroup="/a")
        with pytest.raises(TokenError, match="not a deployment token: scope"):
            dataclasses.replace(TOKEN, cgroup="/a")

    def test_a_word_that_is_no_scope(self):
        refuse(TEXT, "not for scope everything", scope="everything")
        refuse(signed(PAYLOAD.replace(b'"full"', b'"all"')), "not a deployment token")

    def test_rescoped(self):
        partial = encode(dataclasses.replace(TOKEN, scope=Scope.PARTIAL), KEY.sign)
        refuse(f"{TEXT.rpartition('.')[0]}.{partial.rpartition('.')[2]}", "not one of the trusted key")


class TestTime:
    def test_valid_until_it_expires(self):
        accept(TEXT, now=NOW + 599.9)
        for late in (NOW + 600, NOW + 1e6, 1e300, float("inf"), float("nan")):
            refuse(TEXT, "expired at 2026", now=late)

    def test_extended(self):
        refuse(altered(expires_at=NOW + 3600), "not one of the trusted key", now=NOW + 601)

    def test_not_before(self):
        accept(TEXT, now=NOW - CLOCK_SKEW_S)
        refuse(TEXT, "in the future", now=NOW - CLOCK_SKEW_S - 1)
        refuse(altered(not_before=NOW - 3600), "not one of the trusted key", now=NOW - 3600)

    def test_clock_rolled_back(self):
        """An expired token would come back to life; only what the checker remembers can tell."""
        accept(TEXT, now=NOW + 1, last_seen=NOW + 1 + CLOCK_SKEW_S)
        refuse(TEXT, "the clock was set back", now=NOW + 1, last_seen=NOW + 3600)

    def test_clock_rolled_forth_and_back(self):
        """A clock that was wrong for a while closes the door until the real time has caught up; it never opens it."""
        refuse(TEXT, "expired", now=NOW + 10**6)
        refuse(TEXT, "the clock was set back", now=NOW, last_seen=NOW + 10**6)

    @pytest.mark.parametrize("lifetime_s", [0, -1, LONGEST_LIFETIME_S + 1])
    def test_lifetimes_that_no_verifier_gives(self, lifetime_s):
        with pytest.raises(TokenError, match="at most 604800"):
            dataclasses.replace(TOKEN, expires_at=NOW + lifetime_s)

    def test_used_before(self):
        refuse(TEXT, "used before", used_nonces={TOKEN.nonce})


class TestMalformed:
    @pytest.mark.parametrize(
        "broken",
        ["", "x", "sat3.a", "sat3.!.!.!", "sat1.e30.e30", "sat3.0123456789abcdef.é.é", "a" * 99999]
        + [TEXT.replace("sat3", prefix) for prefix in ("sat1", "sat2", "sat4", "SAT3", "ｓat3", "sat3\u200b")]
        + [TEXT.replace(TOKEN.key_id, named) for named in ("", TOKEN.key_id.upper(), "٠" * 16, TOKEN.key_id + "0")],
    )
    def test_text(self, broken):
        refuse(broken, "not a deployment token", keys=())
        with pytest.raises(TokenError, match="not a deployment token"):
            decode(broken)

    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            b"[]",
            b"{}",
            b"null",
            b"\xff",
            b"\xef\xbb\xbf" + PAYLOAD,
            b"[" * 40000,
            PAYLOAD + b" ",
            PAYLOAD + b"{}",
            PAYLOAD.replace(b"600", b'"x"'),
            PAYLOAD.replace(b":", b": "),
            PAYLOAD.replace(b"5000", b"true"),
            PAYLOAD.replace(b"5000", b"5e3"),
            PAYLOAD.replace(b"5000", b"5000.0"),
            PAYLOAD.replace(b"5000", b"05000"),
            PAYLOAD.replace(b"5000", b"NaN"),
            PAYLOAD.replace(b"5000", b"9" * 30),
            PAYLOAD.replace(b"5000", b"9" * 5000),
            PAYLOAD.replace(b"5000", b"-9223372036854775809"),
            PAYLOAD.replace(str(NOW).encode(), b"9" * 30),
            PAYLOAD.replace(str(NOW).encode(), b"-1"),
            PAYLOAD.replace(b"0123456789abcdef", b""),
            PAYLOAD.replace(b'"slice_us"', b'"starvation_ms"'),
            PAYLOAD.replace(b'"slice_us"', b'"slice\\u005fus"'),
            PAYLOAD.replace(b'"slice_us"', '"ｓlice_us"'.encode()),
            PAYLOAD.replace(b'"slice_us"', b'"\\ud800"'),
            PAYLOAD.replace(b'["slice_us",5000]', b'["slice_us",5000,1]'),
            PAYLOAD.replace(b'["slice_us",5000]', b'"ab"'),
            PAYLOAD.replace(b'{"', b'{"extra":1,"', 1),
            PAYLOAD.replace(b'"scope":"full"', b'"scope":["full"]'),
            PAYLOAD.replace(b'"scope":"full"', b'"scope":"partial","scope":"full"'),
            PAYLOAD.replace(b'{"', b'{"key_id":"0123456789abcdef","', 1),
            PAYLOAD.replace(b'"nonce"', b'"not"'),
            PAYLOAD.replace(b'"declares":["idle machine","weights"],', b""),
            PAYLOAD.replace(b'"reads":["comm"]', b'"reads":"comm"'),
            PAYLOAD.replace(b'"reads":["comm"]', b'"reads":["comm","comm"]'),
            PAYLOAD.replace(b'"reads":["comm"]', b'"reads":[7]'),
            PAYLOAD.replace(b'"reads":["comm"]', b'"reads":["\\u001b[2J"]'),
            PAYLOAD.replace(b'"idle machine","weights"', b'"weights","idle machine"'),
        ],
    )
    def test_signed_nonsense(self, payload):
        """Even a trusted verifier's key cannot make anything but a canonical token be accepted."""
        assert payload != PAYLOAD
        refuse(signed(payload), "not a deployment token")
        with pytest.raises(TokenError, match="not a deployment token"):
            decode(signed(payload))

    def test_signed_helper_is_right(self):
        assert signed(PAYLOAD) == TEXT

    def test_the_payload_is_not_parsed_before_the_signature_is_right(self, monkeypatch):
        monkeypatch.setattr(tokens, "_token", lambda *_: pytest.fail("parsed"))
        refuse(encode(TOKEN, OTHER.sign), "not one of the trusted key")


class TestPublicKeys:
    def test_unusable(self):
        refuse(TEXT, "public key cannot be read", keys=[b"nonsense"])

    @pytest.mark.parametrize(
        "other",
        [
            rsa.generate_private_key(65537, 1024),
            ec.generate_private_key(ec.SECP256R1()),
            ed448.Ed448PrivateKey.generate(),
            x25519.X25519PrivateKey.generate(),
        ],
        ids=["RSA", "P-256", "Ed448", "X25519"],
    )
    def test_another_type(self, other):
        refuse(TEXT, "not an Ed25519 key", keys=[pem(other)])

    def test_key_id_is_of_the_key_and_not_of_its_spelling(self):
        assert key_id(PUBLIC) == key_id(b"a remark\n" + PUBLIC) != key_id(OTHER_PUBLIC)


class TestDigests:
    def test_of_inputs(self):
        assert digest_inputs([(1, 2), (3, 4)], []) == digest_inputs([(3, 4), (1, 2)], [])
        assert digest_inputs([(1, 2)], []) != digest_inputs([], [(1, 2)])

    def test_of_a_report(self):
        oracle = OracleResult("starvation", 29, True, 0.0, 2.0, "s", "fine")
        kernel = KernelResult("7.3.4", GateStatus.PASSED, "", {"x_enqueue": {"verified_instructions": 7}})
        finding = Finding(
            18, Severity.WARNING, "enqueue", "x.bpf.c", 7, "é", (Step("x.bpf.c", 7, "here"),), "starvation"
        )
        gate = GateResult("source", GateStatus.PASSED, "fine", 1.0, (finding,))
        report = VerificationReport("x", "key", "ab", "7.3.4", (gate,), (kernel,), (oracle,), "1")
        digest = report.digest
        assert digest == dataclasses.replace(report, token="t", verified_by="the service").digest
        whole = dataclasses.replace(oracle, measured=0, bound=2)
        assert digest == dataclasses.replace(report, oracles=(whole,)).digest, "JSON writers differ in 1 and 1.0"
        later = dataclasses.replace(report, gates=(dataclasses.replace(gate, seconds=9.0),))
        assert digest == later.digest, "a verification that was faster says the same"
        for other in (
            dataclasses.replace(report, policy="y"),
            dataclasses.replace(report, gates=(dataclasses.replace(gate, status=GateStatus.FAILED),)),
            dataclasses.replace(report, oracles=(dataclasses.replace(oracle, measured=0.1),)),
            dataclasses.replace(report, kernels=()),
            dataclasses.replace(report, gates=(dataclasses.replace(gate, findings=()),)),
            dataclasses.replace(report, gates=(gate, gate)),
        ):
            assert other.digest != digest

    def test_of_a_report_is_that_of_its_json(self):
        gate = GateResult("source", GateStatus.PASSED, "fine", 0.25)
        report = VerificationReport("x", "key", "ab", "7.3.4", (gate,))
        content = json.loads(json.dumps(dataclasses.asdict(report)))
        gates = tuple(GateResult(**{**gate, "findings": tuple(gate["findings"])}) for gate in content["gates"])
        assert VerificationReport(**{**content, "gates": gates}).digest == report.digest


def test_cryptography_is_imported_only_when_used():
    code = "import sys, schedagent.core.token, verifier.signer; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
