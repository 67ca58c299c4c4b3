"""What the client of the verifier service sends along with a source."""

from __future__ import annotations

import pytest

from schedagent.core.errors import UsageError
from verifier.service.client import collect_headers
from verifier.service.messages import MOST_HEADERS


class TestHeaders:
    def test_what_is_included_is_sent_and_nothing_else(self, tmp_path):
        source, lib = tmp_path / "p.bpf.c", tmp_path / "lib"
        (lib / "scx").mkdir(parents=True)
        (tmp_path / "near.h").write_text('#include "deep/nested.h"\n#include <scx/common.h>')
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep" / "nested.h").write_text('#include "sibling.h"\n#include "../near.h"')
        (tmp_path / "deep" / "sibling.h").write_text("S")
        (tmp_path / "unused.h").write_text("no")
        (lib / "scx" / "common.h").write_text('  #  include "user.h"')
        (lib / "scx" / "user.h").write_text("U")
        source.write_text('#include "near.h"\n#include "vmlinux.h"\n#include "/etc/passwd"\n#include "../secret.h"\n')
        (tmp_path.parent / "secret.h").write_text("secret")
        found = collect_headers(source, (lib,))
        assert sorted(found) == ["deep/nested.h", "deep/sibling.h", "near.h", "scx/common.h", "scx/user.h"]
        assert found["deep/sibling.h"] == "S"

    def test_too_many(self, tmp_path):
        for number in range(MOST_HEADERS + 1):
            (tmp_path / f"{number}.h").touch()
        source = tmp_path / "p.bpf.c"
        source.write_text("".join(f'#include "{number}.h"\n' for number in range(MOST_HEADERS + 1)))
        with pytest.raises(UsageError, match="more than 256"):
            collect_headers(source, ())
