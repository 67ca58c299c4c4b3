"""What tests of schedagentd deploy: orders with real tokens, and a clock that goes as they say."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from schedagent.core.deployment import Order
from schedagent.core.token import DeploymentToken, Scope, digest_inputs, encode, key_id
from tests.support.scripted_kernel import BUILD_ID, RELEASE

KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
CANARY, MEMBER = "/build/canary", "/build"
"""A cgroup that owns its CPUs, and one that does not."""


class FakeClock:
    """Time as a test wants it; starts at the real time of day."""

    def __init__(self):
        self.now = 1000.0
        self.asleep_s = 0.0
        self.day = time.time() - self.now
        self.id = "boot-1"

    def unix(self):
        return self.day + self.now

    def boot(self):
        return self.now + self.asleep_s

    def monotonic(self):
        return self.now

    def boot_id(self):
        return self.id


def content_of(name="good"):
    return f"object of {name}".encode()


def order_of(name="good", *, scope=Scope.FULL, cgroup="", life_s=86400.0, begin=0.0, now=None, key=KEY, **changes):
    """An order with a token for it.

    Args:
        life_s, begin: how long it is valid, and from when on counted from now.
        changes: fields of the token that are not as they should be.
    """
    digest = hashlib.sha256(content_of(name)).hexdigest()
    order = Order(name, digest, (("slice_us", 5000),), ((1, 2),), (), "ef" * 32, "")
    begin = int((now if now is not None else time.time()) + begin)
    token = DeploymentToken(
        artifact_digest=digest,
        tunables=order.tunables,
        inputs_digest=digest_inputs(order.history, order.classes),
        report_digest=order.report_digest,
        kernel_release=RELEASE,
        btf_build_id=BUILD_ID,
        scope=scope,
        cgroup=cgroup,
        not_before=begin,
        expires_at=begin + int(life_s),
        nonce=secrets.token_hex(16),
        key_id=key_id(PUBLIC),
    )
    return replace(order, token=encode(replace(token, **changes), key.sign))
