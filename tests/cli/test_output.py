"""What is printed, and where."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from score_core.cli.app import COMMANDS
from score_core.cli.progress import Bars, Lines, Quiet, progress_for
from score_core.model import TransferReport
from tests.cli.conftest import OBJECT_ID, Score, md5_of, upload_some


def test_version_is_found_by_icgc_get(score: Score) -> None:
    for argv in (("version",), ("--version",)):
        assert re.search(r"Version: [0-9.]+", score(*argv).out)


def test_help_names_every_command(score: Score) -> None:
    ran = score("--help")
    assert ran.code == 0
    assert all(f"  {name} " in ran.out for name in COMMANDS)


def test_help_that_nobody_reads_on_is_quiet() -> None:
    command = [sys.executable, "-c", "import sys; from score_core.cli.app import main; sys.stdin.read(); sys.exit(main(['--help']))"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, err = process.communicate(b"", timeout=20)
    assert err == b""


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "config"])
def test_help_of_a_command_has_an_example(score: Score, command: str) -> None:
    ran = score(command, "--help")
    assert ran.code == 0
    assert f"score {command}" in ran.out.partition("Example: ")[2]
    assert score("help", command).out == ran.out


@pytest.mark.parametrize(("failures", "plain", "for_workflows"), [([7], 9, 104), ([7, 7], 9, 104), ([7, 6], 9, 9), ([5], 9, 9)])
def test_batch_that_only_the_network_failed_is_worth_a_retry(failures: list[int], plain: int, for_workflows: int) -> None:
    """What is done already does not make the rest less worth it."""
    from score_core.cli.output import of_reports, show

    reports = [
        TransferReport("x", "x", "downloaded"),
        *(TransferReport("y", "y", "failed", error="e", exit_code=code) for code in failures),
    ]
    codes = [show(of_reports(reports, 1.0), command="download", as_json=False, workflow_codes=codes) for codes in (False, True)]
    assert codes == [plain, for_workflows]


def test_nothing_but_data_on_stdout(score: Score, some_file: Path) -> None:
    ran = score("upload", "--file", some_file, "--object-id", OBJECT_ID, "--md5", md5_of(some_file))
    assert ran.out == ""
    assert "uploaded, 655,369 bytes" in ran.err


def test_silent_says_nothing(score: Score, some_file: Path) -> None:
    ran = score("--silent", "list", "--store", "gopher://x")
    assert (ran.code, ran.out, ran.err) == (2, "", "")


def test_resume_is_mentioned_in_the_summary(score: Score, some_file: Path) -> None:
    from score_core.cli.output import of_reports

    report = TransferReport("x", "a", "uploaded", size=30, bytes_moved=10, bytes_kept=20, md5="m", seconds=1.0)
    (line,) = of_reports([report], 1.0).talk
    assert "20 bytes not moved again thanks to resume" in line
    upload_some(score, some_file)


def test_progress_lines_sum_up_all_files() -> None:
    now = [0.0]
    lines = Lines(2, clock=lambda: now[0])
    lines.begin("a", "a", 60_000_000, 10_000_000, 3)
    lines.begin("b", "b", 40_000_000, 0, 2)
    lines.advance("a", 20_000_000)
    lines.advance("b", -5_000_000)
    lines.part_done("a")
    lines.retry("b", "part 1", "why", 1.0)
    now[0] = 5.0
    assert lines.line() == "progress: 25.0% of 100.0 MB, 1 of 5 parts, 3.0 MB/s, 25 s left, 1 retry, file 1 of 2"


def test_bar_only_where_it_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(progress_for("auto", 1, quiet=False)) is Lines
    assert type(progress_for("bar", 1, quiet=True)) is Quiet
    assert type(progress_for("none", 1, quiet=False)) is Quiet


def test_bar_runs_through(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars() as bars:
        bars.begin("a", "a\x1b[2J", 100, 50, 2)
        bars.advance("a", 50)
        bars.part_done("a")
        bars.retry("a", "part 1", "why", 0.1)
        bars.end(TransferReport("a", "a", "uploaded"))
    assert "\x1b[2J" not in capsys.readouterr().err


def test_config_show_says_who_won(score: Score, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('store = "file:///a"\nworkers = 3\n[profiles.lab]\nworkers = 4\n')
    monkeypatch.setenv("SCORE_STORE", "file:///b")
    ran = score("config", "show", "--origin", "--config", config, "--profile", "lab", "--store", "file:///c")
    assert "store = file:///c  (option --store)" in ran.out
    assert f"workers = 4  (profile lab in {config})" in ran.out


def test_help_imports_nothing_slow(environment: None) -> None:
    """Time is measured by a benchmark; what costs it is told here."""
    program = "import sys; from score_core.cli.app import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert loaded & {"cyclopts", "rich", "pydantic", "urllib3", "boto3", "httpx", "platformdirs"} == set()


def test_transfer_imports_nothing_that_it_does_not_need(environment: None, some_file: Path) -> None:
    argv = ["upload", "--file", str(some_file), "--object-id", OBJECT_ID, "--md5", md5_of(some_file)]
    program = f"import sys; from score_core.cli.app import main; main({argv!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded & {"rich", "boto3", "botocore", "httpx", "fastapi", "pydantic", "asyncio"} == set()


@pytest.mark.slow
def test_demo(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start("demo")
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert "killed with SIGKILL" in err or "before the kill" in err
    assert "NO" not in out
