"""What can go wrong, as one tree.

    ScoreError
      ConfigurationError (ValueError)       a setting or argument cannot be used
      ManifestError (ValueError)            a manifest cannot be read; names line and column
      PlanError (ValueError)                no part plan exists for this size
      LocalFileError (OSError)              a local path cannot be read or written
        NoSpaceError                        the disk is, or would become, full
      IntegrityError                        bytes are not what their digest says; expected and actual
        PartMismatch                        one part: worth moving again
        ObjectMismatch                      the whole object
      Unverifiable                          nobody recorded a digest to verify by
      FormatError                           a BAM, CRAM, VCF or index is damaged, is none, or the index is another file's
      ChangedError                          source file or object is not the one the transfer began with
      TransferError                         one attempt at one part failed
        TransientError                      same URL, later
        UrlExpiredError                     new URL, now
        PermanentError                      stop, keep the journal
        NotResumableError                   stop, what was begun is gone (upload aborted behind our back)
      ServiceError                          a server or store refused; status
        AuthenticationError                 who are you
        AccessDenied (PermissionError)      known, and not allowed
        ObjectNotFound (FileNotFoundError)
        Conflict (FileExistsError)          it exists already, or someone else is writing it
        Unavailable (ConnectionError)       not reached, or out of order; retries spent
      BatchError                            some files of a batch failed
      Interrupted                           stopped by a signal; resumable

Every message passes `redact` when it is built, so no token and no query of a signed URL can reach a log, a terminal or a database.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from score_core.model import TransferReport

# Only a blank or a quote ends a secret here: other white space and control characters inside one are how it would slip through.
_URL: Final = re.compile(r"\b[a-z][a-z0-9+.-]{0,30}://[^ \"'<>]*", re.IGNORECASE)
_QUERY: Final = re.compile(r"\?[^ \"'<>]+")
_SECRET_FIELD: Final = re.compile(r"(?:signature|token|credential|secret|password|\bsig)=", re.IGNORECASE)
_BEARER: Final = re.compile(r"\b(bearer|basic)[ \t\r\n]+[^ \t\"'<>,;]{4,}", re.IGNORECASE)
_NAME: Final = r"(?:signature|token|credential|secret|password|(?:access|secret|api)[_-]?key)"
_ASSIGNED: Final = re.compile(_NAME + r"[\"']?\s*=\s*[\"']?|\bsig=", re.IGNORECASE)  # in environments, queries, INI files; any prefix
_FIELD: Final = re.compile(_NAME + r"[\"']\s*:\s*[\"']?", re.IGNORECASE)  # in JSON
_HEADER: Final = re.compile(
    r"\b(?:x-amz-(?:security-token|signature|credential)|access[_-]?token|secret[_-]?(?:access[_-]?)?key|password)\s*:\s*", re.IGNORECASE
)
_NAMED_SECRET: Final = re.compile(f"({_ASSIGNED.pattern}|{_FIELD.pattern}|{_HEADER.pattern})[^ &,;\"'<>]+", re.IGNORECASE)
_HIDDEN: Final = "<redacted>"


def redact(text: str) -> str:
    """The text without URL queries, URL passwords, bearer tokens and named secrets, as one line without control characters.

    Escaping covers terminal sequences, log forging by line breaks and bidirectional overrides in names that servers send. Redacting
    twice changes nothing more. Takes time in proportion to the text, whoever wrote it.
    """
    text = _URL.sub(_without_secrets, text)
    text = _QUERY.sub(lambda query: f"?{_HIDDEN}" if _SECRET_FIELD.search(query[0]) else query[0], text)
    text = _BEARER.sub(rf"\1 {_HIDDEN}", text)
    text = _NAMED_SECRET.sub(rf"\1{_HIDDEN}", text)
    return text if text.isprintable() else "".join(map(_printable, text))


def _without_secrets(url: re.Match[str]) -> str:
    scheme, _, rest = url[0].partition("://")
    place, mark, query = re.split(r"([?#])", rest, maxsplit=1) if re.search(r"[?#]", rest) else (rest, "", "")
    authority, slash, path = place.partition("/")
    user, _, host = authority.rpartition("@")
    shown = f"{_HIDDEN}@{host}" if user else authority
    return f"{scheme}://{shown}{slash}{path}{mark}{_HIDDEN if query else ''}"


def _printable(letter: str) -> str:
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")


class ScoreError(Exception):
    """Base of everything raised on purpose here. `str()` is one sentence fit for a user; `exit_code` is the CLI's.

    `is_final` is set by the driver that gave up: no other layer needs to try again.
    """

    exit_code: int = 1
    is_final: bool = False

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))

    def __str__(self) -> str:
        return str(self.args[0])

    def at(self, place: str) -> Self:
        """This error with `place` (such as "part 17 of object ...") in front of its message; for `raise error.at(...)`."""
        self.args = (f"{redact(place)}: {self}",)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel between processes (Prefect, pools): the built message and the facts, not the constructor's arguments."""
        return _revived, (type(self), str(self), vars(self))


def _revived(kind: type[ScoreError], message: str, facts: dict[str, Any]) -> ScoreError:
    error = kind.__new__(kind)
    error.args = (message,)
    vars(error).update(facts)
    return error


class ConfigurationError(ScoreError, ValueError):
    exit_code = 2


class ManifestError(ScoreError, ValueError):
    """A manifest cannot be used; `line` and `column` are 1-based, None when the whole file is meant."""

    exit_code = 2

    def __init__(self, message: str, *, line: int | None = None, column: int | None = None) -> None:
        where = "" if line is None else f" (line {line}" + ("" if column is None else f", column {column}") + ")"
        super().__init__(message + where)
        self.line = line
        self.column = column


class PlanError(ScoreError, ValueError):
    exit_code = 2


class LocalFileError(ScoreError, OSError):
    exit_code = 2


class NoSpaceError(LocalFileError):
    exit_code = 8


class IntegrityError(ScoreError):
    """Bytes differ from their digest. `expected` and `actual` are lower-case hex."""

    exit_code = 6

    def __init__(self, message: str, *, expected: str, actual: str) -> None:
        super().__init__(f"{message}: expected MD5 {expected}, got {actual}")
        self.expected = expected
        self.actual = actual


class PartMismatch(IntegrityError):
    """One part arrived, or was stored, with other bytes than were sent."""


class ObjectMismatch(IntegrityError):
    """The whole file or object has another MD5 than was promised."""


class Unverifiable(ScoreError):
    exit_code = 6


class FormatError(ScoreError):
    exit_code = 6


class ChangedError(ScoreError):
    exit_code = 10


class TransferError(ScoreError):
    exit_code = 7


class TransientError(TransferError):
    """Worth the same again. `busy` means that the server asked for less; `retry_after_s` is for how long, if it said so."""

    def __init__(self, message: str, *, busy: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.busy = busy
        self.retry_after_s = retry_after_s


class UrlExpiredError(TransferError):
    """The signed URL is refused as expired: sign again and go on."""


class PermanentError(TransferError):
    exit_code = 1


class NotResumableError(TransferError):
    exit_code = 10


class ServiceError(ScoreError):
    """A server or store answered with a refusal. `status` is its HTTP status, None if there was none."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class AuthenticationError(ServiceError):
    exit_code = 3


class AccessDenied(ServiceError, PermissionError):
    exit_code = 4


class ObjectNotFound(ServiceError, FileNotFoundError):
    exit_code = 5


class Conflict(ServiceError, FileExistsError):
    exit_code = 1


class Unavailable(ServiceError, ConnectionError):
    exit_code = 7


class BatchError(ScoreError):
    """Some files of a batch failed. `reports` are those of all its files."""

    exit_code = 9

    def __init__(self, message: str, reports: Sequence[TransferReport] = ()) -> None:
        super().__init__(message)
        self.reports = tuple(reports)


class Interrupted(ScoreError):
    """A signal asked to stop; everything done so far is kept. `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str = "Interrupted; run the same command again to resume", *, signal_number: int = 2) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
