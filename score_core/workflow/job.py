"""One job of a workflow engine: what its rule asks for, how it is stopped, where it talks, and what its end means.

A job is described by the `snakemake` object that Snakemake gives to scripts and wrappers. It is known by its shape only: the job runs in an
environment of its own, where Snakemake need not be installed. What the jobs do is in `steps.py`.
"""

from __future__ import annotations

import difflib
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from score_core.cli.output import Result, listening_to_logs, redacted_traceback, say
from score_core.cli.progress import Lines
from score_core.cli.running import Running
from score_core.cli.signals import Signals
from score_core.errors import ConfigurationError, ScoreError
from score_core.java_settings import truth
from score_core.transfer.files import explained
from score_core.transfer.stop import Stop

if TYPE_CHECKING:
    from score_core.metadata.base import Metadata
    from score_core.settings import Settings

RECEIPT: Final = "receipt"
SETTINGS: Final = ("url", "store", "metadata_url", "token_file", "state_dir", "attempts")
COMMON_PARAMS: Final = frozenset({*SETTINGS, "profile", "config", "debug"})
_TOKENS: Final = ("token", "accesstoken", "password", "secret")  # without their underscores

Item = TypeVar("Item")


class Names(Protocol):
    """The inputs, outputs, params or logs of a job: a list, of which some items have names. Snakemake's `Namedlist` is one."""

    def __iter__(self) -> Iterator[Any]: ...

    def get(self, key: str, default_value: Any = None, /) -> Any:
        """One value, or a list of them, or the default."""
        ...

    def keys(self) -> Any:
        """The names."""
        ...


class Script(Protocol):
    """What we read of the `snakemake` object."""

    input: Names
    output: Names
    params: Names
    log: Names
    threads: int


@dataclass(frozen=True, slots=True)
class Step:
    """What a job can do. `main` is the name of the output that needs none; `params` are those that it reads, besides `COMMON_PARAMS`.

    `act` does it, and leaves nothing half-written. Its result's document goes to the output `receipt`, where a rule has one.
    """

    name: str
    main: str
    params: frozenset[str]
    act: Callable[[Job], Result]


def run(step: Step, script: Script) -> None:
    """Does `step` as `script` says. A failure is told in one sentence, in the job's log and on stderr.

    Raises:
        SystemExit: it failed; the code is that of the error, 128 and the signal's number when it was stopped.
    """
    console = sys.stderr
    with ExitStack() as closing:
        result = _logged(step, script, closing)
        for line in result.talk:
            say(line)
        if result.error is not None:
            say(f"error: {result.error}")
            if sys.stderr is not console:
                console.write(f"error: {result.error}\n")  # in one piece: other jobs share it, and print() would write the line's end after
                console.flush()
    if result.exit_code:
        raise SystemExit(result.exit_code)


def _logged(step: Step, script: Script, closing: ExitStack) -> Result:
    """Runs the step with the job's log, if it has one, as stderr until `closing`."""
    debug = False
    try:
        for log in map(Path, script.log):
            with explained("write the log", log):
                log.parent.mkdir(parents=True, exist_ok=True)
                closing.enter_context(redirect_stderr(closing.enter_context(log.open("w", encoding="utf-8"))))
            break
        stop = Stop()
        with Signals(stop) as signals:
            job = Job(step, script, stop, signals)
            debug = job.flag("debug")
            with listening_to_logs(debug=debug):
                return job.done()
    except ScoreError as error:
        if debug:
            say(redacted_traceback(error))
        return Result(error=str(error), exit_code=error.exit_code)
    except Exception as error:  # noqa: BLE001  # the edge: whatever it is, the user gets a sentence
        if debug:
            say(redacted_traceback(error))
        return Result(
            error=f"Unexpected failure ({type(error).__name__}); set debug=True in params and report what the log says", exit_code=1
        )


class Job(Running):
    """One job: its files and params, checked, and what they lead to.

    Raises:
        ConfigurationError: a param is unknown, or has no place in a rule.
    """

    def __init__(self, step: Step, script: Script, stop: Stop, signals: Signals) -> None:
        self.step = step
        self.stop = stop
        self.signals = signals
        self._script = script
        self._check_params()

    def done(self) -> Result:
        """What came of it, once its receipt, if one is wanted, is written."""
        receipt = self.output(RECEIPT)
        result = self.step.act(self)
        if receipt is not None and result.error is None:
            document = {"command": self.step.name, **result.document, "error": None, "exit_code": 0}
            write_whole(receipt, json.dumps(document, indent=2) + "\n")
        return result

    # Params

    def _check_params(self) -> None:
        params, known = self._script.params, self.step.params | COMMON_PARAMS
        names = list(params.keys())
        for name in names:
            if name.replace("_", "").lower().endswith(_TOKENS):
                raise ConfigurationError(
                    f"The param {name!r} is refused, for Snakemake keeps params in its records: set ACCESSTOKEN or SCORE_TOKEN_FILE in the "
                    "environment, or the param token_file, and replace a token that stood here"
                )
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(sorted(known))}"
                raise ConfigurationError(f"{self.step.name} has no param {name!r}; {hint}")
        values = [params.get(name) for name in names]
        named = {id(item) for value in values for item in [value, *(value if isinstance(value, list | tuple) else ())]}
        if any(id(value) not in named for value in params):
            raise ConfigurationError(f"Params of {self.step.name} need names, as in object_id=...; one has none")

    def _param(self, name: str) -> Any:
        assert name in self.step.params | COMMON_PARAMS, f"{name} is no declared param of {self.step.name}"
        return self._script.params.get(name)

    def text(self, name: str) -> str | None:
        """A param that is a text, a number or a path; None if it is not given, or empty."""
        value = self._param(name)
        if value is None or (isinstance(value, str | int | float | os.PathLike) and not isinstance(value, bool)):
            return None if value is None else str(value).strip() or None
        raise ConfigurationError(f"The param {name} must be one text, got {type(value).__name__} {str(value)[:80]!r}")

    def texts(self, name: str) -> list[str]:
        """A param that is a text or a list of them."""
        value = self._param(name)
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return [item.strip() for item in value]
        text = self.text(name)
        return [] if text is None else [text]

    def flag(self, name: str, *, default: bool = False) -> bool:
        value = self._param(name)
        found = default if value is None else value if isinstance(value, bool) else truth(str(value))
        if found is None:
            raise ConfigurationError(f"The param {name} must be True or False, got {str(value)[:80]!r}")
        return found

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """A param that is one of `choices`, in any case; by default the first."""
        text = (self.text(name) or choices[0]).lower()
        if text not in choices:
            raise ConfigurationError(f"The param {name} must be one of {', '.join(choices)}, got {text[:80]!r}")
        return text

    def required(self, name: str) -> str:
        """A param that the step is nothing without."""
        text = self.text(name)
        if text is None:
            raise ConfigurationError(f"{self.step.name} needs the param {name}")
        return text

    # Files

    def input(self, name: str) -> Path | None:
        """The one input of that name."""
        return _one(self._script.input, name, "input")

    def inputs(self, *, but: Sequence[str] = ()) -> list[Path]:
        """All inputs but those of some names, in the rule's order."""
        return _all_but(self._script.input, but)

    def output(self, name: str) -> Path | None:
        """The one output of that name; for the step's main one, else the first that has no name."""
        found = _one(self._script.output, name, "output")
        if found is None and name == self.step.main:
            unnamed = _all_but(self._script.output, list(self._script.output.keys()))
            return unnamed[0] if unnamed else None
        return found

    def outputs(self, *, but: Sequence[str] = (RECEIPT,)) -> list[Path]:
        """All outputs but those of some names, in the rule's order. Raises `ConfigurationError` if there is none."""
        found = _all_but(self._script.output, but)
        if not found:
            raise ConfigurationError(f"{self.step.name} needs an output to write to")
        return found

    def needed_output(self) -> Path:
        """The step's main output. Raises `ConfigurationError` if the rule has none."""
        found = self.output(self.step.main)
        if found is None:
            raise ConfigurationError(f"{self.step.name} needs an output to write to: {self.step.main}=...")
        return found

    # What they lead to

    @cached_property
    def settings(self) -> Settings:
        """The user's settings, with what params and threads say. Raises `ConfigurationError`."""
        from score_core.settings import load

        said = {name: self.text(name) for name in SETTINGS}
        try:
            return load({**said, "workers": str(self._script.threads)}, config=self.text("config"), profile=self.text("profile"))
        except ConfigurationError as error:
            raise ConfigurationError(str(error).replace("(option --", "(param ")) from None  # where Snakemake's users wrote it

    @contextmanager
    def known(self, *, create: bool = False) -> Iterator[Metadata]:
        """The metadata of a step that is nothing without. Raises `ConfigurationError` if nobody knows."""
        with self.repository() as repository, self.metadata(repository, create=create) as metadata:
            yield known(metadata)

    def progress(self, files: int) -> Lines:
        return Lines(files)


def known(metadata: Metadata | None) -> Metadata:
    """The metadata service of a step that is nothing without one. Raises `ConfigurationError`."""
    if metadata is None:
        raise ConfigurationError(
            "Nothing knows of studies and analyses here: set the param metadata_url, or METADATA_URL, to a Song server"
        )
    return metadata


def _one(names: Names, name: str, kind: str) -> Path | None:
    found = names.get(name)
    if isinstance(found, list | tuple):
        if len(found) != 1:
            raise ConfigurationError(f"The {kind} {name} must be one file, got {len(found)}")
        (found,) = found
    return None if found is None else Path(found)


def _all_but(names: Names, but: Sequence[str]) -> list[Path]:
    excluded: list[str] = []
    for name in but:
        found = names.get(name)
        excluded += [] if found is None else [str(item) for item in found] if isinstance(found, list | tuple) else [str(found)]
    return [Path(item) for item in names if str(item) not in excluded]


def write_whole(path: Path, text: str, *, private: bool = False) -> None:
    """Writes a file, which appears whole or not at all; with `private` for nobody but its owner to read.

    Raises:
        LocalFileError: it cannot be written.
    """
    half = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with explained("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        half.touch(0o600 if private else 0o666, exist_ok=False)
        try:
            half.write_text(text, encoding="utf-8", newline="")
            half.replace(path)
        finally:
            half.unlink(missing_ok=True)
