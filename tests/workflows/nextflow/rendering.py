"""Nextflow's part without Nextflow: `Shim` renders what a file defines, `run` runs a rendered task in a folder of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[3]
PIPELINE: Final = ROOT / "workflows" / "nextflow"
SHELL: Final = ("bash", "-C", "-e", "-u", "-o", "pipefail")  # nf-core's `process.shell`; a test compares it with nextflow.config's
GROOVY_JARS: Final = ("groovy-2*.jar", "groovy-4*.jar", "groovy-json*.jar", "antlr.jar", "asm*.jar")
MODULES: Final = {
    "SCORE_DOWNLOAD": "score/download",
    "SCORE_UPLOAD": "score/upload",
    "SCORE_VIEW": "score/view",
    "SONG_GET": "song/get",
    "SONG_PUBLISH": "song/publish",
    "SONG_SUBMIT": "song/submit",
}

Values = Mapping[str, Any]


def module(process: str) -> Path:
    """The folder of a process."""
    return PIPELINE / "modules" / "score" / MODULES[process]


def groovy_command() -> list[str] | None:
    """How NfShim.groovy is run by Debian's `groovy` package; None where that or Java is missing.

    Not by its launcher, which wants a JAVA_HOME that Debian does not always have.
    """
    launcher, java = shutil.which("groovy"), shutil.which("java")
    if launcher is None or java is None:
        return None
    libraries = Path(launcher).resolve().parent.parent / "lib"
    jars = [str(jar) for pattern in GROOVY_JARS for jar in libraries.glob(pattern)]
    quick = ("-Xshare:auto", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
    opened = ("--add-opens", "java.base/java.lang=ALL-UNNAMED")  # Groovy 2.4 is older than Java's modules
    shim = Path(__file__).with_name("NfShim.groovy")
    return [java, *quick, *opened, "-cp", os.pathsep.join(jars), "groovy.ui.GroovyMain", str(shim)]


@dataclass(frozen=True)
class Output:
    """One declared output: its parts as `(kind, value)`, in a tuple or alone."""

    emit: str | None
    topic: str | None
    optional: bool
    is_tuple: bool
    parts: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Rendered:
    """A process with values for its inputs: the bash that Nextflow would run, and what it expects afterwards."""

    name: str
    script: str
    directives: dict[str, list[Any]]
    inputs: tuple[tuple[str, ...], ...]
    outputs: tuple[Output, ...]
    when: bool


class Shim:
    """One JVM that answers for all files."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, request: Values) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert "error" not in answer, f"{request}: {answer['error']}"
        return answer

    def render(self, process: str, inputs: Values, *, ext: Values | None = None, stub: bool = False) -> Rendered:
        """A process as Nextflow would run it. A `Path` among the inputs is a file in the task's folder, by its name."""
        request = {"file": str(module(process) / "main.nf"), "inputs": _names(inputs), "ext": ext or {}, "stub": stub}
        found = self.ask(request)
        declared = [tuple(_first(part["arguments"]) for part in _parts(each)) for each in found["inputs"]]
        directives: dict[str, list[Any]] = {}
        for each in found["directives"]:
            directives.setdefault(each["name"], []).append(_first(each["arguments"]))
        outputs = tuple(map(_output, found["outputs"]))
        return Rendered(found["name"], found["script"], directives, tuple(declared), outputs, found["when"])

    def workflow(self, path: Path, rows: list[Any] | None = None) -> dict[str, Any]:
        """What a workflow takes, calls and emits; channels are named `PROCESS.emit`."""
        return self.ask({"file": str(path), "rows": rows or []})

    def configuration(self, path: Path, params: Values | None = None, profile: str | None = None) -> dict[str, Any]:
        """The settings of a configuration file with these parameters of the command line."""
        return dict(self.ask({"config": str(path), "params": params or {}, "profile": profile})["settings"])

    def strategies(self, path: Path, exit_codes: Sequence[int]) -> dict[int, str]:
        """What the errorStrategy of a configuration file does about each exit code."""
        return dict(zip(exit_codes, self.ask({"config": str(path), "exitStatuses": list(exit_codes)})["strategies"], strict=True))


@contextmanager
def shim(command: list[str]) -> Iterator[Shim]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Shim(process)
        assert process.stdin is not None
        process.stdin.close()  # which ends it


def _names(value: Any) -> Any:
    if isinstance(value, Path):
        return {"path": value.name}
    if isinstance(value, Mapping):
        return {name: _names(inner) for name, inner in value.items()}
    return [_names(inner) for inner in value] if isinstance(value, list | tuple) else value


def _parts(call: Values) -> list[Any]:
    """`val(x)` is its own only part, `tuple val(x), path(y)` has two."""
    return [each for each in call["arguments"] if "name" in each] if call["name"] == "tuple" else [call]


def _first(arguments: list[Any]) -> Any:
    return next(each for each in arguments if not _is_options(each))


def _is_options(argument: Any) -> bool:
    return isinstance(argument, dict) and bool({"emit", "topic"} & argument.keys())


def _output(call: Values) -> Output:
    options: dict[str, Any] = next((each for each in call["arguments"] if _is_options(each)), {})
    parts = tuple((part["name"], _first(part["arguments"])) for part in _parts(call))
    return Output(options.get("emit"), options.get("topic"), options.get("optional", False), call["name"] == "tuple", parts)


# Running


@dataclass
class Done:
    """A task that has ended: its exit code, what it said, and with code 0 its outputs by name."""

    folder: Path
    code: int
    out: str
    err: str
    outputs: dict[str, Any] = field(default_factory=dict)

    def sentence(self) -> str:
        """The one line that says what went wrong."""
        assert "Traceback" not in self.err
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return line


def start(rendered: Rendered, inputs: Values, folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Begins a task in `folder`, which must not exist, with its input files linked into it, as Nextflow does. It leads a process group."""
    folder.mkdir(parents=True)
    for path in _files(list(inputs.values())):
        (folder / path.name).symlink_to(path.resolve())
    (folder / ".command.sh").write_text(rendered.script + _epilogue(rendered))
    return subprocess.Popen(
        [*SHELL, ".command.sh"],
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(rendered: Rendered, inputs: Values, folder: Path, environment: Mapping[str, str]) -> Done:
    """Runs a task to its end; every output that it declares must be there after exit code 0."""
    with start(rendered, inputs, folder, environment) as process:
        out, err = process.communicate(timeout=60)
    done = Done(folder, process.returncode, out, err)
    if done.code == 0:
        staged = {path.name for path in _files(list(inputs.values()))}
        for output in rendered.outputs:
            values = [_value(kind, value, done, staged, output, environment) for kind, value in output.parts]
            done.outputs[output.emit or ""] = tuple(values) if output.is_tuple else values[0]
    return done


def _files(values: list[Any]) -> Iterator[Path]:
    for value in values:
        if isinstance(value, Path):
            yield value
        elif isinstance(value, list | tuple):
            yield from _files(list(value))


def _epilogue(rendered: Rendered) -> str:
    """As Nextflow's own, which keeps variables that are outputs."""
    names = {value for output in rendered.outputs for kind, value in output.parts if kind == "env"}
    return "".join(f"\nprintf '%s' \"${name}\" > .command.env.{name}" for name in sorted(names)) + "\n"


def _value(kind: str, value: Any, done: Done, staged: set[str], output: Output, environment: Mapping[str, str]) -> Any:
    if kind == "val":
        return value
    if kind == "env":
        return (done.folder / f".command.env.{value}").read_text()
    if kind == "eval":
        evaluated = subprocess.run(
            [*SHELL, "-c", value], cwd=done.folder, env=dict(environment), capture_output=True, text=True, check=True
        )
        return evaluated.stdout.strip()
    assert kind == "path"
    if isinstance(value, dict | list):  # input files that are handed on
        paths = [done.folder / each["path"] for each in (value if isinstance(value, list) else [value])]
        assert all(path.exists() for path in paths)
        return paths if isinstance(value, list) else paths[0]
    found = sorted(path for pattern in braces(value) for path in done.folder.glob(pattern) if path.name not in staged)
    assert found or output.optional, f"{output.emit}: nothing matches {value}"
    return found[0] if len(found) == 1 else found


def braces(pattern: str) -> list[str]:
    """`*.{a,b}` as `*.a` and `*.b`."""
    found = re.fullmatch(r"(.*)\{([^{}]*)\}(.*)", pattern)
    return [pattern] if found is None else [found[1] + each + found[3] for each in found[2].split(",")]
