"""One job, in this process: what it accepts, what it leaves behind when it fails or is stopped, and what it tells."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from snakemake.iocontainers import Namedlist

from score_core.checksum import md5_hex
from score_core.cli.output import Result
from score_core.errors import LocalFileError
from score_core.metadata.base import Analysis
from score_core.model import TransferReport
from score_core.testing.faults import Answer, Stall, moves_part
from score_core.workflow import steps
from score_core.workflow.job import Step, run, write_whole
from tests.workflows.snakemake.conftest import PART_BYTES, ROOT, STUDY, TOKEN, Site

DATA = ROOT / "tests" / "data"
BAM = (DATA / "htsnexus_test_NA12878.bam").read_bytes()
BAI = (DATA / "htsnexus_test_NA12878.bam.bai").read_bytes()
BIG = bytes(range(256)) * (PART_BYTES * 20 // 256) + b"and a bit"
REGION = "11:4,900,000-5,000,000"


def names(given: Mapping[str, Any] | Sequence[Any]) -> Namedlist:
    """Inputs, outputs or params as Snakemake hands them over; what has no name is under ''."""
    made = Namedlist()
    for name, value in given.items() if isinstance(given, Mapping) else [("", given)]:
        values = value if isinstance(value, list | tuple) else [value]
        start = len(made)
        made.extend(map(str, values) if name == "" else values)
        if name:
            made._set_name(name, start, end=None if values is not value else len(made))
    return made


@dataclass
class Script:
    """The `snakemake` object of one job."""

    input: Any = field(default_factory=Namedlist)
    output: Any = field(default_factory=Namedlist)
    params: Any = field(default_factory=Namedlist)
    log: Any = field(default_factory=Namedlist)
    threads: int = 2


@dataclass
class Ended:
    """How a job ended: its exit code, what stderr and its log say."""

    code: int
    err: str
    log: str

    @property
    def sentence(self) -> str:
        """The one line that both must hold after a failure."""
        assert "Traceback" not in self.err + self.log
        (line,) = self.err.splitlines()
        assert line.startswith("error: ")
        assert self.log.splitlines()[-1] == line
        return line


Do = Callable[..., Ended]


@pytest.fixture
def do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Do:
    """Runs one job in a folder of its own, with the embedded repository unless the environment says otherwise."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def one(step: Step, output: Any = (), *, input: Any = (), threads: int = 2, log: bool = True, **params: Any) -> Ended:  # noqa: A002
        logs = [work / "logs" / "job.log"] if log else []
        script = Script(names(input), names(output), _params(params), names(logs), threads)
        capsys.readouterr()
        code = 0
        try:
            run(step, script)
        except SystemExit as end:
            code = int(str(end.code))
        return Ended(code, capsys.readouterr().err, logs[0].read_text() if log and logs[0].exists() else "")

    return one


def _params(given: Mapping[str, Any]) -> Namedlist:
    made = Namedlist()
    for name, value in given.items():
        made.append(value)
        made._add_name(name)
    return made


@pytest.fixture
def served(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The server, in the environment."""
    for name, value in site.environment().items():
        monkeypatch.setenv(name, value)
    return site


def stored(do: Do, files: Mapping[str, bytes], study: str = "S") -> list[str]:
    """The object ids of these files, published in the embedded repository, in their order."""
    for name, data in files.items():
        Path(name).write_bytes(data)
    made = {"manifest": "m.txt", "receipt": "r.json"}
    assert do(steps.REGISTER, made, input=list(files), study_id=study).code == 0
    assert do(steps.UPLOAD, ["u.json"], input={"manifest": "m.txt"}).code == 0
    assert do(steps.PUBLISH, ["p.json"], input={"analysis_id": "r.json"}, study_id=study).code == 0
    ids = {file["file_name"]: file["object_id"] for file in json.loads(Path("r.json").read_text())["files"]}
    for name in (*files, *made.values(), "u.json", "p.json"):
        Path(name).unlink()
    return [ids[name] for name in files]


def left() -> list[str]:
    """All files of the job's folder but its log."""
    return sorted(str(path) for path in Path().rglob("*") if path.is_file() and path.name != "job.log")


# Params


@pytest.mark.parametrize("name", ["token", "access_token", "accesstoken", "API_TOKEN", "password"])
def test_token_is_refused_as_a_param(do: Do, name: str) -> None:
    ended = do(steps.DOWNLOAD, ["x"], object_id="a", **{name: "s3cr3t-s3cr3t"})
    assert ended.code == 2
    assert "SCORE_TOKEN_FILE" in ended.sentence
    assert "s3cr3t" not in ended.err + ended.log


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"object-id": "a"}, "did you mean 'object_id'?"),
        ({"colour": "red"}, "it takes analysis_id, attempts"),
        ({"object_id": {"a": 1}}, "must be one text"),
        ({"object_id": "a", "debug": "perhaps"}, "debug must be True or False"),
        ({"object_id": "not-an-id"}, "is not an object id"),
        ({"object_id": "a", "attempts": "many"}, "attempts must be a number of tries, got 'many' (param attempts)"),
        ({"object_id": "a", "url": "ftp://x"}, "(param url)"),
        ({"object_id": "a-b-c-d-e", "layout": "heap"}, "layout must be one of filename, bundle, id"),
        ({"object_id": "a-b-c-d-e", "analysis_id": "A"}, "download needs one of"),
        ({}, "download needs one of"),
        ({"analysis_id": "A"}, "Nothing knows of studies"),
        ({"object_id": "a", "profile": "nobody"}, "There is no profile 'nobody'"),
    ],
)
def test_wrong_params_are_one_sentence(do: Do, params: dict[str, Any], says: str) -> None:
    stored_before = left()
    ended = do(steps.DOWNLOAD, ["x.bam"], **params)
    assert ended.code == 2
    assert says in ended.sentence
    assert left() == stored_before


def test_params_without_names_are_refused(do: Do, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(steps.PUBLISH, Script(output=names(["x"]), params=Namedlist(["S"])))
    assert end.value.code == 2
    assert "need names" in capsys.readouterr().err


def test_params_and_threads_win_over_the_environment(do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def look(job: Any) -> Result:
        seen.update(workers=job.settings.workers, attempts=job.settings.attempts, url=job.settings.url)
        return Result()

    monkeypatch.setenv("SCORE_ATTEMPTS", "9")
    monkeypatch.setenv("SCORE_WORKERS", "9")
    monkeypatch.setenv("SCORE_URL", "http://127.0.0.1:9")
    step = Step("look", "files", frozenset(), look)
    assert do(step, ["x"], threads=5, attempts=2, url="http://127.0.0.1:7").code == 0
    assert seen == {"workers": 5, "attempts": 2, "url": "http://127.0.0.1:7"}
    do(step, ["x"])
    assert (seen["attempts"], seen["url"]) == (9, "http://127.0.0.1:9")


# Files


def test_outputs_follow_the_order_of_ids_and_indexes_are_found(do: Do) -> None:
    one, index, two = stored(do, {"a.bam": BAM, "a.bam.bai": BAI, "b.bam": b"two"})
    assert do(steps.DOWNLOAD, ["y.bam", "x.bam", "x.bam.bai"], object_id=[two, one]).code == 0
    assert {name: Path(name).read_bytes() for name in left()} == {"x.bam": BAM, "x.bam.bai": BAI, "y.bam": b"two"}
    assert do(steps.DOWNLOAD, {"": ["deep/er/z.bam"], "index": "deep/er/z.bai"}, object_id=one).code == 0
    assert Path("deep/er/z.bai").read_bytes() == BAI
    assert do(steps.DOWNLOAD, ["index.only"], object_id=index).code == 0
    assert Path("index.only").read_bytes() == BAI


def test_outputs_that_do_not_fit_are_told(do: Do) -> None:
    one, two = stored(do, {"a.bam": BAM, "b.bam": b"two"})
    assert "There are 2 object ids for 3 outputs" in do(steps.DOWNLOAD, ["x", "y", "z"], object_id=[one, two]).sentence
    assert "No index .bai is registered beside b.bam" in do(steps.DOWNLOAD, ["x.bam", "x.bam.bai"], object_id=two).sentence
    assert "is the index of no other output" in do(steps.DOWNLOAD, ["x.bam", "y.bam.bai"], object_id=two).sentence
    assert "needs an output" in do(steps.DOWNLOAD, object_id=two).sentence
    assert left() == []


def test_files_of_a_list_go_to_outputs_by_name_or_to_one_folder(do: Do) -> None:
    stored(do, {"a.bam": BAM, "a.bam.bai": BAI, "b.txt": b"two"})
    analysis_id = json.loads(_receipt(do, {"a.bam": BAM, "a.bam.bai": BAI, "b.txt": b"two"}))["analysis_id"]
    wish = {"study_id": "S", "analysis_id": analysis_id}
    assert do(steps.MANIFEST, ["m.tsv"], **wish).code == 0
    assert do(steps.DOWNLOAD, ["in/b.txt", "a.bam"], **wish).code == 0
    assert do(steps.DOWNLOAD, ["all"], input={"manifest": "m.tsv"}).code == 0
    assert do(steps.DOWNLOAD, ["by-analysis"], input={"manifest": "m.tsv"}, layout="bundle").code == 0
    assert "has no file called c.txt" in do(steps.DOWNLOAD, ["b.txt", "c.txt"], **wish).sentence
    bundle = f"by-analysis/{analysis_id}"
    everything = [f"{folder}/{name}" for folder in ("all", bundle) for name in ("a.bam", "a.bam.bai", "b.txt")]
    assert left() == sorted([*everything, "a.bam", "in/b.txt", "m.tsv"])


def _receipt(do: Do, files: Mapping[str, bytes]) -> str:
    """What registering these files again says."""
    for name, data in files.items():
        Path(name).write_bytes(data)
    assert do(steps.REGISTER, {"receipt": "again.json"}, input=list(files), study_id="S").code == 0
    text = Path("again.json").read_text()
    for name in (*files, "again.json"):
        Path(name).unlink()
    return text


def test_receipt_is_the_document_of_the_command_line(do: Do) -> None:
    (one,) = stored(do, {"a.txt": b"one"})
    assert do(steps.DOWNLOAD, {"": ["x.txt"], "receipt": "deep/receipt.json"}, object_id=one).code == 0
    receipt = json.loads(Path("deep/receipt.json").read_text())
    assert list(receipt) == ["command", "files", "totals", "error", "exit_code"]
    assert set(TransferReport.__slots__) <= set(receipt["files"][0])
    assert (receipt["files"][0]["path"], receipt["files"][0]["md5"], receipt["error"]) == ("x.txt", md5_hex(b"one"), None)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "holds no analysis id"),
        ("{}", "holds no analysis id"),
        ("{", "is not JSON"),
        ("a\nb", "holds no analysis id"),
        (None, "does not exist"),
    ],
)
def test_analysis_id_comes_from_a_file(do: Do, content: str | None, says: str) -> None:
    if content is not None:
        Path("id").write_text(content)
    ended = do(steps.PUBLISH, ["p.json"], input={"analysis_id": "id"}, study_id="S")
    assert ended.code == 2
    assert says in ended.sentence


def test_upload_takes_listed_files_where_the_job_has_them(do: Do) -> None:
    Path("a.txt").write_bytes(b"one")
    assert do(steps.REGISTER, ["m.txt"], input=["a.txt"], study_id="S").code == 0
    Path("moved").mkdir()
    Path("a.txt").rename("moved/a.txt")
    assert "does not exist" in do(steps.UPLOAD, ["u.json"], input={"manifest": "m.txt"}).err
    Path("b.txt").write_bytes(b"one")
    wrong = do(steps.UPLOAD, ["u.json"], input={"manifest": "m.txt", "": ["b.txt"]})
    assert "lists a.txt, which is none of the rule's inputs" in wrong.sentence
    assert not Path("u.json").exists()
    assert do(steps.UPLOAD, ["u.json"], input={"manifest": "m.txt", "": ["moved/a.txt"]}).code == 0


def test_upload_needs_a_promise_of_the_bytes(do: Do) -> None:
    Path("a.txt").write_bytes(b"one")
    wish = {"object_id": "0-0-0-0-1"}
    assert "md5='compute'" in do(steps.UPLOAD, ["u.json"], input=["a.txt"], **wish).sentence
    ended = do(steps.UPLOAD, ["u.json"], input=["a.txt"], md5=md5_hex(b"two"), **wish)
    assert (ended.code, md5_hex(b"two") in ended.sentence) == (6, True)
    assert not Path("u.json").exists()
    assert do(steps.UPLOAD, ["u.json"], input=["a.txt"], md5="compute", **wish).code == 0
    assert "There are 1 input files, 2 object ids" in do(steps.UPLOAD, ["v.json"], input=["a.txt"], object_id=["a", "b"]).sentence


def test_nothing_is_registered_of_files_that_cannot_be_read(do: Do) -> None:
    Path("a.txt").write_bytes(b"one")
    ended = do(steps.REGISTER, ["m.txt"], input=["a.txt", "gone.txt"], study_id="S")
    assert ended.code == 2
    assert "gone.txt" in ended.sentence
    Path("b").mkdir()
    Path("b/a.txt").write_bytes(b"two")
    assert "Two inputs have one name" in do(steps.REGISTER, ["m.txt"], input=["a.txt", "b/a.txt"], study_id="S").sentence
    assert "needs the param study_id" in do(steps.REGISTER, ["m.txt"], input=["a.txt"]).sentence
    assert "needs an output" in do(steps.REGISTER, input=["a.txt"], study_id="S").sentence
    assert not Path("m.txt").exists()


def test_submit_says_what_is_wrong_with_a_payload(do: Do) -> None:
    Path("p.json").write_text(json.dumps({"analysisType": {"name": "x"}, "files": []}))
    assert "does not say studyId" in do(steps.SUBMIT, ["id"], input=["p.json"]).sentence
    assert do(steps.SUBMIT, ["id"], input=["p.json"], study_id="S").code == 2
    Path("p.json").write_text("[]")
    assert "is not a JSON object" in do(steps.SUBMIT, ["id"], input=["p.json"]).sentence
    assert left() == ["p.json"]


def test_slice_is_made_of_a_file_as_its_name_says(do: Do) -> None:
    data = str(DATA / "htsnexus_test_NA12878.bam")
    for name, magic in (("a.bam", b"\x1f\x8b"), ("a.sam", b"@HD"), ("a.cram", b"CRAM")):
        assert do(steps.VIEW, [name], input=[data], header_only=True).code == 0
        assert Path(name).read_bytes().startswith(magic)
    assert "must end with the format" in do(steps.VIEW, ["a.txt"], input=[data], regions=REGION).sentence
    assert "cannot be" in do(steps.VIEW, {"slice": "b.bam", "index": "b.bam.csi"}, input=[data], regions=REGION).sentence
    assert "needs the param regions" in do(steps.VIEW, ["b.bam"], input=[data]).sentence
    assert "max_bytes must be a number of bytes" in do(steps.VIEW, ["b.bam"], input=[data], regions=REGION, max_bytes="some").sentence
    missing = do(steps.VIEW, {"slice": "b.bam", "index": "b.bam.bai"}, input=[data], regions="chrX:1-2")
    assert (missing.code, "chrX" in missing.sentence) == (2, True)
    assert left() == ["a.bam", "a.cram", "a.sam"]


# Secrets


def test_address_is_for_its_owner_only(do: Do, served: Site) -> None:
    record = served.add({"a.txt": b"one"}).files[0]
    ended = do(steps.URL, {"url": "u.txt", "receipt": "u.json"}, object_id=record.object_id)
    assert ended.code == 0
    address = Path("u.txt").read_text().strip()
    assert stat.S_IMODE(Path("u.txt").stat().st_mode) == 0o600
    assert address.startswith("http://127.0.0.1:")
    query = address.partition("?")[2]
    assert query
    assert query not in ended.err + ended.log + Path("u.json").read_text()
    assert json.loads(Path("u.json").read_text())["expires_at"] > time.time()


def test_address_into_a_folder_is_refused(do: Do) -> None:
    assert "score serve" in do(steps.URL, ["u.txt"], object_id="0-0-0-0-1").sentence
    assert left() == []


def test_missing_token_is_told_in_one_sentence(do: Do, served: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    record = served.add({"a.txt": b"one"}).files[0]
    monkeypatch.delenv("ACCESSTOKEN")
    ended = do(steps.DOWNLOAD, ["x.txt"], object_id=record.object_id)
    assert ended.code == 4  # without a name one may read what is open, and this is not
    assert "no token is set (ACCESSTOKEN or SCORE_TOKEN_FILE)" in ended.sentence
    Path("b.txt").write_bytes(b"two")
    ended = do(steps.REGISTER, ["m.txt"], input=["b.txt"], study_id=STUDY)
    assert (ended.code, "no token is set" in ended.sentence) == (3, True)
    assert left() == ["b.txt"]
    Path("token").write_text(TOKEN)
    Path("token").chmod(0o600)
    assert do(steps.DOWNLOAD, ["x.txt"], object_id=record.object_id, token_file="token").code == 0


# Failure


def test_folder_appears_complete_or_not_at_all(do: Do, served: Site) -> None:
    analysis = served.add({"a.bin": BIG, "b.txt": b"b"}, analysis_id="a9a8d5f2-4e0a-11ef-9a52-0242ac120002")
    wish = {"study_id": STUDY, "analysis_id": analysis.analysis_id, "attempts": 1}
    assert served.data is not None
    served.data.inject(Answer(500), when=lambda seen: moves_part(seen) and _last(seen, analysis))
    ended = do(steps.DOWNLOAD, ["all"], **wish)
    assert ended.code in {7, 9}
    assert "error: 1 of 2 files failed" in ended.err
    assert not Path("all").exists()
    served.forget()
    Path(".all.score-part/stale.txt").write_bytes(b"of another wish")
    assert do(steps.DOWNLOAD, ["all"], **wish).code == 0
    assert left() == ["all/a.bin", "all/b.txt"]
    assert Path("all/a.bin").read_bytes() == BIG
    assert sum(seen.sent for seen in served.gets()) < len(BIG) / 2


def _last(seen: Any, analysis: Analysis) -> bool:
    """Whether a request is for bytes near the end of the big file."""
    return bool(seen.offset >= len(BIG) - 2 * PART_BYTES)


def test_unexpected_failure_is_a_sentence_and_a_traceback_only_in_debug(do: Do) -> None:
    def fails(_job: Any) -> Result:
        raise RuntimeError("never shown: token=abcdefgh")

    step = Step("fails", "files", frozenset(), fails)
    ended = do(step, ["x"])
    assert (ended.code, "RuntimeError" in ended.sentence) == (1, True)
    again = do(step, ["x"], debug=True)
    assert again.code == 1
    assert "in fails" in again.log
    assert "Traceback" not in again.err
    assert "abcdefgh" not in again.log + again.err


def test_job_without_a_log_talks_on_stderr(do: Do) -> None:
    (one,) = stored(do, {"a.txt": b"one"})
    ended = do(steps.DOWNLOAD, ["x.txt"], object_id=one, log=False)
    assert "x.txt: downloaded, 3 bytes" in ended.err
    quiet = do(steps.DOWNLOAD, ["y.txt"], object_id=one)
    assert (quiet.err, "y.txt: downloaded, 3 bytes" in quiet.log) == ("", True)
    assert do(steps.DOWNLOAD, ["z.txt"], object_id="nothing", log=False).err.count("\n") == 1


def test_log_that_cannot_be_written_is_told(do: Do) -> None:
    Path("logs").write_text("a file")
    ended = do(steps.DOWNLOAD, ["x.txt"], object_id="0-0-0-0-1")
    assert ended.code == 2
    assert "Cannot write the log" in ended.err


def test_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "receipt.json"
    write_whole(target, "one\n")
    target.chmod(0o600)
    with pytest.raises(UnicodeEncodeError):
        write_whole(target, "two \udc80")
    assert target.read_text() == "one\n"
    assert [path.name for path in target.parent.iterdir()] == ["receipt.json"]
    with pytest.raises(LocalFileError, match="Cannot write"):
        write_whole(target / "below", "three")


@pytest.mark.kill
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_job_is_resumed(do: Do, served: Site, number: signal.Signals) -> None:
    record = served.add({"big.bin": BIG}).files[0]
    program = (
        "from types import SimpleNamespace as S; from snakemake.iocontainers import Namedlist as N\n"
        "from score_core.workflow.job import run; from score_core.workflow.steps import DOWNLOAD\n"
        f"run(DOWNLOAD, S(input=N(), output=N(['x.bin']), params=N(fromdict={{'object_id': '{record.object_id}'}}), "
        "log=N(['logs/job.log']), threads=1))"
    )
    assert served.data is not None
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    served.data.at_byte(10 * PART_BYTES, lambda: process.send_signal(number))
    served.data.inject(Stall(), when=lambda seen: moves_part(seen) and seen.offset >= 12 * PART_BYTES)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert err == "error: Interrupted; run the same command again to resume\n"
    assert not Path("x.bin").exists()
    served.forget()
    assert do(steps.DOWNLOAD, ["x.bin"], object_id=record.object_id).code == 0
    assert Path("x.bin").read_bytes() == BIG
    assert sum(seen.sent for seen in served.gets()) <= len(BIG) - 8 * PART_BYTES
    assert left() == ["x.bin"]
