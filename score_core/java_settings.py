"""The Java client's settings (protocol section 11.2): its keys, its variables, its `application.properties`, and what they are here.

A variable is the key in upper case with dots as underscores. `docs/configuration.md` has the same table for users, with the reasons.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from score_core.errors import ConfigurationError

_log = logging.getLogger(__name__)

MAX_ATTEMPTS: Final = 1000  # ours; the Java client's negative number means without end
_MAX_PLACEHOLDERS: Final = 100  # in one value: more is a circle
_TRUE: Final = frozenset({"true", "yes", "on", "1"})
_FALSE: Final = frozenset({"false", "no", "off", "0"})


@dataclass(frozen=True, slots=True)
class Found:
    """One setting of ours that a Java key gives: its raw value, and where that stood (`storage.url in FILE`)."""

    name: str
    value: str
    where: str


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What a Java key is here. `value` turns its text into ours; None means that it says nothing (the default, for example)."""

    name: str
    value: Callable[[str], str | None] = str


def truth(text: str) -> bool | None:
    """What a user or Spring takes for true (yes, on, 1) or false (no, off, 0), in any case; None for anything else."""
    folded = text.strip().lower()
    return True if folded in _TRUE else False if folded in _FALSE else None


def _attempts(text: str) -> str:
    return str(MAX_ATTEMPTS) if re.fullmatch(r"-[0-9]+", text) else text


def _no_progress(text: str) -> str | None:
    return "none" if truth(text) else None


def _no_escapes(text: str) -> str | None:
    return "log" if truth(text) is False else None


# Stronger keys first: several may mean one setting.
_MEANINGS: Final = {
    "client.accessToken": _Meaning("token"),
    "accessToken": _Meaning("token"),
    "storage.url": _Meaning("url"),
    "metadata.url": _Meaning("metadata_url"),
    "portal.url": _Meaning("portal_url"),
    "storage.retryNumber": _Meaning("attempts", _attempts),
    "client.connectTimeoutSeconds": _Meaning("connect_timeout_s"),
    "client.readTimeoutSeconds": _Meaning("read_timeout_s"),
    "transport.parallel": _Meaning("workers"),
    "client.silent": _Meaning("progress", _no_progress),
    "client.quiet": _Meaning("progress", _no_progress),
    "client.ansi": _Meaning("progress", _no_escapes),
}

CERTIFICATE_CHECKS: Final = "metadata.ssl.enabled"

IGNORED: Final = {
    "azure.blockSize": "the server plans the parts",
    "client.ssl.custom": "certificate authorities come from ca_file (PEM), not from a Java trust store",
    "client.ssl.trustName": "certificate authorities come from ca_file (PEM), not from a Java trust store",
    "client.ssl.trustStore": "certificate authorities come from ca_file (PEM), not from a Java trust store",
    "client.ssl.trustStorePassword": "certificate authorities come from ca_file (PEM), not from a Java trust store",
    "client.ssl.trustStoreType": "certificate authorities come from ca_file (PEM), not from a Java trust store",
    "client.uploadStateDir": "what the store holds says how far an upload is; nothing is kept beside the file",
    "defaultProfile": "a server that does not say what it stores in is taken for S3",
    "download.partSize": "the server plans the parts",
    "isTest": "it is for the Java client's own tests",
    "mount.logging": "nothing is mounted",
    "storage.retryTimeout": "the Java client does not use it either",
    "token.public-key": "a token is never sent to the object store, encrypted or not",
    "transport.fileFrom": "there is one way to move bytes",
    "transport.memory": "memory stays small whatever the number of parts",
}
_PROFILE: Final = "storage.profile"  # says which settings; no setting itself
_HARMLESS: Final = frozenset({CERTIFICATE_CHECKS, _PROFILE})

KEYS: Final = (*_MEANINGS, *IGNORED, *sorted(_HARMLESS))


def variable(key: str) -> str:
    """The environment variable of a key."""
    return key.upper().replace(".", "_").replace("-", "")


def from_environment(environ: Mapping[str, str] = os.environ) -> list[Found]:
    """What the Java client's variables say. An empty one counts as not set.

    Raises:
        ConfigurationError: one of them would switch off certificate checks.
    """
    given = {key: environ[variable(key)] for key in KEYS if environ.get(variable(key))}
    return list(_read(given, lambda key: f"environment {variable(key)}"))


def from_properties(text: str, path: str, environ: Mapping[str, str] = os.environ) -> list[Found]:
    """What an `application.properties` says; `path` is its name for messages. Unknown keys are logged by name, for Spring has many more.

    Raises:
        ConfigurationError: it cannot be read, or would switch off certificate checks.
    """
    values = parse_properties(text, path)
    unknown = sorted(key for key in values if key not in KEYS)
    if unknown:
        _log.info("%s has keys that mean nothing here: %s", path, ", ".join(unknown))
    known = {key: _filled(key, values, path, environ) for key in KEYS if key in values and key not in IGNORED}
    ignored = {key: values[key] for key in IGNORED if key in values}
    given = {key: value for key, value in {**known, **ignored}.items() if value}
    return list(_read(given, lambda key: f"{key} in {path}"))


def _read(given: Mapping[str, str], where: Callable[[str], str]) -> Iterator[Found]:
    if truth(given.get(CERTIFICATE_CHECKS, "true")) is False:
        raise ConfigurationError(
            f"Certificate checks are not switched off ({where(CERTIFICATE_CHECKS)}): remove that, "
            "and name your own certificate authorities in ca_file if it was for them"
        )
    for key, reason in IGNORED.items():
        if key in given:
            _log.info("%s is ignored: %s", where(key), reason)
    told: set[str] = set()
    for key, meaning in _MEANINGS.items():
        value = meaning.value(given[key].strip()) if key in given else None
        if value is not None and meaning.name not in told:
            told.add(meaning.name)
            yield Found(meaning.name, value, where(key))


# The form of the file, as java.util.Properties documents it

_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_BLANK: Final = " \t\f"
_COMMENT: Final = ("#", "!")
_KEY: Final = re.compile(r"(?:\\.|[^\\=: \t\f])*", re.DOTALL)
_BETWEEN: Final = re.compile(r"[ \t\f]*[=:]?[ \t\f]*")
_ESCAPE: Final = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPED: Final = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_PLACEHOLDER: Final = re.compile(r"\$\{([^${}:]*)(?::([^${}]*))?\}")  # innermost first


def parse_properties(text: str, path: str) -> dict[str, str]:
    r"""Keys and values of a `.properties` text: `key=value`, `key: value`, `key value`, `#` and `!` comments, `\` escapes, continued lines.

    Raises:
        ConfigurationError: a `\u` is not followed by four hex digits; names the line.
    """
    values = {}
    for number, line in _logical_lines(text):
        key = _KEY.match(line)
        assert key is not None  # it matches nothing, too
        between = _BETWEEN.match(line, key.end())
        assert between is not None
        place = f"line {number} of {path}"
        values[_unescaped(key[0], place)] = _unescaped(line[between.end() :], place)
    return values


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with those that continue them, by the number of their first; without blanks in front, comments and empty ones."""
    begun, first = "", 0
    for number, natural in enumerate(_LINE_END.split(text), start=1):
        line = natural.lstrip(_BLANK)
        if not first and (not line or line.startswith(_COMMENT)):
            continue
        first = first or number
        continues = (len(line) - len(line.rstrip("\\"))) % 2 == 1
        begun += line[:-1] if continues else line
        if not continues:
            if begun:
                yield first, begun
            begun, first = "", 0
    if begun:
        yield first, begun


def _unescaped(text: str, place: str) -> str:
    def one(escape: re.Match[str]) -> str:
        what = escape[1]
        if what == "u":
            raise ConfigurationError(rf"In {place} \u is not followed by four hex digits; write \\ for a backslash")
        return chr(int(what[1:], 16)) if len(what) > 1 else _ESCAPED.get(what, what)

    plain = _ESCAPE.sub(one, text)
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # \ud83d\ude00 is one character


def _filled(key: str, values: Mapping[str, str], path: str, environ: Mapping[str, str]) -> str:
    """A value with its `${name}` and `${name:default}` replaced: from the environment, else from the same file, else the default."""
    text = values[key]
    for _ in range(_MAX_PLACEHOLDERS):
        found = _PLACEHOLDER.search(text)
        if found is None:
            return text
        name, default = found[1], found[2]
        value = next((there[it] for there, it in ((environ, name), (environ, variable(name)), (values, name)) if there.get(it)), default)
        if value is None:
            raise ConfigurationError(f"{key} in {path} refers to ${{{name}}}, which is not set; set it, or write ${{{name}:default}}")
        text = text[: found.start()] + value + text[found.end() :]
    raise ConfigurationError(f"{key} in {path} refers to itself; write its value")
