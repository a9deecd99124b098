"""Settings: read once, checked, frozen, then passed down as the smallest piece that is needed.

Sources, strongest first: command-line flag, environment, profile, file, default. `Settings.origins` says which one won. The Java client's
variables and its `application.properties` are understood, too (`java_settings.py`).

Importing pydantic-settings and building the class costs 0.12-0.14 s of CPU on top of the 0.22 s that a transfer otherwise needs before its
first byte (budget 0.6 s, design section 8); plain dataclasses would cost nothing, and the checks and messages would all be ours to write.
So whoever wants to be quick imports this module inside a function: `score --help` does without it.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import platformdirs
from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, InitSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from score_core import java_settings
from score_core.errors import ConfigurationError
from score_core.model import Validation
from score_core.plan import MAX_PART_SIZE_BYTES, MIN_PART_SIZE_BYTES

_log = logging.getLogger(__name__)

ProgressMode = Literal["auto", "bar", "log", "none"]

DEFAULT_PROFILE: Final = "default"
_JAVA_PROFILE: Final = "STORAGE_PROFILE"
_JAVA_FILE: Final = ".properties"
_JAVA_VALIDATIONS: Final = {"true": "auto", "false": "off"}
_NOT_IN_FILES: Final = frozenset({"profile", "config"})  # they say which file and what of it
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


# Checks. A ValueError's text goes on after "NAME must be ".


def _number(value: Any) -> Any:
    """Keeps booleans out, which are numbers to Python."""
    if isinstance(value, bool):
        raise ValueError("a number")  # noqa: TRY004  # pydantic turns only ValueError into a message
    return value


def _folded(value: Any) -> Any:
    """Choices are taken in any case, as the Java client takes them; TOML's true is its "true"."""
    return str(value).strip().lower()


def _truth(value: Any) -> bool:
    found = java_settings.truth(str(value))
    if found is None:
        raise ValueError("true or false")
    return found


def _java_validation(value: str) -> str:
    return _JAVA_VALIDATIONS.get(value, value)


def _server(value: str) -> str:
    try:
        parts = urlsplit(value.strip())
        good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("an address such as https://score.example.org, without user, password or query")
    return parts.geturl().rstrip("/")


def _address(value: str) -> str:
    """Not empty; what it means is known where stores are opened."""
    if not value.strip():
        raise ValueError("an address such as s3://bucket or file:///folder")
    return value.strip()


def _absolute(value: Path) -> Path:
    if "\0" in str(value):
        raise ValueError("a path")
    return value.expanduser().absolute()


def _existing(value: Path) -> Path:
    path = _absolute(value)
    if not path.is_file():
        raise ValueError("the path of a file that exists")
    return path


def _hosts(value: Any) -> Any:
    """A list, or its items separated by commas."""
    return [host.strip() for host in value.split(",") if host.strip()] if isinstance(value, str) else value


def _host(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.-]{1,253}|[0-9A-Fa-f:.]{2,45}", value):
        raise ValueError("names of hosts such as s3.example.org, without scheme, port or path")
    return value.lower()


def _sendable(value: SecretStr) -> SecretStr:
    token = value.get_secret_value()
    if len(token) > _MAX_TOKEN_CHARACTERS or not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ValueError(f"at most {_MAX_TOKEN_CHARACTERS} printable ASCII characters without spaces")
    return value


_Int = Annotated[int, BeforeValidator(_number)]
_Seconds = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
_Url = Annotated[str, AfterValidator(_server)]


def _default_data_dir() -> Path:
    return platformdirs.user_data_path("score", appauthor=False)


class Settings(BaseSettings):
    """Everything that can be configured. Field names are the keys of the file, and with `SCORE_` in front the variables.

    At most one of `url` and `store` is set: `load` sees to it. `docs/configuration.md` describes each field for users.
    """

    model_config = SettingsConfigDict(env_prefix="SCORE_", env_ignore_empty=True, extra="forbid", frozen=True, hide_input_in_errors=True)

    profile: str = DEFAULT_PROFILE
    config: Annotated[Path | None, AfterValidator(lambda path: path and _absolute(path))] = None

    url: _Url | None = None
    """A Score server."""
    store: Annotated[str, AfterValidator(_address)] | None = None
    """A bucket or folder that we talk to ourselves."""
    token: Annotated[SecretStr, AfterValidator(_sendable)] | None = None
    """For the Score server and the metadata service."""
    token_file: Annotated[Path, AfterValidator(_absolute)] | None = None
    """A file that holds the token; read again when a server refuses what was in it. At most one of `token` and `token_file` is set."""
    metadata_url: _Url | None = None
    """A Song server."""
    portal_url: _Url | None = None
    """Where manifests are asked for by their id."""
    data_dir: Annotated[Path, AfterValidator(_absolute)] = Field(default_factory=_default_data_dir)
    """Where objects are when neither `url` nor `store` says, and the embedded registry of metadata."""
    state_dir: Annotated[Path, AfterValidator(_absolute)] | None = None
    """Where half-finished downloads are kept instead of beside their targets: a workflow engine gives each attempt a new folder."""
    serve_url: _Url | None = None
    """A running `score serve`, for addresses into a folder that outlive this process."""
    validation: Annotated[Validation, BeforeValidator(_java_validation), BeforeValidator(_folded)] = "auto"
    progress: Annotated[ProgressMode, BeforeValidator(_folded)] = "auto"

    workers: _Int = Field(default=8, ge=1, le=256, description="parts")
    """Parts under way at once, over all files."""
    files_at_once: _Int = Field(default=4, ge=1, le=64, description="files")
    attempts: _Int = Field(default=10, ge=1, le=1000, description="tries")
    """Tries of one part, the first included."""
    connect_timeout_s: _Seconds = Field(default=30.0, ge=0.1, le=600, description="seconds")
    read_timeout_s: _Seconds = Field(default=60.0, ge=0.1, le=3600, description="seconds")
    """How long a Score server or metadata service may take to answer."""
    stall_s: _Seconds = Field(default=30.0, ge=1, le=3600, description="seconds")
    """How long a connection may bring next to nothing."""
    part_size_bytes: _Int = Field(default=MIN_PART_SIZE_BYTES, ge=1024, le=MAX_PART_SIZE_BYTES, description="bytes")
    """The smallest part that is planned when we talk to a store ourselves. 20 MiB is Score's floor, which Java clients and servers
    expect; less is for tests and small files."""
    download_url_lifetime_s: _Seconds = Field(default=900.0, ge=10, le=_WEEK_S, description="seconds")
    upload_url_lifetime_s: _Seconds = Field(default=3600.0, ge=10, le=_WEEK_S, description="seconds")
    ca_file: Annotated[Path, AfterValidator(_existing)] | None = None
    """Certificate authorities (PEM) instead of the system's."""
    allow_plain_http: Annotated[bool, BeforeValidator(_truth)] = False
    """Lets a token, and signed addresses from an https server, go over plain http to other machines."""
    data_hosts: Annotated[tuple[Annotated[str, AfterValidator(_host)], ...], NoDecode, BeforeValidator(_hosts)] = ()
    """The only hosts that a server's signed addresses may lead to; empty: any."""

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def transfer(self) -> TransferSettings:
        return TransferSettings(**{name: getattr(self, name) for name in TransferSettings.__slots__})

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # pydantic-settings' signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        java = _java_variables(settings_cls)
        named = {**env_settings(), **java(), **init_settings()}
        files = _files(settings_cls, named.get("config"), str(named.get("profile") or DEFAULT_PROFILE))
        return init_settings, java, env_settings, *files

    def origins(self) -> list[Origin]:
        """Every setting with its value and source, secrets masked."""
        names = [name for name in type(self).model_fields if name not in _NOT_IN_FILES]
        return [Origin(name, _shown(getattr(self, name)), self.sources.get(name, "default")) for name in names]

    @property
    def sources(self) -> Mapping[str, str]:
        """Where each setting came from, by name; absent means default. Filled by `load`."""
        return self._sources


def _shown(value: object) -> str:
    return "" if value is None else ", ".join(value) if isinstance(value, tuple) else str(value)


# Sources. Each says where a value of its came from.


class _Source(PydanticBaseSettingsSource):
    """A source that knows its values from the start, and where each came from."""

    def __init__(self, settings_cls: type[BaseSettings], values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
        super().__init__(settings_cls)
        self._values = dict(values)
        self.origins = origins

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002  # pydantic-settings' signature
        return self._values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return dict(self._values)


def _java_variables(settings_cls: type[BaseSettings]) -> _Source:
    found = java_settings.from_environment()
    if os.environ.get(_JAVA_PROFILE):
        found.append(java_settings.Found("profile", os.environ[_JAVA_PROFILE], f"environment {_JAVA_PROFILE}"))
    return _of_java(settings_cls, found)


def _of_java(settings_cls: type[BaseSettings], found: Sequence[java_settings.Found]) -> _Source:
    return _Source(settings_cls, {it.name: it.value for it in found}, {it.name: it.where for it in found})


def _files(settings_cls: type[BaseSettings], named: Any, profile: str) -> tuple[_Source, ...]:
    if named and str(named).lower().endswith(_JAVA_FILE):
        return _properties(settings_cls, Path(named), profile)
    return _tables(settings_cls, named, profile)


def _properties(settings_cls: type[BaseSettings], path: Path, profile: str) -> tuple[_Source]:
    """A Java client's file instead of ours."""
    path = path.expanduser().absolute()
    if profile != DEFAULT_PROFILE:
        raise ConfigurationError(
            f"There is no profile {profile!r} in {path}: a {_JAVA_FILE} file has none; use a .toml file, or no profile"
        )
    content, mode = _content(path)
    found = java_settings.from_properties(content.decode("latin-1"), str(path))  # latin-1 is what Java reads them as
    _warn_of_readers(path, mode, (it.name for it in found))
    return (_of_java(settings_cls, found),)


def _table(settings_cls: type[BaseSettings], table: Mapping[str, Any], where: str) -> _Source:
    """One table of the configuration file: its top, or a profile."""
    _check_keys(table, where)
    return _Source(settings_cls, table, dict.fromkeys(table, where))


def _keys() -> list[str]:
    return [name for name in Settings.model_fields if name not in _NOT_IN_FILES]


def _check_keys(table: Mapping[str, Any], where: str) -> None:
    for key in table:
        if key not in _keys():
            near = difflib.get_close_matches(key, _keys(), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; docs/configuration.md lists all keys"
            raise ConfigurationError(f"Unknown key {key!r} ({where}){hint}")


def _tables(settings_cls: type[BaseSettings], named: Any, profile: str) -> tuple[_Source, _Source]:
    """The profile's table and the file's top."""
    path, content = _file(named)
    profiles = content.pop("profiles", {})
    if not isinstance(profiles, dict) or not all(isinstance(table, dict) for table in profiles.values()):
        raise ConfigurationError(f"'profiles' in {path} must hold one table per profile, as in [profiles.{profile}]")
    if profile not in profiles and profile != DEFAULT_PROFILE:
        known = ", ".join(sorted(profiles)) or "none"
        raise ConfigurationError(f"There is no profile {profile!r} in {path}; profiles there: {known}")
    tables = {name: _table(settings_cls, table, f"profile {name} in {path}") for name, table in profiles.items()}  # all are checked
    return tables.get(profile) or _table(settings_cls, {}, ""), _table(settings_cls, content, str(path))


def _file(named: Any) -> tuple[Path, dict[str, Any]]:
    """The configuration file's path and content; a missing one is empty unless it was named."""
    path = Path(named).expanduser().absolute() if named else platformdirs.user_config_path("score", appauthor=False) / "config.toml"
    if not named and not path.exists():
        return path, {}
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

_Found = dict[str, tuple[int, Any, str]]  # rank of the source (0 is the strongest), raw value, source


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
    given = {name: value for name, value in given.items() if value is not None}
    found = _found(given)
    where = ["url"] if at_store else _weaker(found, "url", "store")
    silenced = dict.fromkeys([*where, *_weaker(found, "token", "token_file")])
    try:
        settings = Settings(**{**given, **silenced})
    except ValidationError as error:
        raise _explained(error, found) from None
    settings._sources.update({name: source for name, (_, _, source) in found.items() if name not in silenced})  # noqa: SLF001
    return settings


def _found(given: dict[str, Any]) -> _Found:
    """For each setting that anybody says something about: who is the strongest to do so, and what."""
    flags, environment = InitSettingsSource(Settings, given), EnvSettingsSource(Settings)
    found: _Found = {}
    for rank, source in enumerate(Settings.settings_customise_sources(Settings, flags, environment, environment, environment)):
        for name, raw in source().items():
            label = source.origins[name] if isinstance(source, _Source) else None
            found.setdefault(name, (rank, raw, label or (f"option --{name}" if source is flags else f"environment SCORE_{name.upper()}")))
    return found


def _weaker(found: _Found, first: str, second: str) -> list[str]:
    """Of two settings that answer one question, such as where the objects are, the one that must be silent, if both speak.

    The stronger source wins; in the same one (all variables of the environment count as one) the first does.
    """
    if not {first, second} <= found.keys():
        return []
    strength = {name: "environment" if (text := found[name][2]).startswith("environment") else text for name in (first, second)}
    return [second] if strength[first] == strength[second] or found[first][0] < found[second][0] else [first]


def _explained(error: ValidationError, found: _Found) -> ConfigurationError:
    """The first problem as one sentence, with the unit and the source."""
    problem = error.errors(include_url=False)[0]
    name = str(problem["loc"][0])
    _, raw, source = found.get(name, (0, None, "unknown source"))
    wanted = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else problem["msg"].removeprefix("Input should be ")
    unit = Settings.model_fields[name].description
    if unit and problem["type"] in {"greater_than_equal", "less_than_equal"}:
        wanted = f"{wanted.replace('greater than or equal to', 'at least').replace('less than or equal to', 'at most')} {unit}"
    elif unit:
        wanted = f"a number of {unit}"
    got = "" if name == "token" else f", got {str(raw)[:200]!r}"
    return ConfigurationError(f"{name} must be {wanted}{got} ({source})")
