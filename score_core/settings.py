"""Settings: read once, checked, frozen, then passed down as the smallest piece that is needed.

Sources, strongest first: command-line flag, environment, profile, file, default. `Settings.origins` says which one won.

On plain dataclasses and `tomllib`, and not on pydantic-settings: importing it and building these two models takes 0.39-0.43 s of CPU here,
pydantic alone 0.28-0.35 s, this module 0.03 s. A transfer has 0.6 s from the command line to its first byte (design, section 8) and
needs 0.40-0.45 s of that for everything else, so neither fits. The price is the table `_KEYS` below, which also tells origins apart,
names the file in each message and masks secrets: things that would have been written on top of pydantic-settings anyway.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args
from urllib.parse import urlsplit

import platformdirs

from score_core.errors import ConfigurationError
from score_core.model import Validation
from score_core.plan import MAX_PART_SIZE_BYTES, MIN_PART_SIZE_BYTES

_log = logging.getLogger(__name__)

ProgressMode = Literal["auto", "bar", "log", "none"]

CONFIG_VARIABLE: Final = "SCORE_CONFIG"
PROFILE_VARIABLES: Final = ("SCORE_PROFILE", "STORAGE_PROFILE")  # the second is the Java client's
DEFAULT_PROFILE: Final = "default"
_JAVA_VALIDATIONS: Final = {"true": "auto", "false": "off"}
_MAX_TOKEN_CHARACTERS: Final = 16_384  # servers refuse headers long before that
_PRIVATE_MODE: Final = 0o077


class Secret:
    """A text that shows itself only when asked by name."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "****"


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """How bytes are moved. `docs/configuration.md` describes each for users.

    `workers` parts are under way at once, over all files; `files_at_once` files of a batch are. `attempts` counts tries of one part, the first
    included. `stall_s` is how long a connection may bring next to nothing. `part_size_bytes` is the smallest part that is planned when we
    talk to a store directly: 20 MiB is Score's floor, which Java clients and servers expect; less is for tests and small files.
    Lifetimes are those of signed URLs. `ca_file` (PEM) replaces the system's certificate authorities.
    """

    workers: int = 8
    files_at_once: int = 4
    attempts: int = 10
    connect_timeout_s: float = 30.0
    stall_s: float = 30.0
    part_size_bytes: int = MIN_PART_SIZE_BYTES
    download_url_lifetime_s: float = 900.0
    upload_url_lifetime_s: float = 3600.0
    ca_file: Path | None = None


def _default_data_dir() -> Path:
    return platformdirs.user_data_path("score", appauthor=False)


@dataclass(frozen=True, slots=True)
class Origin:
    """One setting for people: its dotted name, its value as text (a secret as `****`), and where it came from."""

    name: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be configured.

    At most one of `url` (a Score server) and `store` (a bucket or folder) is set; with neither, objects are in `data_dir`.
    `serve_url` is the address of a running `score serve`, for URLs into a folder that outlive this process.
    `sources` maps the dotted names of settings to where they came from; absent means default.
    """

    url: str | None = None
    store: str | None = None
    token: Secret | None = None
    data_dir: Path = field(default_factory=_default_data_dir)
    serve_url: str | None = None
    validate: Validation = "auto"
    progress: ProgressMode = "auto"
    transfer: TransferSettings = field(default_factory=TransferSettings)
    profile: str = DEFAULT_PROFILE
    config_file: Path | None = None
    sources: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def origins(self) -> list[Origin]:
        """Every setting with its value and source, secrets masked."""
        return [Origin(name, _shown(self._value(name)), self.sources.get(name, "default")) for name in _KEYS]

    def _value(self, name: str) -> object:
        value: object = self
        for step in name.split("."):
            value = getattr(value, step)
        return value


def _shown(value: object) -> str:
    return "" if value is None else str(value)


# What a value must be. A check takes a raw value and whether it is text (environment, flag) or typed (TOML); ValueError says what is wanted.

Check = Callable[[Any, bool], Any]


def _whole(low: int, high: int, unit: str) -> Check:
    wanted = f"a whole number of {unit} from {low} to {high}"

    def check(raw: Any, text: bool) -> int:
        if text and re.fullmatch(r"[0-9]{1,19}", raw):
            raw = int(raw)
        if not isinstance(raw, int) or isinstance(raw, bool) or not low <= raw <= high:
            raise ValueError(wanted)
        return raw

    return check


def _seconds(low: float, high: float) -> Check:
    wanted = f"a number of seconds from {low:g} to {high:g}"

    def check(raw: Any, text: bool) -> float:
        if text and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", raw):
            raw = float(raw)
        if not isinstance(raw, int | float) or isinstance(raw, bool) or not low <= raw <= high:
            raise ValueError(wanted)
        return float(raw)

    return check


def _choice(choices: tuple[str, ...], aliases: Mapping[str, str] | None = None) -> Check:
    def check(raw: Any, text: bool) -> str:  # noqa: ARG001
        chosen = (aliases or {}).get(_folded(raw), _folded(raw))
        if chosen not in choices:
            raise ValueError("one of " + ", ".join([*choices, *(aliases or {})]))
        return chosen

    return check


def _folded(raw: Any) -> str:
    return raw.strip().lower() if isinstance(raw, str) else str(raw).lower()  # TOML's true is Java's "true"


def _text(raw: Any, text: bool) -> str:  # noqa: ARG001
    if not isinstance(raw, str) or not raw.strip():
        raise ValueError("a text")
    return raw.strip()


def _server_url(raw: Any, text: bool) -> str:
    wanted = "an address such as https://score.example.org, without user, password or query"
    try:
        parts = urlsplit(_text(raw, text))
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        raise ValueError(wanted) from None
    if not good or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(wanted)
    return parts.geturl().rstrip("/")


def _folder(raw: Any, text: bool) -> Path:
    path = Path(_text(raw, text)).expanduser()
    if "\0" in str(path):
        raise ValueError("a folder's path")
    return path.absolute()


def _file(raw: Any, text: bool) -> Path:
    path = _folder(raw, text)
    if not path.is_file():
        raise ValueError("the path of a file that exists")
    return path


def _token(raw: Any, text: bool) -> Secret:
    token = _text(raw, text)
    if len(token) > _MAX_TOKEN_CHARACTERS or not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ValueError(f"at most {_MAX_TOKEN_CHARACTERS} printable ASCII characters without spaces")
    return Secret(token)


@dataclass(frozen=True, slots=True)
class _Key:
    """One setting. `variables` are its environment names, strongest first."""

    check: Check
    variables: tuple[str, ...]
    secret: bool = False


def _transfer(check: Check, name: str) -> _Key:
    return _Key(check, (f"SCORE_{name.upper()}",))


_DAY_S: Final = 86_400
_KEYS: Final[Mapping[str, _Key]] = {
    "url": _Key(_server_url, ("STORAGE_URL", "SCORE_URL")),
    "store": _Key(_text, ("SCORE_STORE",)),
    "token": _Key(_token, ("ACCESSTOKEN",), secret=True),
    "data_dir": _Key(_folder, ("SCORE_DATA_DIR",)),
    "serve_url": _Key(_server_url, ("SCORE_SERVE_URL",)),
    "validate": _Key(_choice(get_args(Validation), _JAVA_VALIDATIONS), ("SCORE_VALIDATE",)),
    "progress": _Key(_choice(get_args(ProgressMode)), ("SCORE_PROGRESS",)),
    **{
        f"transfer.{name}": _transfer(check, name)
        for name, check in {
            "workers": _whole(1, 256, "parts at once"),
            "files_at_once": _whole(1, 64, "files at once"),
            "attempts": _whole(1, 1000, "tries of one part"),
            "connect_timeout_s": _seconds(0.1, 600),
            "stall_s": _seconds(1, 3600),
            "part_size_bytes": _whole(1024, MAX_PART_SIZE_BYTES, "bytes"),
            "download_url_lifetime_s": _seconds(10, 7 * _DAY_S),  # S3 signs for 7 days at most
            "upload_url_lifetime_s": _seconds(10, 7 * _DAY_S),
            "ca_file": _file,
        }.items()
    },
}
_FLAGS: Final = {"url", "store", "validate", "progress"}

_Found = tuple[Any, str, bool]  # raw value, source, whether it is text


def load(
    flags: Mapping[str, str | None] | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    profile: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """The settings. `flags` maps names such as `store` to what the command line says, None meaning nothing.

    Raises:
        ConfigurationError: a file cannot be read, or a key or value is wrong; names the key and where it stands.
    """
    environ = os.environ if environ is None else environ
    path, tables = _config_file(config, environ)
    profile = profile or next((environ[name] for name in PROFILE_VARIABLES if environ.get(name)), DEFAULT_PROFILE)
    found: dict[str, _Found] = {}
    for layer in (
        _from_tables(path, tables),
        _from_profile(path, tables, profile),
        _from_environment(environ),
        _from_flags(flags or {}),
    ):
        found.update(_one_place(found, layer))
    values = {name: _checked(name, *what) for name, what in found.items()}
    transfer = TransferSettings(**{name.partition(".")[2]: value for name, value in values.items() if "." in name})
    plain = {name: value for name, value in values.items() if "." not in name}
    sources = {name: source for name, (_, source, _) in found.items()}
    return Settings(**plain, transfer=transfer, profile=profile, config_file=path if tables else None, sources=sources)


def _one_place(found: dict[str, _Found], layer: dict[str, _Found]) -> dict[str, _Found]:
    """`layer`, with `url` and `store` as the one question that they are: where the objects are.

    A stronger source that answers it silences the weaker answer; in one source the server comes first.
    """
    if "url" in layer:
        layer.pop("store", None)
    if {"url", "store"} & layer.keys():
        for name in ("url", "store"):
            found.pop(name, None)
    return layer


def _from_flags(flags: Mapping[str, str | None]) -> dict[str, _Found]:
    return {name: (value, f"option --{name}", True) for name, value in flags.items() if value is not None and name in _FLAGS}


def _from_environment(environ: Mapping[str, str]) -> dict[str, _Found]:
    """An empty variable counts as not set: that is how shells and Java's launcher unset one."""
    found: dict[str, _Found] = {}
    for name, key in _KEYS.items():
        for variable in key.variables:
            if environ.get(variable):
                found[name] = (environ[variable], f"environment {variable}", True)
                break
    return found


def _from_tables(path: Path, tables: dict[str, Any]) -> dict[str, _Found]:
    return {
        name: (raw, str(path), False) for name, raw in _flat({k: v for k, v in tables.items() if k != "profiles"}, "", str(path))
    }


def _from_profile(path: Path, tables: dict[str, Any], profile: str) -> dict[str, _Found]:
    profiles = tables.get("profiles", {})
    if not isinstance(profiles, dict) or not all(isinstance(table, dict) for table in profiles.values()):
        raise ConfigurationError(f"'profiles' in {path} must hold one table per profile, as in [profiles.{profile}]")
    everyone = {name: list(_flat(table, "", f"profile {name} in {path}")) for name, table in profiles.items()}
    if profile not in profiles:
        if profile == DEFAULT_PROFILE:
            return {}
        known = ", ".join(sorted(profiles)) or "none"
        raise ConfigurationError(f"There is no profile {profile!r} in {path}; profiles there: {known}")
    return {name: (raw, f"profile {profile} in {path}", False) for name, raw in everyone[profile]}


def _flat(table: Mapping[str, Any], prefix: str, source: str) -> Iterator[tuple[str, Any]]:
    """Dotted names and raw values. Raises `ConfigurationError` for a name that does not exist."""
    for key, raw in table.items():
        name = prefix + key
        if name == "transfer" and isinstance(raw, dict):
            yield from _flat(raw, "transfer.", source)
        elif name in _KEYS:
            yield name, raw
        else:
            near = difflib.get_close_matches(name, _KEYS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; docs/configuration.md lists all keys"
            raise ConfigurationError(f"Unknown key {name!r} ({source}){hint}")


def _checked(name: str, raw: Any, source: str, text: bool) -> Any:
    key = _KEYS[name]
    try:
        return key.check(raw, text)
    except ValueError as wanted:
        got = "" if key.secret else f", got {str(raw)[:200]!r}"
        raise ConfigurationError(f"{name} must be {wanted}{got} ({source})") from None


def _config_file(named: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> tuple[Path, dict[str, Any]]:
    """The configuration file's path and content; a missing one is empty unless it was named."""
    wanted = named if named is not None else environ.get(CONFIG_VARIABLE) or None
    path = Path(wanted).expanduser().absolute() if wanted else platformdirs.user_config_path("score", appauthor=False) / "config.toml"
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            tables = tomllib.load(file)
    except FileNotFoundError:
        if wanted:
            raise ConfigurationError(f"The configuration file {path} does not exist") from None
        return path, {}
    except OSError as error:
        raise ConfigurationError(f"The configuration file {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The configuration file {path} is not valid TOML: {_without_value(error)}") from None
    if mode & _PRIVATE_MODE and _holds_secret(tables):
        _log.warning("%s holds a token and other users can read it; run: chmod 600 %s", path, path)
    return path, tables


def _without_value(error: ValueError) -> str:
    """tomllib's messages name the place, and a repeated key at most; never a value. Undecodable bytes would be quoted."""
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def _holds_secret(table: Mapping[str, Any]) -> bool:
    return any(
        _holds_secret(value) if isinstance(value, dict) else name in _KEYS and _KEYS[name].secret for name, value in table.items()
    )
