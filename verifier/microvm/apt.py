"""apt with a private set of sources, derived from the machine's own, that leaves the system's apt configuration alone.

The mirror, its keyring and its options come from /etc/apt; proxies and credentials keep working because only the
source list, the package lists and the binary caches are redirected. apt itself verifies signatures and checksums.
Standard library only: `make setup` uses it before the virtual environment exists.
"""

from __future__ import annotations

import platform
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from schedagent.core.errors import SetupError
from schedagent.core.process import proc

_DEB822_NAMES = {"arch": "architectures", "lang": "languages", "target": "targets"}
"""Options of one-line sources whose deb822 field is called otherwise (sources.list(5)); the rest keep their name."""

_RELEASE_ALIASES = frozenset({"stable", "oldstable", "testing", "unstable", "sid"})
_DOWNLOAD_TIMEOUT_S = 1500.0


@dataclass(frozen=True)
class Source:
    """One archive in apt's configuration.

    Args:
        uri: base address of the archive.
        suites, components: as written.
        options: (deb822 field, raw value) of everything else, Signed-By above all.
    """

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()

    def deb822(self) -> str:
        """Return the stanza for a .sources file."""
        fields = [
            ("types", "deb"),
            ("uris", self.uri),
            ("suites", " ".join(self.suites)),
            ("components", " ".join(self.components)),
            *self.options,
        ]
        return "".join(f"{name}: {value}\n" for name, value in fields)


def read_sources(etc_apt: Path = Path("/etc/apt")) -> list[Source]:
    """Return the binary archives of apt's configuration, from both formats, in the order apt reads them."""
    parts = sorted((etc_apt / "sources.list.d").glob("*"))
    sources: list[Source] = []
    for path in [etc_apt / "sources.list", *parts]:
        if not path.is_file():
            continue
        if path.suffix == ".list":
            sources += _one_line_sources(path.read_text(encoding="utf-8"))
        elif path.suffix == ".sources":
            sources += _deb822_sources(path.read_text(encoding="utf-8"))
    return sources


def _one_line_sources(text: str) -> Iterable[Source]:
    """Parse ``deb [name=value ...] uri suite component...`` lines."""
    for line in text.splitlines():
        words = line.partition("#")[0].replace("[", " [ ").replace("]", " ] ").split()
        if not words or words.pop(0) != "deb":
            continue
        options: list[tuple[str, str]] = []
        if words[:1] == ["["] and "]" in words:
            end = words.index("]")
            pairs = [word.partition("=") for word in words[1:end]]
            options = [(_DEB822_NAMES.get(name, name), value.replace(",", " ")) for name, _, value in pairs]
            words = words[end + 1 :]
        if len(words) >= 3:
            yield Source(words[0], (words[1],), tuple(words[2:]), tuple(options))


def _deb822_sources(text: str) -> Iterable[Source]:
    """Parse stanzas of ``Field: value`` with folded lines (an in-line key is one) and comment lines."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in "\n".join(line.rstrip() for line in lines).split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[name] = f"{fields.get(name, '')}\n{line}"
            else:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        types, uris = fields.pop("types", "").split(), fields.pop("uris", "").split()
        suites, components = fields.pop("suites", "").split(), fields.pop("components", "").split()
        if "deb" in types and fields.pop("enabled", "yes").lower() not in ("no", "false", "0"):
            for uri in uris:
                yield Source(uri, tuple(suites), tuple(components), tuple(fields.items()))


def distribution_codename() -> str:
    """Return VERSION_CODENAME of /etc/os-release; raise SetupError if this is not a Debian release."""
    release = platform.freedesktop_os_release()
    codename = release.get("VERSION_CODENAME", "")
    if release.get("ID") != "debian" or not codename:
        raise SetupError(f"this is {release.get('PRETTY_NAME', 'something else')}, and no release of Debian")
    return codename


def distribution_sources(sources: Sequence[Source], codename: str) -> list[Source]:
    """Return those `sources` that carry the distribution itself, updates and security fixes included."""
    names = _RELEASE_ALIASES | {codename}
    chosen = []
    for source in sources:
        suites = tuple(suite for suite in source.suites if suite.replace("/", "-").split("-")[0] in names)
        if suites and "main" in source.components:
            chosen.append(replace(source, suites=suites, components=("main",)))
    return chosen


def debian_mirror(sources: Sequence[Source], codename: str) -> Source:
    """Return the archive that carries the release itself, preferring one whose address ends as Debian's mirrors' do.

    Raises:
        SetupError: there is none.
    """
    names = _RELEASE_ALIASES | {codename}
    carriers = [source for source in distribution_sources(sources, codename) if names & set(source.suites)]
    if not carriers:
        raise SetupError(
            f"apt's configuration in /etc/apt names no network archive for {codename} main",
            "add your Debian mirror there, then run this again",
        )
    return next((source for source in carriers if source.uri.rstrip("/").endswith("/debian")), carriers[0])


class PrivateApt:
    """apt that sees only the given sources; its lists live in `folder`.

    Args:
        folder: created if need be; what was fetched there is reused.
        sources: archives to read.
    """

    def __init__(self, folder: Path, sources: Sequence[Source]) -> None:
        parts = folder / "sources.d"
        lists = folder / "lists"
        parts.mkdir(parents=True, exist_ok=True)
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        (parts / "private.sources").write_text("\n".join(source.deb822() for source in sources), encoding="utf-8")
        settings = {
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": str(parts),
            "Dir::State::lists": str(lists),
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "Acquire::Retries": "3",
            "DPkg::Lock::Timeout": "300",
        }
        configuration = folder / "apt.conf"
        configuration.write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()), encoding="utf-8")
        self._options = ["-c", str(configuration)]

    def update(self) -> None:
        """Fetch the package lists; raise SetupError with apt's words if any is out of reach."""
        self._run("apt-get", "update", "--error-on=any", "-qq", timeout_s=600)

    def names(self, prefix: str) -> list[str]:
        """Return the names of the packages on offer that start with `prefix`."""
        return sorted(set(self._run("apt-cache", "pkgnames", prefix).split()))

    def versions(self, package: str) -> list[tuple[str, str]]:
        """Return (version, suite) of each version on offer, newest first."""
        rows = [line.split("|") for line in self._run("apt-cache", "madison", package).splitlines()]
        return [
            (row[1].strip(), row[2].split()[1].partition("/")[0]) for row in rows if row[2].strip().endswith("Packages")
        ]

    def depends(self, package: str) -> list[str]:
        """Return the packages that `package` depends on, first alternatives only, newest version."""
        lines = self._run("apt-cache", "show", "--no-all-versions", package).splitlines()
        value = next((line.partition(":")[2] for line in lines if line.startswith("Depends:")), "")
        return [clause.split()[0].partition(":")[0] for clause in value.split(",") if clause.strip()]

    def download(self, packages: Sequence[str], into: Path) -> list[Path]:
        """Download packages, checksums verified by apt, into the empty folder `into`; return the .deb files."""
        self._run("apt-get", "download", "-qq", *packages, cwd=into, timeout_s=_DOWNLOAD_TIMEOUT_S)
        return sorted(into.glob("*.deb"))

    def install_command(self, packages: Sequence[str], suite: str = "") -> list[str]:
        """Return the command, to be run as root, that installs `packages`, from `suite` if one is given."""
        target = ["-t", suite] if suite else []
        return ["apt-get", *self._options, "install", "-y", "--no-install-recommends", *target, *packages]

    def _run(self, program: str, verb: str, *words: str, cwd: Path | None = None, timeout_s: float = 120) -> str:
        # Without the machine's own status, or installed packages would look as if they were on offer.
        argv = [program, *self._options, "-o", "Dir::State::status=/dev/null", verb, *words]
        done = proc.run(argv, timeout_s=timeout_s, cwd=cwd)
        if done.returncode != 0:
            raise apt_failure(f"{program} {verb} {' '.join(words)}".strip(), done)
        return done.stdout.decode(errors="replace")


def apt_failure(what: str, done: subprocess.CompletedProcess[bytes]) -> SetupError:
    """Return the error for a failed apt command, with apt's own lines."""
    return SetupError(
        f"{what} failed:\n{last_words(done)}",
        f"check the network and the disk, then run again; by hand: {shlex.join(map(str, done.args))}",
    )


def last_words(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return why a package manager failed: its last lines, those alone that apt marks as errors if there are any."""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    marked = [line for line in lines if line.startswith(("E:", "W:", "Err:"))]
    return "\n".join((marked or lines)[-6:]) or f"it ended with exit status {done.returncode}"
