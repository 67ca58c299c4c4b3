"""requirements.lock: everything pinned by hash, nothing that says where to get it, and nothing missing."""

from __future__ import annotations

import re
import tomllib

from tests.support.paths import ROOT

TEXT = (ROOT / "requirements.lock").read_text(encoding="utf-8")
ENTRIES = re.findall(r"(?m)^([a-z0-9][a-z0-9._-]*)==\S+.*((?:\\\n\s+--hash=sha256:[0-9a-f]{64}\s*)+)", TEXT)


def test_every_line_is_a_pin_or_a_hash() -> None:
    pattern = r"[a-z0-9][a-z0-9._-]*==\S+( ;.*)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?"
    strange = [line for line in TEXT.splitlines() if not re.fullmatch(pattern, line)]
    assert strange == []
    assert len(ENTRIES) == len(re.findall(r"(?m)^[a-z0-9]", TEXT))


def test_all_direct_dependencies_are_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.match(r"[A-Za-z0-9._-]+", entry).group().lower() for entry in wanted}
    assert names - {name for name, _ in ENTRIES} == set()


def test_nothing_huge_slipped_in() -> None:
    assert {"torch", "tensorflow", "triton"} & {name for name, _ in ENTRIES} == set()
