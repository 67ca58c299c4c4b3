"""The whole corpus through the gates that need no machine.

What the logic gate must refuse is given to it as an object: reading the source costs more than all else, and gives
nothing there. `python -m tests.corpus --static` takes the sources.
"""

from __future__ import annotations

import dataclasses

import pytest

from schedagent.core.rules import LOGIC
from tests.corpus import complaint, corpus_verifier, judge, load_corpus


@pytest.fixture(scope="module")
def static_gates():
    return corpus_verifier(static_only=True)


def compiled(entry, verifier, folder):
    """The entry with its object in the place of its source."""
    path = folder / f"{entry.name}.bpf.o"
    path.write_bytes(verifier.compile(entry.info).object_bytes)
    return dataclasses.replace(entry, info=dataclasses.replace(entry.info, source=path))


@pytest.mark.parametrize("entry", load_corpus(), ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_static_gates(entry, static_gates, tmp_path):
    """What the object shows is found here, and correct policies have no error."""
    if entry.kind == "broken" and entry.gate == LOGIC:
        entry = compiled(entry, static_gates, tmp_path)
    assert complaint(entry, judge(entry, static_gates)) == ""
