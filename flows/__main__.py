"""`python -m flows upload|download|batch|view|demo|server ...`: a flow now, without a deployment."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

_OWN_STOP_S: Final = 1.8  # after a signal: parts stop within a block; a run that does not is left, since every step on disk can be resumed
_HEAVY_IMPORTS: Final = ("pydantic_settings", "httpx", "websockets", "jinja2", "cloudpickle", "rich.console", "anyio", "boto3")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; the exit code is the direct command line's (`score --help` lists them)."""
    given = _parser().parse_args(arguments)
    if given.command == "server":
        from flows import local_server

        return local_server.main(given.rest)
    with _signals() as came:
        code = _reported(given)
    return 128 + came[0] if came else code


def _reported(given: argparse.Namespace) -> int:
    from flows.server_room import LocalServerError
    from score_core.errors import BatchError, ScoreError

    try:
        with _prefect() as started_s:
            if given.command == "demo":
                from flows.demo import demo

                return demo(Path(given.dir) if given.dir else None, started_s=started_s, server=given.server)
            outcome = _FLOWS[given.command](given)
    except BatchError as error:
        return _told(given, [dataclasses.asdict(report) for report in error.reports], str(error), error.exit_code)
    except ScoreError as error:
        return _told(given, [], str(error), error.exit_code)
    except LocalServerError as error:
        return _told(given, [], str(error), 1)
    except KeyboardInterrupt:
        return _told(given, [], "Interrupted; run the same command again to resume", 130)
    return _told(given, outcome if isinstance(outcome, list) else [outcome], None, 0)


@contextlib.contextmanager
def _prefect() -> Iterator[float]:
    """A Prefect server to talk to and Prefect imported; yields the seconds that took."""
    from flows import local_server

    began = time.monotonic()
    home = local_server.default_home()
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")  # what goes wrong is said once, at the end, without a traceback per part
    pending = local_server.start_in_background(home)
    with local_server.fast_imports(home):
        for name in _HEAVY_IMPORTS:  # while the server starts: what Prefect will need and what reads no setting
            with contextlib.suppress(ImportError):
                __import__(name)
        os.environ.update(pending.wait().environment())  # before Prefect is imported: it reads them once
        __import__("flows.batch")
    logging.getLogger("EventsWorker").setLevel(logging.ERROR)  # "Still processing items": its own business, and not a warning
    _show_progress()
    with local_server.quick_flows():
        yield time.monotonic() - began


def _show_progress() -> None:
    """The flows' own lines (a transfer's progress every few seconds) on stderr; Prefect's loggers are not touched."""
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(logging.Formatter("%(message)s"))
    ours = logging.getLogger("flows")
    ours.addHandler(lines)
    ours.setLevel(logging.INFO)
    ours.propagate = False


def _upload(given: argparse.Namespace) -> dict[str, Any]:
    from flows.upload import upload

    return upload(str(Path(given.file).absolute()), given.object_id, given.md5, force=given.force, store=given.store)


def _download(given: argparse.Namespace) -> dict[str, Any]:
    from flows.download import download

    return download(
        given.object_id,
        str(Path(given.output_dir).absolute()),
        output_layout=given.output_layout,
        validation=given.validate,
        force=given.force,
        store=given.store,
    )


def _batch(given: argparse.Namespace) -> list[dict[str, Any]]:
    from flows.batch import batch
    from flows.driving import threads
    from score_core.settings import load

    return batch.with_options(task_runner=threads(load().transfer.files_at_once))(
        given.manifest,
        given.direction,
        given.output_dir and str(Path(given.output_dir).absolute()),
        study_id=given.study_id,
        analysis_id=given.analysis_id,
        index=given.index == "true",
        output_layout=given.output_layout,
        validation=given.validate,
        force=given.force,
        store=given.store,
    )


def _view(given: argparse.Namespace) -> list[dict[str, Any]]:
    from flows.driving import threads
    from flows.view import view
    from score_core.settings import load

    return view.with_options(task_runner=threads(load().transfer.files_at_once))(
        str(Path(given.output_dir).absolute()),
        given.object_id,
        manifest=given.manifest,
        study_id=given.study_id,
        analysis_id=given.analysis_id,
        index_object_id=given.index_object_id,
        regions=given.query,
        bed=given.bed_query,
        contained=given.contained,
        skip_unknown=given.skip_unknown,
        header_only=given.header_only,
        output_format=given.output_format,
        original_header=given.output_original_header,
        output_index=given.output_index,
        reference_file=given.reference_file,
        max_bytes=given.max_bytes,
        store=given.store,
    )


_FLOWS: Final[dict[str, Callable[[argparse.Namespace], Any]]] = {"upload": _upload, "download": _download, "batch": _batch, "view": _view}


def _told(given: argparse.Namespace, reports: list[dict[str, Any]], error: str | None, code: int) -> int:
    """Says how it ended, as `score` does: with `--json` one document, also on failure; returns the exit code."""
    if getattr(given, "json", False):
        print(json.dumps({"command": given.command, "files": reports, "error": error, "exit_code": code}, indent=2))
    else:
        for report in reports:
            print(_line(report))
    if error is not None:
        print(f"error: {error}", file=sys.stderr)
    return code


def _line(report: dict[str, Any]) -> str:
    if report["error"]:
        return f"failed       {report['path']}: {report['error']}"
    if "records" in report:
        return _slice_line(report)
    rate = report["bytes_moved"] / 1e6 / report["seconds"] if report["seconds"] else 0.0
    kept = f", {report['parts_kept']} of {report['parts']} parts kept from an earlier run" if report["parts_kept"] else ""
    moved = f", {report['bytes_moved']:,} bytes moved in {report['seconds']:.1f} s ({rate:.0f} MB/s)" if report["bytes_moved"] else ""
    return f"{report['outcome']:12} {report['path']} ({report['size']:,} bytes, MD5 {report['md5'] or 'not verified'}{moved}{kept})"


def _slice_line(report: dict[str, Any]) -> str:
    fetched = f", {report['bytes_moved']:,} of {report['size']:,} bytes fetched in {report['seconds']:.1f} s" if report["requests"] else ""
    skipped = f", {len(report['skipped_contigs'])} unknown contigs left out" if report["skipped_contigs"] else ""
    return f"{report['outcome']:12} {report['path']} ({report['records']:,} records{fetched}{skipped})"


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM stop the parts at their next block and the process within two seconds; yields which came.

    A thread hears of them by a socket, because Prefect puts a SIGTERM handler of its own in place of ours while a flow runs.
    """
    came: list[int] = []
    heard, told = socket.socketpair()
    told.settimeout(0)  # never wait in a signal handler

    def interrupt(number: int, _frame: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    previous_fd = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_stop_when_told, args=(heard,), daemon=True, name="score-signals").start()
    try:
        yield came
    finally:
        signal.set_wakeup_fd(previous_fd)
        for number, handler in previous.items():
            signal.signal(number, handler)
        told.close()  # ends the thread


def _stop_when_told(heard: socket.socket) -> None:
    with heard:
        while told := heard.recv(1):
            if told[0] in {signal.SIGINT, signal.SIGTERM}:
                if "tasks.sessions" in sys.modules:
                    sys.modules["tasks.sessions"].stop_all(told[0])
                time.sleep(_OWN_STOP_S)
                _leave(told[0])


def _leave(number: int) -> None:
    print("Interrupted; run the same command again to resume", file=sys.stderr, flush=True)
    os._exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows",
        description="Run a transfer as a Prefect flow now, without a deployment. Starts a local Prefect server, or uses the one that runs "
        "or that PREFECT_API_URL names, and says which.",
        epilog="Run the same command again after any interruption: parts that are done are not moved again.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    where = argparse.ArgumentParser(add_help=False)
    places = "s3://bucket[/prefix][?endpoint=URL], file:///folder, or a Score server's https://...; by default what the settings say"
    where.add_argument("--store", "--url", help=places)
    where.add_argument("--json", action="store_true", help="print the reports as one JSON document")
    common = argparse.ArgumentParser(add_help=False, parents=[where])
    common.add_argument("--force", action="store_true", help="replace what is there already")
    validate = argparse.ArgumentParser(add_help=False)
    validate.add_argument("--validate", default="auto", choices=["auto", "parts", "whole", "both", "off"], help="how the bytes are proven")
    upload = commands.add_parser("upload", parents=[common], help="upload one file, a task run per part")
    upload.add_argument("--file", required=True)
    upload.add_argument("--object-id", required=True)
    upload.add_argument("--md5", help="what the file promises to be; computed first if not given")
    download = commands.add_parser("download", parents=[common, validate], help="download one object, a task run per part")
    download.add_argument("--object-id", required=True)
    download.add_argument("--output-dir", required=True)
    download.add_argument("--output-layout", default="filename", choices=["filename", "bundle", "id"])
    batch = commands.add_parser("batch", parents=[common, validate], help="transfer every file of a manifest, or download an analysis")
    batch.add_argument("--manifest", help="upload manifest (3 columns) or download manifest (11 columns)")
    batch.add_argument("--study-id", help="instead of a manifest: download all files of an analysis of this study")
    batch.add_argument("--analysis-id", help="which analysis")
    batch.add_argument(
        "--index", default="true", choices=["true", "false"], help="for downloads: index files, too, where metadata know them"
    )
    batch.add_argument("--direction", required=True, choices=["upload", "download"])
    batch.add_argument("--output-dir", help="for downloads: where the files go")
    batch.add_argument("--output-layout", default="filename", choices=["filename", "bundle", "id"])
    _add_view(commands.add_parser("view", parents=[where], help="cut regions out of objects, a task run and a file per object"))
    demo = commands.add_parser("demo", help="upload, kill, resume, download and verify real files, and show what happened")
    demo.add_argument("--dir", help="where to work; by default a folder that is removed at the end")
    demo.add_argument("--server", action="store_true", help="through a Score server, over HTTP with a token: register and publish, too")
    server = commands.add_parser("server", help="start, stop or look at the local Prefect server", add_help=False)
    server.add_argument("rest", nargs=argparse.REMAINDER)
    return parser


def _add_view(view: argparse.ArgumentParser) -> None:
    """The options of `score view`, for many objects."""
    view.add_argument("--object-id", nargs="+", action="extend", help="the objects to read from")
    view.add_argument("--manifest", help="download manifest (11 columns) of the objects instead")
    view.add_argument("--study-id", help="or all reads and variants of an analysis of this study")
    view.add_argument("--analysis-id", help="which analysis")
    view.add_argument("--index-object-id", help="the object of the index, for one object of which the metadata know none")
    view.add_argument("--query", nargs="+", action="extend", help="regions as samtools takes them: chr1, chr1:1,000-2,000, * and .")
    view.add_argument("--bed-query", help="the regions of a BED file instead")
    view.add_argument("--contained", action="store_true", help="only what lies wholly within the regions")
    view.add_argument("--skip-unknown", action="store_true", help="leave out contigs of the BED file that the data do not have")
    view.add_argument("--header-only", action="store_true", help="the header, and no records")
    view.add_argument("--output-dir", required=True, help="the folder that the files go to")
    view.add_argument("--output-format", help="sam, bam or cram; for variants vcf, vcf.gz or bcf; text by default")
    view.add_argument("--output-original-header", action="store_true", help="the header as it is in the data")
    view.add_argument("--output-index", action="store_true", help="write an index beside each file")
    view.add_argument("--reference-file", help="the FASTA file (with .fai) of CRAM files that need one")
    view.add_argument("--max-bytes", type=_size, help="an object of which more would have to be fetched fails; such as 500M")


def _size(text: str) -> int:
    """A number of bytes as `score view --max-bytes` takes it."""
    from score_core.cli.view import size_of
    from score_core.errors import ConfigurationError

    try:
        return size_of("--max-bytes", text)
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
