"""Settings: the only reader of the environment and of the TOML configuration file.

Each setting is one field of `Settings`. Its value is taken from the environment variable named in `OPTIONS`, else from
the key of the same name in the file that ``SCHEDAGENT_CONFIG`` names (without it,
``$XDG_CONFIG_HOME/schedagent/config.toml``), else it is the default.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schedagent.core import accept
from schedagent.core.errors import SetupError, UsageError

if TYPE_CHECKING:
    from schedagent.core.service_settings import ServiceSettings

AGENTS = ("observation", "planning", "execution", "learning")
"""Who may ask a model."""

REPOSITORY = "repository.sqlite"
"""In the state folder."""

INSTALLED_VERIFIER = Path("/run/schedagent-verifier.sock")
"""Where the verifier's systemd unit listens."""

_PROGRAM = "schedagent"
_NONE = "none"
_SERVICES = ("schedagent", "schedagent-verifier", "schedagentd")
_CONFIG = "SCHEDAGENT_CONFIG"
_OF_A_MAKE = ("MAKELEVEL", "MAKEFLAGS", "MFLAGS", "MAKE_TERMOUT", "MAKE_TERMERR")
_FIRST_ACTIVATED = 3  # SD_LISTEN_FDS_START


@dataclass(frozen=True)
class ModelPrice:
    """What a model costs, in dollars per million tokens.

    Args:
        model: its name, as the endpoint knows it.
        input, output: price of what is sent and of what is answered.
    """

    model: str
    input: float
    output: float


def _service(value: object = None) -> ServiceSettings:
    from schedagent.core.service_settings import ServiceSettings, read_service  # lazily: schedagentd does not need it

    return ServiceSettings() if value is None else read_service(value)


@dataclass(frozen=True)
class Settings:
    """What the user may choose; everything has a default. OPTIONS describes each field.

    Args:
        config_path: the file these were read from, whether it exists or not.
    """

    cache_dir: Path
    state_dir: Path
    kernel_release: str = ""
    model_base_url: str = ""
    model_name: str = ""
    model_api_key: str = field(default="", repr=False)
    model_observation: str = ""
    model_planning: str = ""
    model_execution: str = ""
    model_learning: str = ""
    model_answers: str = "json_schema"
    model_timeout_s: int = 120
    model_max_calls: int = 60
    model_max_tokens: int = 300_000
    model_max_dollars: float = 1.0
    model_prices: tuple[ModelPrice, ...] = ()
    vm_cpus: int | None = None
    vm_memory_mib: int | None = None
    verifier_socket: Path | None = None
    mcp_token: str = field(default="", repr=False)
    daemon: ServiceSettings = field(default_factory=_service)
    config_path: Path | None = None

    @property
    def verifier_service(self) -> Path | None:
        """Socket of the verifier to use: the one that is set, else that of the installed service, if it listens."""
        if self.verifier_socket:
            return None if self.verifier_socket == Path(_NONE) else self.verifier_socket
        return INSTALLED_VERIFIER if INSTALLED_VERIFIER.is_socket() else None

    @property
    def kernels_dir(self) -> Path:
        """Downloaded kernels, one folder per release."""
        return self.cache_dir / "kernels"

    @property
    def venv_dir(self) -> Path:
        """The private virtual environment that `make setup` fills."""
        return self.cache_dir / "venv"

    def model_for(self, role: str) -> str:
        """Return the name of the model an agent asks: its own, or the one for all.

        Args:
            role: observation, planning, execution or learning.
        """
        chosen: str = getattr(self, f"model_{role}")
        return chosen or self.model_name

    @property
    def has_model(self) -> bool:
        """Whether an endpoint is named, and a model for some agent."""
        return bool(self.model_base_url) and any(map(self.model_for, AGENTS))

    @property
    def repository_path(self) -> Path:
        """The policy repository."""
        return self.state_dir / REPOSITORY

    @property
    def keys_dir(self) -> Path:
        """The verifier's signing key, and the public keys that are trusted."""
        return self.state_dir / "keys"


def load_settings(env: Mapping[str, str] | None = None, config_path: Path | None = None) -> Settings:
    """Read the settings.

    Args:
        env: environment; None for that of this process.
        config_path: TOML file; None for the one that SCHEDAGENT_CONFIG names, else the user's own, which need not
            exist.

    Raises:
        UsageError: an unknown key, a value that is not accepted, or a file that cannot be read.
    """
    return _read(os.environ if env is None else env, config_path)[0]


@dataclass(frozen=True)
class Setting:
    """One setting as it is in force.

    Args:
        key: its name in the file.
        value: what it is; of a secret that is set, only SECRET.
        origin: where that comes from: DEFAULT, the environment variable, or the path of the file.
    """

    key: str
    value: Any
    origin: str


DEFAULT = "default"
SECRET = "(secret)"


def explain_settings(env: Mapping[str, str] | None = None, config_path: Path | None = None) -> list[Setting]:
    """Return every setting with where it comes from; arguments and errors as for `load_settings`."""
    settings, origins = _read(os.environ if env is None else env, config_path)
    return [
        Setting(key, SECRET if key in _SECRETS and value else value, origins.get(key, DEFAULT))
        for key in OPTIONS
        for value in (getattr(settings, key),)
    ]


def _read(env: Mapping[str, str], config_path: Path | None) -> tuple[Settings, dict[str, str]]:
    """Return the settings, and where those come from that are not the default."""
    named = config_path or (Path(env[_CONFIG]) if env.get(_CONFIG) else None)
    path = named or _xdg(env, "XDG_CONFIG_HOME", ".config") / "config.toml"
    from_file, from_environment = _from_file(path, must_exist=named is not None), _from_environment(env)
    folders = {
        "cache_dir": _xdg(env, "XDG_CACHE_HOME", ".cache"),
        "state_dir": _xdg(env, "XDG_STATE_HOME", ".local/state"),
    }
    origins = dict.fromkeys(from_file, str(path)) | {key: variables()[key] for key in from_environment}
    return Settings(**(folders | from_file | from_environment), config_path=path), origins


def activated_descriptors(env: Mapping[str, str] | None = None) -> range:
    """Return the descriptors of sockets that systemd opened for this process (sd_listen_fds(3)); empty without any."""
    env = os.environ if env is None else env
    pid, count = env.get("LISTEN_PID", ""), env.get("LISTEN_FDS", "")
    ours = pid.isascii() and pid.isdigit() and int(pid) == os.getpid() and count.isascii() and count.isdigit()
    return range(_FIRST_ACTIVATED, _FIRST_ACTIVATED + int(count)) if ours else range(0)


def service_watch(env: Mapping[str, str] | None = None) -> tuple[str, float]:
    """Return where systemd wants to hear from this service, and how often at the latest in seconds (sd_notify(3),
    sd_watchdog_enabled(3)); an empty text and 0 without it."""
    env = os.environ if env is None else env
    period_us, pid = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", str(os.getpid()))
    meant = period_us.isascii() and period_us.isdigit() and pid == str(os.getpid())
    return env.get("NOTIFY_SOCKET", ""), int(period_us) * 1e-6 if meant else 0.0


def workload_environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment that a user's workload sees: this process's, without our own settings and secrets.

    What a make that started this process tells its children (GNU make manual, "Communicating Options to a Sub-make")
    goes too: its jobserver does not exist in the lab, and its options are not the workload's. Without MAKELEVEL,
    MAKEFLAGS is the user's own, and stays.
    """
    env = os.environ if env is None else env
    left_out = {_CONFIG, *variables().values(), *(_OF_A_MAKE if "MAKELEVEL" in env else ())}
    return {name: value for name, value in env.items() if name not in left_out}


def secret_places(settings: Settings) -> tuple[Path, ...]:
    """Return the files and folders that hold keys: of these settings, and of the services that may be installed."""
    ours = settings.keys_dir, settings.state_dir / "mcp.token", *filter(None, [settings.config_path])
    return *ours, Path("/etc/schedagent"), *(Path("/var/lib", name) for name in _SERVICES)


def variables() -> dict[str, str]:
    """Return the environment variable of each setting that has one, by the setting's key."""
    return {key: option.variable for key, option in OPTIONS.items() if option.variable}


def writable(directory: Path, variable: str = "SCHEDAGENT_CACHE") -> Path:
    """Create `directory` if need be, prove that a file can be written there, and return it.

    Args:
        variable: environment variable that moves this folder elsewhere, for the hint.

    Raises:
        SetupError: it cannot be written, with why and what to do; see `require_own`, too.
    """
    import tempfile  # lazily: it and tomllib would double the time this module takes to import

    require_own(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as probe:
            probe.write(b"\0" * 4096)
    except OSError as error:
        raise _unwritable(directory, variable, error) from None
    return directory


def require_own(path: Path) -> None:
    """Refuse to write as root where another user could have put a link to a file that only root may write.

    Raises:
        SetupError: a folder on the way to `path` belongs to somebody else.
    """
    if os.geteuid() != 0:
        return
    for start in (path.absolute(), path.resolve()):
        for place in (start, *start.parents):
            if owner := next(filter(None, _owners(place)), 0):
                raise SetupError(
                    f"{place} belongs to user {_user_name(owner)}: root would write wherever that user puts a link",
                    f"run it as that user: sudo -u {_user_name(owner)} env ... schedagent ..., "
                    "or use a folder of root's: SCHEDAGENT_STATE, SCHEDAGENT_CACHE",
                )


def _owners(place: Path) -> Iterator[int]:
    """Yield the user ids of a link and of what it leads to; of anything else, the same twice."""
    with suppress(FileNotFoundError, NotADirectoryError):
        yield place.lstat().st_uid
        yield place.stat().st_uid


def _user_name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def private_folder(path: Path) -> Path:
    """Create a folder that nobody but its user may enter, or make an existing one so, and return it.

    Raises:
        SetupError: see `require_own`.
    """
    require_own(path)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    hide(path)
    return path


def private_file(path: Path) -> Path:
    """Create a file that nobody but its user may read, or make an existing one so, and return it.

    It is not opened if it exists: closing a database in use would drop the locks that this process has on it.

    Raises:
        SetupError: see `require_own`.
    """
    require_own(path)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    hide(path)
    return path


def hide(path: Path) -> None:
    """Take everybody's rights but its user's from a file or folder, if it is still there."""
    with suppress(FileNotFoundError):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            path.chmod(mode & 0o700)


def _unwritable(directory: Path, variable: str, error: OSError) -> SetupError:
    elsewhere = f"set {variable} to a folder that can be written"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return SetupError(f"folder {directory} is read-only", elsewhere)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SetupError(f"no space is left in folder {directory}", f"free some space, or {elsewhere}")
    return SetupError(f"folder {directory} cannot be used: {error.strerror or error}", elsewhere)


def _xdg(env: Mapping[str, str], variable: str, below_home: str) -> Path:
    # XDG base directory specification: a relative path is invalid and is to be ignored.
    base = Path(env.get(variable, ""))
    home = Path(env.get("HOME") or Path.home())
    return (base if base.is_absolute() else home / below_home) / _PROGRAM


def _from_environment(env: Mapping[str, str]) -> dict[str, Any]:
    chosen = {}
    for key, variable in variables().items():
        if text := env.get(variable, ""):
            chosen[key] = _accepted(key, text, f"{variable}={_shown(key, text)}")
    return chosen


def _from_file(path: Path, must_exist: bool) -> dict[str, Any]:
    if not path.exists():
        if must_exist:
            raise UsageError(f"configuration file {path} does not exist")
        return {}
    import tomllib

    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"configuration file {path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # TOML and UTF-8 errors both
        raise UsageError(f"configuration file {path} is not TOML: {error}") from None
    chosen = {}
    for key, value in table.items():
        if key not in OPTIONS:
            raise UsageError(f"unknown key {key!r} in {path}", f"accepted: {', '.join(sorted(OPTIONS))}")
        written = "[daemon]" if key == "daemon" else f"{key} = {_shown(key, value)}"
        chosen[key] = _accepted(key, value, f"{written} in {path}")
    return chosen


def _accepted(key: str, value: object, where: str) -> Any:
    try:
        return OPTIONS[key].accept(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where} is not accepted", f"accepted: {error}") from None


def _shown(key: str, value: object) -> str:
    return "..." if key in _SECRETS else repr(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a string")
    return value


def _folder(value: object) -> Path:
    if not isinstance(value, str) or not value:
        raise TypeError("the path of a folder")
    return Path(value).expanduser().absolute()


def _socket(value: object) -> Path:
    if value == _NONE:
        return Path(_NONE)
    if not isinstance(value, str) or not value or len(os.fsencode(value)) > accept.LONGEST_SOCKET_PATH:
        raise ValueError(f"the path of a unix socket, at most {accept.LONGEST_SOCKET_PATH} bytes long, or none")
    return Path(value).expanduser().absolute()


def _release(value: object) -> str:
    if not isinstance(value, str) or not set(value) <= _RELEASE_CHARACTERS or not value[:1].isdigit():
        raise ValueError("a kernel release as uname -r prints it, such as 6.18.15+deb13-amd64")
    return value


def _url(value: object) -> str:
    if not isinstance(value, str) or not value.startswith(("http://", "https://")) or "@" in value:
        raise ValueError("an address that starts with http:// or https://, without a user or password in it")
    return value.rstrip("/")


def _key(value: object) -> str:
    # Nothing that an error text would show escaped: a key is found there, and taken out, as it is.
    if not isinstance(value, str) or not all("!" <= character <= "~" for character in value):
        raise ValueError("a key of printable ASCII characters, without spaces or line ends")
    return value


def _token(value: object) -> str:
    if len(_key(value)) < _LEAST_TOKEN:
        raise ValueError(f"a token of at least {_LEAST_TOKEN} printable ASCII characters, without spaces")
    return _key(value)


def _dollars(value: object) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError("an amount of dollars, 0 or more")
    return number


def _prices(value: object) -> tuple[ModelPrice, ...]:
    if not isinstance(value, dict) or not all(
        isinstance(price, dict) and set(price) == _SIDES for price in value.values()
    ):
        raise TypeError(
            'one table for each model: [model_prices."NAME"] with input and output in dollars per million tokens'
        )
    return tuple(ModelPrice(name, _dollars(price["input"]), _dollars(price["output"])) for name, price in value.items())


def _whole(minimum: int, maximum: int) -> Callable[[object], int]:
    """As accept.whole; the environment knows digits only."""
    check = accept.whole(minimum, maximum)

    def read(value: object) -> int:
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS:
            return check(int(value))
        return check(value)

    return read


_SECRETS = frozenset(("model_api_key", "mcp_token"))
_SIDES = frozenset(("input", "output"))
_LEAST_TOKEN = 32
_MOST_DIGITS = 20
_RELEASE_CHARACTERS = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.+~_-")


@dataclass(frozen=True)
class Option:
    """One setting.

    Args:
        variable: environment variable that chooses it; empty: only the file does.
        accept: returns the value of what was written, or raises ValueError or TypeError with what is accepted.
        meaning: what it is, for people.
    """

    variable: str
    accept: Callable[[Any], Any]
    meaning: str


_ONE_AGENT = "model of one agent; empty: model_name."
OPTIONS: Mapping[str, Option] = {
    "cache_dir": Option(
        "SCHEDAGENT_CACHE",
        _folder,
        "what can be made again: virtual environment, kernels, snapshots, compiled objects.",
    ),
    "state_dir": Option("SCHEDAGENT_STATE", _folder, "what cannot: the repository, checkpoints and keys."),
    "kernel_release": Option(
        "SCHEDAGENT_KERNEL",
        _release,
        "release (uname -r) of the kernel the micro-VM boots; empty for the newest at hand.",
    ),
    "model_base_url": Option(
        "OPENAI_BASE_URL", _url, "base of an OpenAI-compatible endpoint; empty: plan without a model."
    ),
    "model_name": Option("SCHEDAGENT_MODEL", _text, "model to use there; empty: plan without a model."),
    "model_api_key": Option("OPENAI_API_KEY", _key, "secret sent there."),
    "model_observation": Option("SCHEDAGENT_MODEL_OBSERVATION", _text, _ONE_AGENT),
    "model_planning": Option("SCHEDAGENT_MODEL_PLANNING", _text, _ONE_AGENT),
    "model_execution": Option("SCHEDAGENT_MODEL_EXECUTION", _text, _ONE_AGENT),
    "model_learning": Option("SCHEDAGENT_MODEL_LEARNING", _text, _ONE_AGENT),
    "model_answers": Option(
        "SCHEDAGENT_MODEL_ANSWERS",
        accept.one_of(("json_schema", "tool", "plain")),
        "how a model is asked for the form of its answer: json_schema (a response format), tool (a tool to call) or "
        "plain (in words); an endpoint that refuses one is asked for the next.",
    ),
    "model_timeout_s": Option(
        "SCHEDAGENT_MODEL_TIMEOUT_S", _whole(1, 3600), "wait at most this long for each answer, in seconds."
    ),
    "model_max_calls": Option(
        "SCHEDAGENT_MODEL_MAX_CALLS", _whole(0, 1_000_000), "the most calls of models that one run may make."
    ),
    "model_max_tokens": Option(
        "SCHEDAGENT_MODEL_MAX_TOKENS", _whole(0, 1_000_000_000), "the most tokens that one run may use."
    ),
    "model_max_dollars": Option(
        "SCHEDAGENT_MODEL_MAX_DOLLARS", _dollars, "the most that models may cost in one run, by model_prices."
    ),
    "model_prices": Option("", _prices, "what models cost; one that is not named is not counted in money."),
    "vm_cpus": Option("SCHEDAGENT_VM_CPUS", _whole(1, 256), "CPUs of the micro-VM; without it the lab chooses."),
    "verifier_socket": Option(
        "SCHEDAGENT_VERIFIER_SOCKET",
        _socket,
        "unix socket of the verifier service to use; without it that of the installed service, if it listens; "
        "none: this process verifies.",
    ),
    "mcp_token": Option(
        "SCHEDAGENT_MCP_TOKEN",
        _token,
        "what clients of `schedagent mcp --http` must send; empty: the one of the state folder.",
    ),
    "vm_memory_mib": Option(
        "SCHEDAGENT_VM_MEMORY_MIB",
        _whole(256, 1 << 20),
        "memory of the micro-VM in MiB; without it the lab chooses.",
    ),
    "daemon": Option("", _service, "what the agent service watches, and what it may do by itself."),
}
"""Each setting by its key in the file, which is the name of its field of Settings."""
