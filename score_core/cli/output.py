"""What a command prints: data on stdout, talk on stderr, or one JSON document instead of the data."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from score_core.errors import redact
from score_core.model import SliceReport, TransferReport

NETWORK_CODE: Final = 7
WORKFLOW_CODE: Final = 104  # what Snakemake and Nextflow recipes retry by convention (docs/cli.md)
BATCH_CODE: Final = 9


@dataclass(frozen=True, slots=True)
class Result:
    """What a command has to say at its end. `document` holds for `--json` what `data` (lines for stdout) says to people.

    `text` is for stdout as it stands, before `data`.
    `talk` are lines for stderr, `error` is the one sentence that explains an `exit_code` other than 0.
    """

    document: Mapping[str, Any] = field(default_factory=dict)
    data: Iterable[str] = ()
    text: str = ""
    talk: Iterable[str] = ()
    error: str | None = None
    exit_code: int = 0


def show(result: Result, *, command: str, as_json: bool, workflow_codes: bool) -> int:
    """Prints a result; returns the process's exit code."""
    code = WORKFLOW_CODE if workflow_codes and _network_alone(result) else result.exit_code
    if as_json:
        document = {"command": command, **result.document, "error": result.error, "exit_code": code}
        print(json.dumps(document, indent=2))
    else:
        if result.text:  # writing nothing, too, is refused by a full disk
            print(result.text, end="")
        for line in result.data:
            print(line)
    sys.stdout.flush()  # a closed pipe shows here, where it is caught, and not at the interpreter's end
    for line in result.talk:
        say(line)
    if result.error is not None:
        say(f"error: {result.error}")
    return code


def _network_alone(result: Result) -> bool:
    """Whether nothing but the network failed: then the same command again may do it, and files that are done are not moved again."""
    if result.exit_code == BATCH_CODE:
        return {row["exit_code"] for row in result.document.get("files", ()) if row["outcome"] == "failed"} == {NETWORK_CODE}
    return result.exit_code == NETWORK_CODE


def say(line: str) -> None:
    """One line of talk."""
    print(line, file=sys.stderr, flush=True)


# Reports


def of_reports(reports: Sequence[TransferReport], seconds: float, *, error: str | None = None, exit_code: int | None = None) -> Result:
    """The result of a batch, even one of a single file, that took `seconds`. `error` and `exit_code` replace what the reports say."""
    failed = [report for report in reports if report.outcome == "failed"]
    code = _code(reports, failed) if exit_code is None else exit_code
    talk = [_line(report) for report in reports if report.outcome != "failed"]
    if len(reports) > 1:
        talk.append(_closing(reports, failed, seconds))
        talk += [f"  failed: object {report.object_id}, {_name(report)} (code {report.exit_code}): {report.error}" for report in failed]
    if error is None and failed:
        error = failed[0].error if len(reports) == 1 else f"{len(failed)} of {len(reports)} files failed; the others are done"
    document = {"files": [_row(report) for report in reports], "totals": _totals(reports, seconds)}
    return Result(document, talk=talk, error=error, exit_code=code)


def _code(reports: Sequence[TransferReport], failed: Sequence[TransferReport]) -> int:
    """0, or 9 for a batch that failed in part; when all failed for one reason, that reason's code says more."""
    if not failed:
        return 0
    codes = {report.exit_code for report in failed}
    return codes.pop() if len(failed) == len(reports) and len(codes) == 1 else BATCH_CODE


def _row(report: TransferReport) -> dict[str, Any]:
    return {**dataclasses.asdict(report), "megabytes_per_s": round(report.megabytes_per_s, 3)}


def _totals(reports: Sequence[TransferReport], seconds: float) -> dict[str, Any]:
    moved = sum(report.bytes_moved for report in reports)
    return {
        "files": len(reports),
        "failed": sum(1 for report in reports if report.outcome == "failed"),
        "size": sum(report.size for report in reports),
        "bytes_moved": moved,
        "bytes_kept": sum(report.bytes_kept for report in reports),
        "retries": sum(report.retries for report in reports),
        "seconds": round(seconds, 3),
        "megabytes_per_s": round(moved / 1e6 / seconds, 3) if seconds else 0.0,
    }


def _name(report: TransferReport) -> str:
    return redact(report.path)


def _line(report: TransferReport) -> str:
    if isinstance(report, SliceReport):
        return _slice_line(report)
    if report.outcome == "verified":
        return f"{_name(report)}: verified, {report.size:,} bytes, MD5 {report.md5 or 'of all parts'}"
    if report.outcome == "already there":
        return f"{_name(report)}: already there, {report.size:,} bytes not moved, object {report.object_id}, MD5 {report.md5}"
    proof = f"MD5 {report.md5}" if report.md5 else "parts' MD5s" if report.validation == "parts" else "not verified"
    return (
        f"{_name(report)}: {report.outcome}, {report.size:,} bytes in {report.seconds:.1f} s ({report.megabytes_per_s:.1f} MB/s), "
        f"{_count(report.retries, 'retry', 'retries')}, {_kept(report.bytes_kept)}{proof}"
    )


def _slice_line(report: SliceReport) -> str:
    where = "" if report.path == "-" else f"{_name(report)}: "
    skipped = f"; {len(report.skipped_contigs)} unknown contigs left out" if report.skipped_contigs else ""
    cost = (
        f"fetched {_bytes(report.bytes_moved)} of {_bytes(report.size)} in {_count(report.requests, 'request', 'requests')}"
        if report.requests
        else f"from {_bytes(report.size)}"
    )
    return f"{where}{_count(report.records, 'record', 'records')}, {cost}, {report.seconds:.1f} s{skipped}"


def _bytes(count: int) -> str:
    """Three digits at most, in the unit that fits: 10^3 bytes to a kB."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.{0 if size >= 100 or unit == 'B' else 1}f} {unit}"


def _kept(count: int) -> str:
    return f"{count:,} bytes not moved again thanks to resume, " if count else ""


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _closing(reports: Sequence[TransferReport], failed: Sequence[TransferReport], seconds: float) -> str:
    totals = _totals(reports, seconds)
    there = sum(1 for report in reports if report.outcome == "already there")
    return (
        f"{len(reports)} files: {len(reports) - len(failed)} good{f' ({there} already there)' if there else ''}, {len(failed)} failed; "
        f"{totals['bytes_moved']:,} bytes in {seconds:.1f} s ({totals['megabytes_per_s']:.1f} MB/s), "
        f"{_count(totals['retries'], 'retry', 'retries')}, {totals['bytes_kept']:,} bytes not moved again thanks to resume"
    )


# Logging


class _Formatter(logging.Formatter):
    """One redacted line per record; with `debug`, more about it, and tracebacks line by line."""

    def __init__(self, *, debug: bool) -> None:
        super().__init__()
        self._debug = debug

    def format(self, record: logging.LogRecord) -> str:
        text = redact(record.getMessage())
        if not self._debug:
            return f"{record.levelname.lower()}: {text}"
        line = f"{record.levelname.lower()}: {record.threadName} {record.name}: {text}"
        if record.exc_info:
            line += "\n" + redacted_traceback(record.exc_info[1])
        return line


def redacted_traceback(error: BaseException | None) -> str:
    lines = "".join(traceback.format_exception(error)).splitlines() if error is not None else []
    return "\n".join(redact(line) for line in lines)


class _Handler(logging.StreamHandler[Any]):
    """Writes to what is stderr at the time: progress bars put themselves there while they run."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


@contextmanager
def listening_to_logs(*, debug: bool) -> Iterator[None]:
    """Shows warnings, and with `debug` all that our own modules log. Other libraries' debug lines quote signed URLs: they stay off."""
    handler = _Handler()
    handler.setFormatter(_Formatter(debug=debug))
    handler.setLevel(logging.DEBUG if debug else logging.WARNING)
    root, ours = logging.getLogger(), logging.getLogger("score_core")
    before = ours.level
    root.addHandler(handler)
    ours.setLevel(handler.level)
    try:
        yield
    finally:
        root.removeHandler(handler)
        ours.setLevel(before)
