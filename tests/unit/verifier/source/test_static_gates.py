"""The whole corpus through the gates that need no machine."""

from __future__ import annotations

import pytest

from tests.corpus import complaint, corpus_verifier, judge, load_corpus


@pytest.fixture(scope="module")
def static_gates():
    return corpus_verifier(static_only=True)


@pytest.mark.parametrize("entry", load_corpus(), ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_static_gates(entry, static_gates):
    """What the object shows is found here, and correct policies have no error."""
    assert complaint(entry, judge(entry, static_gates)) == ""
