"""The field checks: what each accepts, what it refuses with which words, and that every edge uses the same cgroups."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import sys
from enum import StrEnum
from pathlib import Path

import pytest

from schedagent.core import accept
from schedagent.core.errors import SchedagentError, UsageError
from schedagent.core.service_settings import read_service
from schedagent.core.token import DeploymentToken, Scope
from schedagent.schedagentd import messages
from schedagent.verification.files import read_scope
from verifier.service.messages import read_request as read_verify_request


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


LONG = "/" + "/".join(["a" * 255] * 15)
DEEPEST = "/a" * 64
GOOD_CGROUPS = ["/build.slice", "/a/b", "/user.slice/user@1000.service", r"/a\x2db.mount", "/..a/.b", "/a b", DEEPEST]
GOOD_CGROUPS += [LONG]
BAD_CGROUPS = ["/", "a", "/a/", "//a", "/a/../b", "/.", "/a/..", "/a\n", "/ä", "/" + "a" * 256, "/a" * 65]
SOCKET = "the absolute path of a unix socket, at most 107 bytes long"
BAD_CGROUPS += [LONG + "/" + "a" * 255, "/a\0"]


@pytest.mark.parametrize(
    ("check", "value", "result"),
    [
        (accept.whole(1, 3), 3, 3),
        (accept.number(0, 3), 3, 3.0),
        (accept.number(0, 3, "seconds"), 0.5, 0.5),
        (accept.flag, False, False),
        (accept.one_of(Colour), "red", Colour.RED),
        (accept.one_of(("a", "b")), "b", "b"),
        (accept.matching(accept.SHA256, "a digest"), "ab" * 32, "ab" * 32),
        (accept.line, " a b ", " a b "),
        (accept.or_empty(accept.cgroup), "", ""),
        (accept.or_empty(accept.cgroup), "/a", "/a"),
        (accept.list_of(accept.line, "names"), ["a", "b"], ("a", "b")),
        (accept.list_of(accept.line, "names"), [], ()),
        (accept.absolute_path, "/a", Path("/a")),
        (accept.socket_path, "/" + "a" * 106, Path("/" + "a" * 106)),
    ],
)
def test_accepted(check, value, result):
    assert (check(value), type(check(value))) == (result, type(result))


@pytest.mark.parametrize(
    ("check", "refused", "accepted"),
    [
        (accept.whole(1, 3), [0, 4, True, 2.0, "2", None, 10**400], "a whole number from 1 to 3"),
        (accept.number(0.5, 3), [0.4, 4, True, "2", None, math.nan, math.inf, 10**400], "a number from 0.5 to 3"),
        (accept.number(1, 604800, "seconds"), [0], "seconds, from 1 to 604800"),
        (accept.flag, [0, 1, "true", None], "true or false"),
        (accept.one_of(Colour), ["green", 1, None, ["red"], Colour], "red, blue"),
        (accept.matching(accept.C_NAME, "a name"), ["", "1a", "a-b", "a" * 129, "a\n", 1], "a name"),
        (accept.line, ["", " ", "a\nb", "a\x1b[2J", 1, None], "a line of text"),
        (accept.list_of(accept.line, "names"), ["a", ("a",), None], "a list of names"),
        (accept.list_of(accept.line, "names"), [["a", 1]], "a line of text"),
        (accept.absolute_path, ["a", "", "~/a", "/a\0", 1], "an absolute path"),
        (
            accept.socket_path,
            ["a", "", "/" + "a" * 107, 1],
            "the absolute path of a unix socket, at most 107 bytes long",
        ),
        (accept.cgroup, [*BAD_CGROUPS, "", None, 1], "the path of a cgroup, such as /system.slice/build.service"),
    ],
)
def test_refused(check, refused, accepted):
    for value in refused:
        with pytest.raises(ValueError, match=f"^{accepted}$"):
            check(value)


def ask_schedagentd(cgroup):
    order = {"policy": "fifo", "object_base64": "", "tunables": {}, "report_digest": "ab" * 32, "token": "sat3.a.b.c"}
    request = {"version": 1, "verb": "deploy", **order, "cgroup": cgroup}
    messages.read_request(json.dumps(request).encode())


def ask_verifier(cgroup):
    request = {"version": 1, "policy": "fifo", "source": "", "scope": "partial", "cgroup": cgroup}
    read_verify_request(json.dumps(request).encode())


def sign(cgroup):
    digest = "ab" * 32
    token = DeploymentToken(digest, (), digest, digest, "6.12", "cd" * 20, Scope.PARTIAL, "", 0, 1, "ef" * 16, "ab" * 8)
    dataclasses.replace(token, cgroup=cgroup)


def configure(cgroup):
    try:
        read_service({"cgroups": [cgroup]})
    except ValueError as error:
        raise UsageError(str(error)) from None


def option(cgroup):
    read_scope(f"partial:{cgroup}")


EDGES = [ask_schedagentd, ask_verifier, sign, configure, option]


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("cgroup", GOOD_CGROUPS)
def test_every_edge_takes_the_same_cgroups(edge, cgroup):
    edge(cgroup)


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("cgroup", BAD_CGROUPS)
def test_every_edge_refuses_the_same_cgroups(edge, cgroup):
    with pytest.raises(SchedagentError):
        edge(cgroup)


def test_nothing_of_others_is_imported():
    """schedagentd uses it."""
    tree = ast.parse(Path(accept.__file__).read_text(encoding="utf-8"))
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
