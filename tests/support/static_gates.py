"""A scripted run whose candidates go through the real static gates."""

from __future__ import annotations

from dataclasses import dataclass

from tests.support import scripted_lab as scripted
from tests.support.scripted_lab import Script
from verifier.pipeline import KernelBench
from verifier.pipeline import Verifier as Gates


@dataclass
class StaticGates(scripted.Verifier):
    """The real static gates; what they let pass, passes the scripted others."""

    target: object = None

    def verify(self, candidate, info):
        self.script.reach("static gates")
        cache = self.script.settings.cache_dir
        cache.mkdir(exist_ok=True)
        found = Gates((KernelBench(None, self.target),), cache, static_only=True).verify(candidate, info)
        return found if found.report.failure else super().verify(candidate, info)


@dataclass(frozen=True)
class Gated(Script):
    """A script whose candidates go through the real static gates."""

    target: object = None

    def verifier(self):
        return StaticGates(self, target=self.target)
