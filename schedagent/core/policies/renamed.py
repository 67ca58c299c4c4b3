"""Kfuncs of sched_ext that go by another name now: 6.13 gave them the new names, later kernels dropped the old ones.

Source: the BTF of 6.18 and 7.3, which have none of the old ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

RENAMED: Mapping[str, str] = {
    "scx_bpf_dispatch": "scx_bpf_dsq_insert",
    "scx_bpf_dispatch_vtime": "scx_bpf_dsq_insert_vtime",
    "scx_bpf_consume": "scx_bpf_dsq_move_to_local",
    "scx_bpf_dispatch_from_dsq": "scx_bpf_dsq_move",
    "scx_bpf_dispatch_vtime_from_dsq": "scx_bpf_dsq_move_vtime",
    "scx_bpf_dispatch_from_dsq_set_slice": "scx_bpf_dsq_move_set_slice",
    "scx_bpf_dispatch_from_dsq_set_vtime": "scx_bpf_dsq_move_set_vtime",
}
_UNDECLARED = re.compile(r"undeclared (?:function|identifier) '(scx_bpf_\w+)'")


def advice(name: str) -> str:
    """Return what to call instead of a kfunc that is gone; empty if it is not."""
    new = RENAMED.get(name.partition("___")[0])
    return f"{name}() is gone since 6.18: use {new}()" if new else ""


def advice_on(messages: str) -> str:
    """Return that for the kfuncs that a compiler does not know; empty if none of them is gone."""
    names = dict.fromkeys(_UNDECLARED.findall(messages))
    return "; ".join(filter(None, map(advice, names)))
