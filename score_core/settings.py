"""Settings: read once, checked, frozen, then passed down as the smallest piece that is needed.

Sources, strongest first: command-line flag, environment, profile, file, default. `Settings.origins` says which one won. The Java client's
variables and its `application.properties` are understood, too (`java_settings.py`).

A plain dataclass with its checks in the annotations, and no model of pydantic: importing that and building one costs 0.10 s of CPU, with
pydantic-settings 0.14, at every start of every command; this costs 0.01 (docs/performance.md).
"""

from __future__ import annotations

import difflib
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args, get_type_hints
from urllib.parse import urlsplit

import platformdirs

from score_core import java_settings
from score_core.errors import ConfigurationError
from score_core.model import Validation
from score_core.plan import MAX_PART_SIZE_BYTES, MIN_PART_SIZE_BYTES

_log = logging.getLogger(__name__)

ProgressMode = Literal["auto", "bar", "log", "none"]

DEFAULT_PROFILE: Final = "default"
_PREFIX: Final = "SCORE_"
_JAVA_PROFILE: Final = "STORAGE_PROFILE"
_JAVA_FILE: Final = ".properties"
_JAVA_VALIDATIONS: Final = {"true": "auto", "false": "off"}
_NOT_IN_FILES: Final = frozenset({"profile", "config"})  # they say which file and what of it
_HOST: Final = re.compile(r"[A-Za-z0-9.-]{1,253}|[0-9A-Fa-f:.]{2,45}")
_MAX_TOKEN_CHARACTERS: Final = 16_384  # servers refuse headers long before that
_WEEK_S: Final = 7 * 86_400  # S3 signs for no longer


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """How bytes are moved: the piece of `Settings` that an engine needs, where the fields are described."""

    workers: int
    files_at_once: int
    attempts: int
    connect_timeout_s: float
    read_timeout_s: float
    stall_s: float
    part_size_bytes: int
    download_url_lifetime_s: float
    upload_url_lifetime_s: float
    ca_file: Path | None
    allow_plain_http: bool


@dataclass(frozen=True, slots=True)
class Origin:
    """One setting for people: its name, its value as text (a secret masked), and where it came from."""

    name: str
    value: str
    source: str


class Secret:
    """A text that does not show when it is printed, logged or part of a traceback."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def get_secret_value(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "**********"


# Checks: from what a source says to the value. A ValueError's text goes on after "NAME must be ".


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text")  # noqa: TRY004  # this way all that is wrong with a value comes to the same place
    return value


def _number(kind: type[int | float], least: float, most: float, unit: str) -> Callable[[Any], float]:
    """A check for numbers within bounds, as such or as text."""

    def check(value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)  # booleans are numbers to Python
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number) or kind(number) != number:
            raise ValueError(f"a number of {unit}")
        if number < least:
            raise ValueError(f"at least {least} {unit}")
        if number > most:
            raise ValueError(f"at most {most} {unit}")
        return kind(number)

    return check


def _choice(choices: Any, *, also: Mapping[str, str] | None = None) -> Callable[[Any], Any]:
    """A check for a Literal's texts. They are taken in any case, as the Java client takes them; TOML's true is its "true"."""
    known = get_args(choices)

    def check(value: Any) -> str:
        found = str(value).strip().lower()
        found = (also or {}).get(found, found)
        if found not in known:
            raise ValueError(f"{', '.join(map(repr, known[:-1]))} or {known[-1]!r}")
        return found

    return check


def _truth(value: Any) -> bool:
    found = java_settings.truth(str(value))
    if found is None:
        raise ValueError("true or false")
    return found


def _server(value: Any) -> str:
    try:
        parts = urlsplit(_text(value).strip())
        good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("an address such as https://score.example.org, without user, password or query")
    return parts.geturl().rstrip("/")


def _address(value: Any) -> str:
    """Not empty; what it means is known where stores are opened."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("an address such as s3://bucket or file:///folder")
    return value.strip()


def _absolute(value: Any) -> Path:
    if not isinstance(value, str | os.PathLike) or "\0" in str(value):
        raise ValueError("a path")
    return Path(value).expanduser().absolute()


def _existing(value: Any) -> Path:
    path = _absolute(value)
    if not path.is_file():
        raise ValueError("the path of a file that exists")
    return path


def _hosts(value: Any) -> tuple[str, ...]:
    """A list, or its items separated by commas."""
    hosts = [host.strip() for host in value.split(",") if host.strip()] if isinstance(value, str) else value
    if not isinstance(hosts, list) or not all(isinstance(host, str) and _HOST.fullmatch(host) for host in hosts):
        raise ValueError("names of hosts such as s3.example.org, without scheme, port or path")
    return tuple(host.lower() for host in hosts)


def _sendable(value: Any) -> Secret:
    token = _text(value)
    if len(token) > _MAX_TOKEN_CHARACTERS or not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ValueError(f"at most {_MAX_TOKEN_CHARACTERS} printable ASCII characters without spaces")
    return Secret(token)


_Url = Annotated[str | None, _server]


def _default_data_dir() -> Path:
    return platformdirs.user_data_path("score", appauthor=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be configured. Field names are the keys of the file, and with `SCORE_` in front the variables.

    At most one of `url` and `store` is set: `load` sees to it, and to the checks. `docs/configuration.md` describes each field for users.
    """

    profile: Annotated[str, _text] = DEFAULT_PROFILE
    config: Annotated[Path | None, _absolute] = None

    url: _Url = None
    """A Score server."""
    store: Annotated[str | None, _address] = None
    """A bucket or folder that we talk to ourselves."""
    token: Annotated[Secret | None, _sendable] = None
    """For the Score server and the metadata service."""
    token_file: Annotated[Path | None, _absolute] = None
    """A file that holds the token; read again when a server refuses what was in it. At most one of `token` and `token_file` is set."""
    metadata_url: _Url = None
    """A Song server."""
    portal_url: _Url = None
    """Where manifests are asked for by their id."""
    data_dir: Annotated[Path, _absolute] = field(default_factory=_default_data_dir)
    """Where objects are when neither `url` nor `store` says, and the embedded registry of metadata."""
    state_dir: Annotated[Path | None, _absolute] = None
    """Where half-finished downloads are kept instead of beside their targets: a workflow engine gives each attempt a new folder."""
    serve_url: _Url = None
    """A running `score serve`, for addresses into a folder that outlive this process."""
    validation: Annotated[Validation, _choice(Validation, also=_JAVA_VALIDATIONS)] = "auto"
    progress: Annotated[ProgressMode, _choice(ProgressMode)] = "auto"

    workers: Annotated[int, _number(int, 1, 256, "parts")] = 8
    """Parts under way at once, over all files."""
    files_at_once: Annotated[int, _number(int, 1, 64, "files")] = 4
    attempts: Annotated[int, _number(int, 1, 1000, "tries")] = 10
    """Tries of one part, the first included."""
    connect_timeout_s: Annotated[float, _number(float, 0.1, 600, "seconds")] = 30.0
    read_timeout_s: Annotated[float, _number(float, 0.1, 3600, "seconds")] = 60.0
    """How long a Score server or metadata service may take to answer."""
    stall_s: Annotated[float, _number(float, 1, 3600, "seconds")] = 30.0
    """How long a connection may bring next to nothing."""
    part_size_bytes: Annotated[int, _number(int, 1024, MAX_PART_SIZE_BYTES, "bytes")] = MIN_PART_SIZE_BYTES
    """The smallest part that is planned when we talk to a store ourselves. 20 MiB is Score's floor, which Java clients and servers
    expect; less is for tests and small files."""
    download_url_lifetime_s: Annotated[float, _number(float, 10, _WEEK_S, "seconds")] = 900.0
    upload_url_lifetime_s: Annotated[float, _number(float, 10, _WEEK_S, "seconds")] = 3600.0
    ca_file: Annotated[Path | None, _existing] = None
    """Certificate authorities (PEM) instead of the system's."""
    allow_plain_http: Annotated[bool, _truth] = False
    """Lets a token, and signed addresses from an https server, go over plain http to other machines."""
    data_hosts: Annotated[tuple[str, ...], _hosts] = ()
    """The only hosts that a server's signed addresses may lead to; empty: any."""

    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Where each setting came from, by name; absent means default. No setting itself."""

    @property
    def transfer(self) -> TransferSettings:
        return TransferSettings(**{name: getattr(self, name) for name in TransferSettings.__slots__})

    def origins(self) -> list[Origin]:
        """Every setting with its value and source, secrets masked."""
        return [Origin(name, _shown(getattr(self, name)), self.sources.get(name, "default")) for name in KEYS]


_CHECKS: Final[Mapping[str, Callable[[Any], Any]]] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(Settings, include_extras=True).items() if name != "sources"
}
KEYS: Final = tuple(name for name in _CHECKS if name not in _NOT_IN_FILES)
"""What a configuration file may say."""


def _shown(value: object) -> str:
    return "" if value is None else ", ".join(value) if isinstance(value, tuple) else str(value)


# Sources


class _Said(NamedTuple):
    """What a source says of a setting, as it stands there, and where."""

    value: Any
    where: str


_Source = Mapping[str, _Said]  # by setting


def _sources(given: Mapping[str, Any]) -> list[_Source]:
    """All sources, strongest first; `given` are the flags."""
    flags = {name: _Said(value, f"option --{name}") for name, value in given.items()}
    java, variables = _java_variables(), _variables()
    named = {**variables, **java, **flags}
    config, profile = (named[name].value if name in named else None for name in ("config", "profile"))
    return [flags, java, variables, *_files(config, str(profile or DEFAULT_PROFILE))]


def _variables() -> _Source:
    """`SCORE_...`, in any case. An empty one counts as not set."""
    given = {name.upper(): value for name, value in os.environ.items() if value}
    names = {name: f"{_PREFIX}{name.upper()}" for name in _CHECKS}
    return {name: _Said(given[variable], f"environment {variable}") for name, variable in names.items() if variable in given}


def _java_variables() -> _Source:
    found = _of_java(java_settings.from_environment())
    profile = os.environ.get(_JAVA_PROFILE)
    return {**found, "profile": _Said(profile, f"environment {_JAVA_PROFILE}")} if profile else found


def _of_java(found: Iterable[java_settings.Found]) -> _Source:
    return {it.name: _Said(it.value, it.where) for it in found}


def _files(named: Any, profile: str) -> list[_Source]:
    if named and str(named).lower().endswith(_JAVA_FILE):
        return [_properties(Path(named), profile)]
    return _tables(named, profile)


def _properties(path: Path, profile: str) -> _Source:
    """A Java client's file instead of ours."""
    path = path.expanduser().absolute()
    if profile != DEFAULT_PROFILE:
        raise ConfigurationError(
            f"There is no profile {profile!r} in {path}: a {_JAVA_FILE} file has none; use a .toml file, or no profile"
        )
    content, mode = _content(path)
    found = java_settings.from_properties(content.decode("latin-1"), str(path))  # latin-1 is what Java reads them as
    _warn_of_readers(path, mode, (it.name for it in found))
    return _of_java(found)


def _table(table: Mapping[str, Any], where: str) -> _Source:
    """One table of the configuration file: its top, or a profile."""
    for key in table:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; docs/configuration.md lists all keys"
            raise ConfigurationError(f"Unknown key {key!r} ({where}){hint}")
    return {key: _Said(value, where) for key, value in table.items()}


def _tables(named: Any, profile: str) -> list[_Source]:
    """The profile's table and the file's top."""
    path, content = _file(named)
    profiles = content.pop("profiles", {})
    if not isinstance(profiles, dict) or not all(isinstance(table, dict) for table in profiles.values()):
        raise ConfigurationError(f"'profiles' in {path} must hold one table per profile, as in [profiles.{profile}]")
    if profile not in profiles and profile != DEFAULT_PROFILE:
        known = ", ".join(sorted(profiles)) or "none"
        raise ConfigurationError(f"There is no profile {profile!r} in {path}; profiles there: {known}")
    tables = {name: _table(table, f"profile {name} in {path}") for name, table in profiles.items()}  # all are checked
    return [tables.get(profile, {}), _table(content, str(path))]


def _file(named: Any) -> tuple[Path, dict[str, Any]]:
    """The configuration file's path and content; a missing one is empty unless it was named."""
    path = Path(named).expanduser().absolute() if named else platformdirs.user_config_path("score", appauthor=False) / "config.toml"
    if not named and not path.exists():
        return path, {}
    import tomllib

    data, mode = _content(path)
    try:
        content = tomllib.loads(data.decode())
    except UnicodeDecodeError:  # its text quotes bytes of the file
        raise ConfigurationError(f"The configuration file {path} is not valid TOML: it is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:  # its text names a place or a key, never a value
        raise ConfigurationError(f"The configuration file {path} is not valid TOML: {error}") from None
    _warn_of_readers(path, mode, _all_keys(content))
    return path, content


def _content(path: Path) -> tuple[bytes, int]:
    """A configuration file's bytes and mode."""
    try:
        with path.open("rb") as file:
            return file.read(), os.fstat(file.fileno()).st_mode
    except FileNotFoundError:
        raise ConfigurationError(f"The configuration file {path} does not exist") from None
    except OSError as error:
        raise ConfigurationError(f"The configuration file {path} cannot be read: {error.strerror}") from error


def _warn_of_readers(path: Path, mode: int, keys: Iterable[str]) -> None:
    if mode & 0o077 and "token" in keys:
        _log.warning("%s holds a token and other users can read it; run: chmod 600 %s", path, path)


def _all_keys(table: Mapping[str, Any]) -> Iterator[str]:
    for key, value in table.items():
        yield key
        if isinstance(value, dict):
            yield from _all_keys(value)


# Loading


class _Found(NamedTuple):
    """What the strongest source says of a setting; its rank, 0 being the strongest."""

    said: _Said
    rank: int


def load(
    flags: Mapping[str, str | None] | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    profile: str | None = None,
    at_store: bool = False,
) -> Settings:
    """The settings. `flags` maps names such as `store` to what the command line says, None meaning nothing.

    `at_store` is for a server, which is at the store itself: the `url` that clients on its machine use says nothing then.

    Raises:
        ConfigurationError: a file cannot be read, or a key or value is wrong; names the key and where it stands.
    """
    given: dict[str, Any] = {**(flags or {}), "config": config, "profile": profile}
    found: dict[str, _Found] = {}
    for rank, source in enumerate(_sources({name: value for name, value in given.items() if value is not None})):
        for name, said in source.items():
            found.setdefault(name, _Found(said, rank))
    silent = {"url"} if at_store else _weaker(found, "url", "store")
    heard = {
        name: found[name].said for name in sorted(found.keys() - silent - _weaker(found, "token", "token_file"), key=list(_CHECKS).index)
    }
    return Settings(
        **{name: _checked(name, said) for name, said in heard.items()}, sources={name: said.where for name, said in heard.items()}
    )


def _weaker(found: Mapping[str, _Found], first: str, second: str) -> set[str]:
    """Of two settings that answer one question, such as where the objects are, the one that must be silent, if both speak.

    The stronger source wins; in the same one (all variables of the environment count as one) the first does.
    """
    if not {first, second} <= found.keys():
        return set()
    strength = {name: "environment" if (text := found[name].said.where).startswith("environment") else text for name in (first, second)}
    return {second} if strength[first] == strength[second] or found[first].rank < found[second].rank else {first}


def _checked(name: str, said: _Said) -> Any:
    """The value of a setting. Raises `ConfigurationError`, one sentence with the unit and the source."""
    try:
        return _CHECKS[name](said.value)
    except ValueError as error:
        got = "" if name == "token" else f", got {str(said.value)[:200]!r}"
        raise ConfigurationError(f"{name} must be {error}{got} ({said.where})") from None
