"""The policy library as a run sees it: the bundled policies, and the derived ones, which are in the repository.

The repository is the truth about derived policies. For the compiler, which reads files, each is written into the folder
`policies` of the state folder; other files there are ignored, and a file that was changed is written again.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from kernel_bpf.policies.library import read_manifest
from repo_store.store import PolicyRepository
from schedagent.core.errors import NameTaken, PolicyError, SetupError
from schedagent.core.policies.policy import PolicyInfo
from schedagent.core.policies.proposal import DerivedPolicy, Origin
from schedagent.core.policies.spec import NAME
from schedagent.core.settings import private_folder

log = logging.getLogger(__name__)


class Library(Mapping[str, PolicyInfo]):
    """Policies by name, sorted. A policy that is kept through it is in it at once.

    Args:
        bundled: those that came with the program.
        repository: where derived policies are.
        folder: where their files go.
        wanted: which of the derived policies are in it, besides those kept through it; by default all.
    """

    def __init__(
        self,
        bundled: Mapping[str, PolicyInfo],
        repository: PolicyRepository,
        folder: Path,
        wanted: Callable[[DerivedPolicy], bool] = lambda _made: True,
    ) -> None:
        self._bundled = bundled
        self._repository = repository
        self._folder = folder
        self._policies = dict(bundled)
        for made in filter(wanted, repository.derived_policies()):
            self._add_stored(made)

    def __getitem__(self, name: str) -> PolicyInfo:
        return self._policies[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._policies))

    def __len__(self) -> int:
        return len(self._policies)

    def keep(self, made: DerivedPolicy) -> PolicyInfo:
        """Store a derived policy, and return it as a member of the library.

        Raises:
            NameTaken: another policy has this name, a bundled one or one of other content.
            PolicyError: its manifest cannot be read.
        """
        if made.name in self._bundled:
            raise NameTaken(f"a bundled policy is called {made.name}", "give it another name")
        _describe(made, self._folder)
        return self._add(self._repository.keep_policy(made))

    def _add_stored(self, made: DerivedPolicy) -> None:
        """Add what another run stored; what this version of the program cannot read is left out."""
        if made.name in self._bundled:
            log.warning("the policy %s that was %s is hidden by a bundled one", made.name, made.origin.label)
            return
        try:
            self._add(made)
        except PolicyError as error:
            log.warning("the policy %s that was %s cannot be used: %s", made.name, made.origin.label, error.message)

    def _add(self, made: DerivedPolicy) -> PolicyInfo:
        info = _describe(made, self._folder)
        _write(info.source, made.source)
        _write(info.source.with_name(f"{made.name}.toml"), made.manifest)
        self._policies[made.name] = info
        return info


def worth_trying(
    repository: PolicyRepository, run_id: str, also: Collection[str] = ()
) -> Callable[[DerivedPolicy], bool]:
    """Return which derived policies a run may plan with: its own, and those that won a trial in some other run.

    Nobody's word promotes a policy: a verdict does. One that a person brought to a run stays in it: the headers that it
    may need are not kept.

    Args:
        run_id: the run; empty for one that has not begun.
        also: names of others that it is to have.
    """
    own = {*also, *(repository.policies_of(run_id) if run_id else ())}
    winners = repository.winners()
    return lambda made: made.name in own or (made.name in winners and made.origin is not Origin.BROUGHT)


def proven(library: Mapping[str, PolicyInfo], repository: PolicyRepository) -> dict[str, PolicyInfo]:
    """Return what rules may plan with: the bundled policies, and those that won a trial.

    What a model made and nothing was shown of is its own to plan: a model that died, or spent its budget, would keep
    steering the run through what it left behind.
    """
    winners = repository.winners()
    return {name: info for name, info in library.items() if info.origin is Origin.BUNDLED or name in winners}


def _describe(made: DerivedPolicy, folder: Path) -> PolicyInfo:
    """Return what the manifest of a derived policy holds; raise PolicyError if that cannot be read."""
    info = read_manifest(made.manifest, f"the manifest of {made.name}", folder / f"{made.name}.bpf.c")
    if not NAME.fullmatch(made.name):
        raise PolicyError(f"{made.name!r} cannot be the name of a policy")
    if info.name != made.name:
        raise PolicyError(f"the manifest of {made.name} calls it {info.name!r}")
    return replace(info, origin=made.origin, parent=made.parent)


def _write(path: Path, text: str) -> None:
    """Write a file for its owner only, unless this is its content already; a reader sees all of it or none."""
    content = text.encode()
    try:
        if not path.is_symlink() and path.is_file() and path.read_bytes() == content:
            return
        private_folder(path.parent)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as folder:
            partial = Path(folder, path.name)
            partial.write_bytes(content)
            partial.chmod(0o600)
            partial.replace(path)
    except OSError as error:
        message = f"the policy {path} cannot be written: {error.strerror}"
        raise SetupError(message, "check the disk and its folder") from None
