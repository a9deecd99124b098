"""A real `score serve` behind a proxy that counts and breaks, one JVM that renders, and nf-core's linter in an environment of its own."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest

from score_core.checksum import md5_hex
from score_core.testing.faults import FaultProxy
from score_core.testing.servers import free_ports
from tests.workflows.nextflow.rendering import ROOT, Done, Rendered, Shim, Values, groovy_command, run, shim

STUDY: Final = "TEST-CA"
DATA: Final = ROOT / "tests" / "data"
PART_BYTES: Final = 64 << 10
NOISE_PARTS: Final = 48
LINTERS: Final = ("nf-core==4.2.1", "reftrace==0.6.0")
LINT_ROOM: Final = ROOT / ".venv-nextflow"  # .gitignore has it


@pytest.fixture(scope="session")
def nextflow() -> Iterator[Shim]:
    """Renders modules. Skips where Groovy is not installed."""
    command = groovy_command()
    if command is None:
        pytest.skip("Groovy is not installed, so no Nextflow module is rendered: apt-get install groovy")
    with shim(command) as found:
        yield found


@dataclass
class Analysis:
    """An analysis of the server, and its files' bytes by name."""

    analysis_id: str
    ids: dict[str, str]
    data: dict[str, bytes]


@dataclass
class Server:
    """A running `score serve`, whose signed addresses lead through `proxy`. `environment` is a task's: no HOME, nothing of this machine."""

    url: str
    token: str
    data_dir: Path
    proxy: FaultProxy
    environment: dict[str, str]
    nextflow: Shim
    folder: Path
    _count: int = field(default=0)

    def new_folder(self) -> Path:
        """The name of a folder for a task, as Nextflow would take one for each attempt."""
        self._count += 1
        return self.folder / f"work-{self._count}"

    def run(
        self, process: str, inputs: Values, *, ext: Values | None = None, stub: bool = False, environ: Mapping[str, str] | None = None
    ) -> Done:
        """Renders a process and runs it."""
        rendered = self.nextflow.render(process, inputs, ext=ext, stub=stub)
        return self.run_rendered(rendered, inputs, **(environ or {}))

    def run_rendered(self, rendered: Rendered, inputs: Values, **environ: str) -> Done:
        return run(rendered, inputs, self.new_folder(), {**self.environment, **environ})

    def score(self, *words: str | Path) -> str:
        """What the program prints with these words, which must succeed."""
        command = ["score", *map(str, words)]
        done = subprocess.run(command, env=self.environment, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def published(self, files: Mapping[str, bytes], *, publishes: bool = True) -> Analysis:
        """A new analysis with these files, stored, and not counted by the proxy."""
        folder = self.new_folder()
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        manifest = folder / "manifest.txt"
        registered = json.loads(
            self.score("register", *(folder / name for name in files), "--study", STUDY, "--output", manifest, "--json")
        )
        self.score("upload", "--manifest", manifest)
        if publishes:
            self.score("publish", "--study", STUDY, "--analysis-id", registered["analysis_id"])
        self.forget()
        ids = {file["file_name"]: file["object_id"] for file in registered["files"]}
        return Analysis(registered["analysis_id"], ids, dict(files))

    def forget(self) -> None:
        """The proxy is honest, and counts from nothing."""
        self.proxy.heal()
        self.proxy.forget()


@pytest.fixture(scope="session")
def running_server(tmp_path_factory: pytest.TempPathFactory, nextflow: Shim) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("nextflow")
    commands, temporary = folder / "bin", folder / "tmp"
    commands.mkdir()
    temporary.mkdir()
    score = commands / "score"
    guard = Path(__file__).with_name("read_only.py")
    score.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {shlex.quote(sys.executable)} {shlex.quote(str(guard))} "$@"\n')
    score.chmod(0o755)
    environment = {
        "PATH": os.pathsep.join((str(commands), "/usr/bin", "/bin")),
        "TMPDIR": str(temporary),
        "SCORE_CONFIG": os.devnull,
    }
    with ExitStack() as stack:
        data_port = free_ports(1)[0]
        proxy = stack.enter_context(FaultProxy(f"http://127.0.0.1:{data_port}"))
        own = {"SCORE_DATA_DIR": folder / "server", "SCORE_SERVE_URL": proxy.url, "SCORE_PART_SIZE_BYTES": PART_BYTES, "PYTHONPATH": ROOT}
        command = [sys.executable, "-m", "score_core.cli", "serve", "--port", "0", "--data-port", str(data_port)]
        serve_environment = {**environment, **{name: str(value) for name, value in own.items()}}
        process = stack.enter_context(
            subprocess.Popen(command, env=serve_environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        )
        stack.callback(process.terminate)
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        token = (folder / "server" / "token").read_text().strip()
        environment.update(STORAGE_URL=url, SCORE_TOKEN=token)
        yield Server(url, token, folder / "server", proxy, environment, nextflow, folder)


@pytest.fixture
def server(running_server: Server) -> Server:
    """The server of all tests; its proxy has seen nothing."""
    running_server.forget()
    return running_server


@pytest.fixture(scope="session")
def reads(running_server: Server) -> Analysis:
    """A published analysis: a real BAM and a CRAM with their indexes, and a file of many parts."""
    real = {name: (DATA / name).read_bytes() for name in ("range.bam", "range.bam.bai")}
    other = {f"other{suffix}": (DATA / f"range{suffix}").read_bytes() for suffix in (".cram", ".cram.crai")}
    return running_server.published({**real, **other, "noise.bin": Random(12878).randbytes(NOISE_PARTS * PART_BYTES)})


def payload_of(files: Mapping[str, bytes], **fields: Any) -> dict[str, Any]:
    """A Song payload for these files."""
    described = [
        {"fileName": name, "fileSize": len(data), "fileMd5sum": md5_hex(data), "fileType": "BAM", "fileAccess": "controlled"}
        for name, data in files.items()
    ]
    return {"studyId": STUDY, "analysisType": {"name": "file"}, "files": described, **fields}


# The linter


def lint_python() -> Path:
    """The Python of an environment with nf-core's tools, which do not fit beside ours. Made once, about a minute; kept at the root."""
    LINT_ROOM.mkdir(exist_ok=True)
    environment, stamp = LINT_ROOM / "environment", LINT_ROOM / "stamp"
    wanted = " ".join((sys.version, *LINTERS))
    with (LINT_ROOM / "lock").open("w") as lock:  # two processes may want it at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(environment, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", environment], check=True)
            pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, *LINTERS], check=True)
            stamp.write_text(wanted)
    return environment / "bin" / "python"


@pytest.fixture(scope="session")
def lint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], dict[str, Any]]:
    """What reftrace and nf-core say of a folder, as lint_program.py has it."""
    folder = tmp_path_factory.mktemp("lint")
    fake = folder / "nextflow"  # nf-core asks for its version first; whatever else it asks is not answered
    fake.write_text('#!/bin/sh\necho "nextflow version 26.04.0.12000"\n[ "$1" = -v ]\n')
    fake.chmod(0o755)
    python = lint_python()

    def look(at: Path) -> dict[str, Any]:
        command = [str(python), str(Path(__file__).with_name("lint_program.py")), str(at)]
        own = {"PATH": os.pathsep.join((str(folder), os.environ["PATH"])), "HOME": str(folder)}
        done = subprocess.run(command, env=own, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    return look
