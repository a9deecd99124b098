"""Every option and rule of the Java client's command line (protocol sections 14 and 15.1) that is one of ours, too."""

from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
from cyclopts import App

from score_core.cli.app import COMMANDS
from score_core.cli.config import show
from score_core.cli.context import GlobalOptions
from tests.cli.conftest import OBJECT_ID, Score, object_id, upload_some
from tests.cli.test_transfer import download_manifest, download_row

DOWNLOAD = ("download", "--object-id", OBJECT_ID, "--output-dir", "out")
UPLOAD = ("upload", "--object-id", OBJECT_ID, "--file", "FILE", "--md5", "compute")
ANALYSIS = ("--analysis-id", "a", "--study-id", "S")
TRUE = ["true", "TRUE", "yes", "On", "1"]
FALSE = ["false", "False", "NO", "off", "0"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--index", value) for value in [*TRUE, *FALSE]),
        *((option, value) for option in ("--validate", "--verify-connection") for value in ("YES", "0")),
    ],
)
def test_booleans_have_a_value(score: Score, some_file: Path, option: str, value: str) -> None:
    upload_some(score, some_file)
    assert score(*DOWNLOAD, option, value).code == 0
    assert score(*DOWNLOAD, f"{option}={value}", "--force").code == 0


@pytest.mark.parametrize("value", ["On", "NO"])
def test_upload_takes_verify_connection(score: Score, some_file: Path, value: str) -> None:
    argv = [str(some_file) if word == "FILE" else word for word in UPLOAD]
    assert score(*argv, "--verify-connection", value).code == 0


@pytest.mark.parametrize(("value", "proof"), [("true", "whole"), ("on", "whole"), ("false", "off"), ("0", "off"), ("PARTS", "parts")])
def test_validate_means_what_it_says(score: Score, some_file: Path, monkeypatch: pytest.MonkeyPatch, value: str, proof: str) -> None:
    upload_some(score, some_file)
    ran = score(*DOWNLOAD, "--validate", value, "--json")
    sealed = {"whole": "parts"}.get(proof, proof)  # our own uploads: parts prove the whole
    assert ran.document["files"][0]["validation"] in {proof, sealed}


@pytest.mark.parametrize("layout", ["filename", "FileName", "id", "ID"])
def test_choices_are_taken_in_any_case(score: Score, some_file: Path, layout: str) -> None:
    upload_some(score, some_file)
    assert score(*DOWNLOAD, "--output-layout", layout).code == 0
    assert [path.name for path in Path("out").iterdir()] == [OBJECT_ID if layout.lower() == "id" else "some.bin"]


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        ((*DOWNLOAD, "--index", "maybe"), 2, "--index must be true or false, got 'maybe'"),
        ((*DOWNLOAD, "--index"), 2, "--index"),
        ((*DOWNLOAD, "--verify-connection", "2"), 2, "--verify-connection must be true or false"),
        ((*UPLOAD, "--verify-connection", ""), 2, "--verify-connection must be true or false"),
        ((*DOWNLOAD, "--manifest", "m.tsv"), 2, "exactly one of"),
        ((*DOWNLOAD, *ANALYSIS), 2, "exactly one of"),
        (("download", "--manifest", "m.tsv", *ANALYSIS, "--output-dir", "out"), 2, "exactly one of"),
        ((*DOWNLOAD, "--study-id", "S"), 2, "exactly one of"),
        (("download", "--output-dir", "out", "--analysis-id", "a"), 2, "go together"),
        (("download", "--output-dir", "out", "--study-id", "S"), 2, "go together"),
        (("download", "--output-dir", "out", "--program-id", "S"), 2, "go together"),
        (("download", "--output-dir", "out", "--object-id", ","), 2, "at least one id"),
        (("download", "--output-dir", "out", *ANALYSIS), 2, "set METADATA_URL"),
        (("download", "--output-dir", "out", "--manifest", "gnos.xml"), 2, "XML manifest of GNOS"),
        (("upload", "--manifest", "gnos.xml"), 2, "XML manifest of GNOS"),
        (("download", "--output-dir", "out", "--manifest", OBJECT_ID), 2, "set PORTAL_URL"),
        (("manifest", "--manifest", OBJECT_ID), 2, "set PORTAL_URL"),
        (("manifest",), 2, "either --manifest"),
        (("manifest", "--manifest", "m.tsv", *ANALYSIS), 2, "either --manifest"),
        (("manifest", "--analysis-id", "a"), 2, "go together"),
        (("manifest", *ANALYSIS), 2, "set METADATA_URL"),
        (("publish", "--study", "S", "--analysis-id", "a"), 2, "set METADATA_URL"),
        (("unpublish", "--study", "S", "--analysis-id", "a"), 2, "set METADATA_URL"),
        (("publish", "--study", "S"), 2, "--analysis-id"),
        (("register", "--study", "S"), 2, "Name the files"),
        (("register", "FILE"), 2, "--study"),
        (("register", "FILE", "--study", "S", "--access", "secret"), 2, "--access must be one of open, controlled"),
        (("register", "/nope", "--study", "S"), 2, "nothing is registered"),
        (("register", "FILE", "--study", "S", "--output", "FILE"), 2, "no upload manifest, so it is not replaced"),
        (("help", "nope"), 2, "There is no command 'nope'"),
        (("help", "list", "abort"), 2, "one command at a time"),
        (("list", "--token", "hunter2"), 2, "set ACCESSTOKEN or SCORE_TOKEN_FILE"),
        (("--accessToken=hunter2", "list"), 2, "set ACCESSTOKEN or SCORE_TOKEN_FILE"),
        (("list", "--access-token", "hunter2"), 2, "set ACCESSTOKEN or SCORE_TOKEN_FILE"),
    ],
)
def test_rule_is_one_sentence(score: Score, some_file: Path, argv: tuple[str, ...], code: int, says: str) -> None:
    ran = score(*(str(some_file) if word == "FILE" else word for word in argv))
    assert ran.code == code, ran.err
    assert says in ran.sentence()
    assert (ran.out, list(Path().iterdir())) == ("", [])
    assert "hunter2" not in ran.err


def test_help_of_one_command_wherever_it_stands(score: Score) -> None:
    told = score("download", "--help")
    for argv in (["help", "download"], ["--profile", "x", "help", "download"], ["--quiet", "download", "--help"]):
        assert score(*argv) == told
    for argv in (["help"], ["--help"], ["-h"], ["--quiet", "--help"], ["--profile", "x", "help"]):
        assert "Exit codes" in score(*argv).out


def test_help_of_config_goes_deeper(score: Score) -> None:
    assert "--origin" in score("help", "config", "show").out


def test_global_options_before_and_after(score: Score) -> None:
    for argv in (["--quiet", "--json", "list"], ["list", "--quiet", "--json"], ["--json", "list", "--progress=NONE"]):
        assert score(*argv).document["objects"] == []


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_no_option_of_a_command_is_named_like_a_global_one(name: str) -> None:
    """Global options are taken off the command line without a look at the command."""
    module, _, function = COMMANDS[name].where.partition(":")
    found = getattr(import_module(module), function)
    app = App()
    app.default(show if isinstance(found, App) else found)
    names = {option for argument in app.assemble_argument_collection() for option in argument.names}
    assert names.isdisjoint(f"--{field.name.replace('_', '-')}" for field in fields(GlobalOptions))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--store"], "--store"),
        (["list", "--store"], "--store"),
        (["--nonsense", "list"], "--nonsense"),
        (["list", "--nonsense=s3cr3t"], "--nonsense"),
        (["lst", "--json"], "There is no command 'lst'; did you mean list?"),
    ],
)
def test_wrong_options_are_named(score: Score, argv: list[str], says: str) -> None:
    ran = score(*argv)
    assert ran.code == 2
    assert says in ran.out + ran.err
    assert "s3cr3t" not in ran.out + ran.err


def test_ids_in_upper_case_are_the_same(score: Score, some_file: Path) -> None:
    upload_some(score, some_file)
    assert score("download", "--object-id", OBJECT_ID.upper(), "--output-dir", "out", "--output-layout", "id").code == 0
    assert Path("out", OBJECT_ID).exists()


def test_manifest_is_printed_verbatim(score: Score) -> None:
    data = b"a\tb\r\n\r\n no manifest at all"
    Path("m.tsv").write_bytes(data)
    ran = score("manifest", "--manifest", "m.tsv")
    assert (ran.code, ran.err, ran.out.encode()) == (0, "", data)
    assert score("manifest", "--manifest", "m.tsv", "--json").document["manifest"].encode() == data


def test_file_of_the_name_comes_before_the_portal(score: Score, some_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload_some(score, some_file)
    monkeypatch.setenv("PORTAL_URL", "http://127.0.0.1:9")
    assert score("manifest", "--manifest", object_id(7)).code == 7  # nobody is there
    download_manifest(Path(object_id(7)), download_row(OBJECT_ID, "x"))
    assert score("download", "--manifest", object_id(7), "--output-dir", "out").code == 0


def test_info_names_places_and_no_token(score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_URL", "https://score.example.org")
    monkeypatch.setenv("METADATA_URL", "https://song.example.org/")
    monkeypatch.setenv("ACCESSTOKEN", "hunter2")
    lines = score("info").out.splitlines()
    assert {"objects: https://score.example.org", "metadata: https://song.example.org", "profile: default"} <= set(lines)
    assert "token: set (environment ACCESSTOKEN)" in lines
    assert "hunter2" not in score("info", "--verbose").out
