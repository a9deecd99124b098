"""The `score` command: what commands there are, how one is found and run, and what its end means for the exit code.

Importing this is cheap: cyclopts and a command's own module are loaded when a command runs. `score --help` needs neither.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from cyclopts import App

    from score_core.cli.context import GlobalOptions
    from score_core.cli.output import Result
    from score_core.cli.signals import Signals
    from score_core.transfer.stop import Stop

USAGE_CODE: Final = 2
OTHER_CODE: Final = 1
NO_SPACE_CODE: Final = 8
_TOKEN_OPTIONS: Final = ("token", "accesstoken")  # without their hyphens


class _Command(NamedTuple):
    where: str  # module:function
    summary: str


COMMANDS: Final = {
    "upload": _Command("score_core.cli.transfer:upload", "Upload one file, or all files of a manifest."),
    "download": _Command("score_core.cli.transfer:download", "Download objects into a folder."),
    "view": _Command("score_core.cli.view:view", "Show the reads or variants of regions, without fetching the file."),
    "verify": _Command("score_core.cli.transfer:verify", "Compare local files with the repository; moves nothing."),
    "url": _Command("score_core.cli.transfer:url", "Print a time-limited address of an object."),
    "register": _Command("score_core.cli.metadata:register", "Give files their ids, and write the manifest to upload them by."),
    "submit": _Command("score_core.cli.metadata:submit", "Register an analysis from a Song payload."),
    "publish": _Command("score_core.cli.metadata:publish", "Publish an analysis, once its files are stored as registered."),
    "unpublish": _Command("score_core.cli.metadata:unpublish", "Take an analysis back, to replace its files."),
    "analysis": _Command("score_core.cli.metadata:analysis", "Print an analysis with its files, as Song says it."),
    "manifest": _Command("score_core.cli.metadata:manifest", "Print a manifest, or make one for the files of an analysis."),
    "list": _Command("score_core.cli.storage:list_", "List what is stored, or unfinished uploads."),
    "abort": _Command("score_core.cli.storage:abort", "Drop an unfinished upload."),
    "info": _Command("score_core.cli.storage:info", "Show the settings that matter."),
    "config": _Command("score_core.cli.config:app", "`config show --origin`: every setting and where it comes from."),
    "serve": _Command("score_core.cli.serve:serve", "Answer signed addresses into the local store."),
    "demo": _Command("score_core.cli.demo:demo", "A guided run: upload, kill, resume, download, verify."),
    "version": _Command("score_core.cli.storage:version", "Print the version."),
}

_HELP: Final = """\
Score moves large files between a disk and object storage: in parallel, resumable, proven by MD5.

Usage: score [OPTIONS] COMMAND ...

Commands:
{commands}
  help      Explain a command, as `score COMMAND --help` does.

Options of every command, before or after its name:
  --profile NAME       Use the settings of this profile of the configuration file.
  --config FILE        The configuration file, instead of the one in your home.
  --store ADDRESS      Where the objects are: s3://bucket[/prefix][?endpoint=URL] or file:///folder.
  --url ADDRESS        A Score server; the token comes from ACCESSTOKEN or SCORE_TOKEN_FILE.
  --json               Print one JSON document on stdout, also on failure.
  --progress MODE      auto, bar, log (a line every 10 s) or none.
  --quiet              Show no progress.
  --silent             Print nothing at all; the exit code tells.
  --debug              Log what happens, and show tracebacks of unexpected errors.
  --workflow-exit-codes  Exit with 104 if only the network failed, for workflow engines that retry it.

Example: score upload --file a.bam --object-id 5e0a7a2c-6d3e-5b0f-9c55-0d6a4f0e7b11 --md5 6dc47e886b9f2ecef870af88da3ebdd6
Example: score download --object-id 5e0a7a2c-6d3e-5b0f-9c55-0d6a4f0e7b11 --output-dir data

Exit codes: 0 all done and verified, 1 other failure, 2 wrong usage or input, 3 not authenticated, 4 denied, 5 not found,
6 wrong bytes, 7 network (retries spent), 8 no space, 9 part of a batch failed, 10 changed meanwhile, 130 and 143 interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """The `score` program; returns its exit code.

    As a process (`argv` None) it ends here: threads that are stuck when it was interrupted do not keep it, nor does Python's clearing up of
    thousands of modules, which takes 50 ms. Until the command begins it looks for no garbage: there is little, and looking takes 20 ms.
    """
    if argv is None:
        gc.disable()
    code = _run(list(sys.argv[1:] if argv is None else argv))
    if argv is None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # what it was to say is flushed already, and its failure told
                stream.flush()
        os._exit(code)
    return code


def root_help() -> str:
    return _HELP.format(commands="\n".join(f"  {name:<9} {command.summary}" for name, command in COMMANDS.items()))


def _run(argv: list[str]) -> int:
    if not COMMANDS.keys() & set(argv) and ({"--help", "-h"} & set(argv) or argv[-1:] == ["help"]):
        try:
            print(root_help(), flush=True)
        except BrokenPipeError:
            return _nobody_reads_on()
        return 0
    if not argv:
        print(root_help(), file=sys.stderr)
        return USAGE_CODE
    from score_core.cli.signals import Signals
    from score_core.transfer.stop import Stop

    stop = Stop()
    with Signals(stop) as signals, ExitStack() as stack:
        if "--silent" in argv:
            nowhere = stack.enter_context(open(os.devnull, "w"))  # noqa: PTH123
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        return _Run(argv, stop, signals).guarded()


def _nobody_reads_on() -> int:
    """Python flushes stdout once more at its end: into nothing, so that it does not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return OTHER_CODE


def _help_as_option(argv: list[str]) -> list[str]:
    """`help COMMAND`, behind any options, as `COMMAND --help`."""
    place = next((place for place, word in enumerate(argv) if word == "help" or word in COMMANDS), None)
    if place is None or argv[place] != "help":
        return argv
    words = [word for word in argv[place + 1 :] if not word.startswith("-")]
    if len(words) > 1 and words[0] != "config":
        raise _UsageError("`score help` explains one command at a time")
    return [*argv[:place], *words, "--help"] if words and words[0] in COMMANDS else [*argv[:place], *words]


class _Run:
    """One command line on its way to an exit code: the outermost edge, where every error becomes one sentence."""

    def __init__(self, argv: list[str], stop: Stop, signals: Signals) -> None:
        self._argv = argv
        self._stop = stop
        self._signals = signals
        self._as_json = "--json" in argv
        self._workflow_codes = "--workflow-exit-codes" in argv

    def guarded(self) -> int:
        from score_core.cli.output import listening_to_logs

        try:
            with listening_to_logs(debug="--debug" in self._argv):
                return self._show(self._result())
        except BrokenPipeError:
            return _nobody_reads_on()
        except OSError as error:  # of standard output itself: whatever else fails is a result by now
            from score_core.cli.output import say

            _nobody_reads_on()
            say(f"error: Cannot write to standard output: {os.strerror(error.errno or errno.EIO).lower()}")
            return NO_SPACE_CODE if error.errno == errno.ENOSPC else OTHER_CODE

    def _result(self) -> Result | None:
        from score_core.cli.output import Result, redacted_traceback, say
        from score_core.errors import ScoreError

        try:
            return self._call()
        except _UsageError as error:
            return Result(error=str(error), exit_code=USAGE_CODE)
        except ScoreError as error:
            if "--debug" in self._argv:
                say(redacted_traceback(error))
            return Result(error=str(error), exit_code=error.exit_code)
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001  # the edge: whatever it is, the user gets a sentence
            if "--debug" in self._argv:
                say(redacted_traceback(error))
            what = f"Unexpected failure ({type(error).__name__}); run it again with --debug and report what it prints"
            return Result(error=what, exit_code=OTHER_CODE)

    def _call(self) -> Result | None:
        from cyclopts import CycloptsError

        from score_core.cli.tree import run

        commands = {name: command.where for name, command in COMMANDS.items()}
        try:
            result: Result | None = run(commands, _help_as_option(self._argv), self._dispatch)
        except CycloptsError as error:
            raise _UsageError(self._usage(error)) from None
        return result

    def _dispatch(self, app: App, tokens: Sequence[str], options: GlobalOptions) -> Result | None:
        from score_core.cli.context import Context

        if not tokens:
            raise _UsageError("No command is given; `score --help` lists them")
        command, bound, injected = app.parse_args(tokens, exit_on_error=False, print_error=False)
        context = Context(options, stop=self._stop, signals=self._signals)
        given = dict.fromkeys((name for name in injected), context)
        if not gc.isenabled():
            gc.freeze()  # what is here by now stays
            gc.enable()
        result: Result | None = command(*bound.args, **bound.kwargs, **given)
        return result

    def _usage(self, error: Exception) -> str:
        """cyclopts' message as one line, without the values behind `=`: one of them may be a secret that was given as an option."""
        import difflib

        from cyclopts import UnknownCommandError, UnusedCliTokensError

        from score_core.errors import redact

        if any(word.startswith("--") and word.lower().replace("-", "").startswith(_TOKEN_OPTIONS) for word in self._argv):
            return (
                "A token is not given as an option, where all users of this machine can read it; set ACCESSTOKEN or SCORE_TOKEN_FILE, "
                "and replace this one"
            )
        known = next((token for token in self._argv if token in COMMANDS), None)
        if isinstance(error, UnknownCommandError) and known is None:
            wrong = str((error.unused_tokens or ["?"])[0])
            near = difflib.get_close_matches(wrong, COMMANDS, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            return redact(f"There is no command {wrong[:80]!r}{hint} See `score --help`")
        if isinstance(error, UnusedCliTokensError):
            return redact(f"Unexpected argument {(error.unused_tokens or ['?'])[0][:80]!r}. See `score {known or ''} --help`")
        text = " ".join(_without_values(str(error)).split()).replace(". Did you mean", "; did you mean")
        return f"{redact(text)} See `score {known + ' ' if known else ''}--help`"

    def _show(self, result: Result | None) -> int:
        from score_core.cli.output import show

        if result is None:
            return 0
        command = next((token for token in self._argv if token in COMMANDS), "")
        return show(result, command=command, as_json=self._as_json, workflow_codes=self._workflow_codes)


class _UsageError(Exception):
    pass


def _without_values(text: str) -> str:
    import re

    return re.sub(r"(--[A-Za-z][A-Za-z0-9-]*=)\S+", r"\1...", text)


if __name__ == "__main__":
    sys.exit(main())
