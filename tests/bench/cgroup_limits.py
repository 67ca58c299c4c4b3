"""Measure how limits of cgroups hold under each policy, and write it down for VERIFIER.md (make bench-limits).

python -m tests.bench.cgroup_limits
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from schedagent.core.settings import load_settings
from tests.support import cgroup_figures
from tests.support.cgroup_figures import DEFAULT, RECORDED, bound, deviation, keeps


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        figures = cgroup_figures.measure(load_settings(), Path(folder))
    off = [
        f"{policy}: {limit}: {figure}"
        for policy, each in figures.items()
        for limit, figure in each.items()
        if policy != DEFAULT and keeps(policy, limit) and deviation(limit, figure) > bound(limit)
    ]
    print(*(" | ".join(row) for row in cgroup_figures.rows(figures)), sep="\n")
    if off:
        print("off by more than the bound, so nothing is written:", *off, sep="\n")
        return 1
    RECORDED.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
