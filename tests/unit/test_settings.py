import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from score_core.errors import ConfigurationError
from score_core.java_settings import KEYS, variable
from score_core.settings import Settings, load

Read = Callable[..., Settings]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """`load` in an environment of its own."""

    def run(flags: dict[str, str | None] | None = None, *, environ: dict[str, str], **where: Any) -> Settings:
        for name in list(os.environ):
            if name.startswith("SCORE_") or name in map(variable, KEYS):
                monkeypatch.delenv(name)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        return load(flags, **where)

    return run


def config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    return config(tmp_path, "workers = 2\nattempts = 2\nstall_s = 2\n[profiles.lab]\nworkers = 3\nattempts = 3\n")


def test_defaults_need_nothing(read: Read, tmp_path: Path) -> None:
    settings = read(environ={"SCORE_CONFIG": str(config(tmp_path, ""))})
    assert (settings.url, settings.store, settings.token, settings.validation) == (None, None, None, "auto")
    assert (settings.transfer.workers, settings.transfer.part_size_bytes) == (8, 20 << 20)


def test_stronger_source_wins(read: Read, everything: Path) -> None:
    settings = read(config=everything, profile="lab", environ={"SCORE_WORKERS": "4"})
    transfer = settings.transfer
    assert (transfer.workers, transfer.attempts, transfer.stall_s, transfer.files_at_once) == (4, 3, 2.0, 4)


def test_origins_say_who_won(read: Read, everything: Path) -> None:
    settings = read({"store": "file:///x"}, config=everything, profile="lab", environ={"SCORE_WORKERS": "4"})
    found = {origin.name: (origin.value, origin.source) for origin in settings.origins()}
    assert found["store"] == ("file:///x", "option --store")
    assert found["workers"] == ("4", "environment SCORE_WORKERS")
    assert found["attempts"] == ("3", f"profile lab in {everything}")
    assert found["stall_s"] == ("2.0", str(everything))
    assert found["validation"] == ("auto", "default")


def test_profile_comes_from_java_variable_too(read: Read, everything: Path) -> None:
    assert read(config=everything, environ={"STORAGE_PROFILE": "lab"}).transfer.workers == 3


def test_empty_variable_counts_as_not_set(read: Read, everything: Path) -> None:
    assert read(config=everything, environ={"SCORE_WORKERS": "", "ACCESSTOKEN": ""}).transfer.workers == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("wrkers = 1", "Unknown key 'wrkers'"),
        ("worker = 1", "Unknown key 'worker' (FILE); did you mean 'workers'?"),
        ("[profiles.lab]\nstoer = 'x'", "Unknown key 'stoer' (profile lab in FILE); did you mean 'store'?"),
        ("trans = 3", "Unknown key 'trans'"),
        ("profiles = 3", "'profiles' in FILE must hold one table per profile"),
        ("workers = 'many'", "workers must be a number of parts, got 'many' (FILE)"),
        ("workers = true", "workers must be a number of parts, got 'True'"),
        ("workers = 0", "workers must be at least 1 parts, got '0' (FILE)"),
        ("workers = 2.5", "workers must be a number of parts, got '2.5'"),
        ("workers = 257", "workers must be at most 256 parts, got '257'"),
        ("stall_s = nan", "stall_s must be a number of seconds, got 'nan'"),
        ("stall_s = inf", "stall_s must be a number of seconds, got 'inf'"),
        ("connect_timeout_s = 0", "connect_timeout_s must be at least 0.1 seconds"),
        ("data_dir = 3", "data_dir must be a path, got '3'"),
        ("url = 3", "url must be an address such as"),
        ("token = 3", "token must be a text (FILE)"),
        ("stall_s = 'x'", "stall_s must be a number of seconds"),
        ("part_size_bytes = 1000", "part_size_bytes must be at least 1024 bytes, got '1000'"),
        ("ca_file = '/nope'", "ca_file must be the path of a file that exists"),
        ("validation = 'maybe'", "validation must be 'auto', 'parts', 'whole', 'both' or 'off', got 'maybe' (FILE)"),
        ("progress = 1", "progress must be 'auto', 'bar', 'log' or 'none'"),
        ("allow_plain_http = 'maybe'", "allow_plain_http must be true or false, got 'maybe'"),
        ("data_hosts = ['https://x']", "data_hosts must be names of hosts such as"),
        ("data_hosts = 3", "data_hosts must be"),
        ("metadata_url = 'song'", "metadata_url must be an address such as"),
        ("url = 'ftp://x'", "url must be an address such as"),
        ("url = 'https://x:99999'", "url must be an address such as"),
        ("store = ''", "store must be an address"),
        ("store = 's3://a'\nstore = 's3://b'", "not valid TOML"),
        ("[profiles.a]\n[profiles.a]\n", "not valid TOML"),
    ],
)
def test_bad_file_is_named_with_its_key(read: Read, tmp_path: Path, text: str, says: str) -> None:
    path = config(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        read(config=path, environ={})
    assert says.replace("FILE", str(path)) in str(caught.value)


def test_bad_variable_is_named(read: Read, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"got 'many' \(environment SCORE_WORKERS\)"):
        read(environ={"SCORE_CONFIG": str(config(tmp_path, "")), "SCORE_WORKERS": "many"})


def test_unknown_profile_lists_the_known(read: Read, everything: Path) -> None:
    with pytest.raises(ConfigurationError, match="no profile 'lba'.*profiles there: lab"):
        read(config=everything, profile="lba", environ={})


def test_numbers_are_taken_as_text_too(read: Read, tmp_path: Path) -> None:
    transfer = read(config=config(tmp_path, "attempts = ' 3 '\nfiles_at_once = 2.0"), environ={"SCORE_STALL_S": "1e1"}).transfer
    assert (transfer.attempts, transfer.files_at_once, transfer.stall_s) == (3, 2, 10.0)
    assert (type(transfer.attempts), type(transfer.files_at_once), type(transfer.stall_s)) == (int, int, float)


def test_variables_are_taken_in_any_case(read: Read, everything: Path) -> None:
    settings = read(config=everything, environ={"score_workers": "5"})
    assert (settings.workers, settings.sources["workers"]) == (5, "environment SCORE_WORKERS")


def test_unknown_flag_is_an_error_of_the_program(read: Read, everything: Path) -> None:
    with pytest.raises(ValueError, match="stoer"):
        read({"stoer": "file:///x"}, config=everything, environ={})


def test_config_that_is_no_file(read: Read, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        read(config=tmp_path, environ={})
    path = tmp_path / "latin"
    path.write_bytes(b"store = '\xe9'")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        read(config=path, environ={})


def test_java_validations_are_understood(read: Read, tmp_path: Path) -> None:
    assert read(config=config(tmp_path, "validation = true"), environ={}).validation == "auto"
    assert read(config=config(tmp_path, "validation = 'FALSE'"), environ={}).validation == "off"


@pytest.mark.parametrize(
    ("flags", "environ", "url", "store"),
    [
        ({}, {"STORAGE_URL": "https://s", "SCORE_STORE": "file:///e"}, "https://s", None),
        ({"store": "file:///f"}, {"STORAGE_URL": "https://s"}, None, "file:///f"),
        ({"url": "https://f/"}, {"SCORE_STORE": "file:///e"}, "https://f", None),
        ({}, {"SCORE_STORE": "file:///e"}, None, "file:///e"),
        ({}, {"STORAGE_URL": "https://a", "SCORE_URL": "https://b"}, "https://a", None),
    ],
)
def test_one_place_for_objects(
    read: Read, tmp_path: Path, flags: dict[str, str | None], environ: dict[str, str], url: str | None, store: str | None
) -> None:
    settings = read(flags, config=config(tmp_path, "url = 'https://file'"), environ=environ)
    assert (settings.url, settings.store) == (url, store)


TOKEN_FILE = {"SCORE_TOKEN_FILE": "/run/t"}


@pytest.mark.parametrize(
    ("text", "environ", "kept"),
    [
        ("token = 'a'", TOKEN_FILE, "token_file"),
        ("token_file = '/a'", {"ACCESSTOKEN": "a"}, "token"),
        ("", {**TOKEN_FILE, "ACCESSTOKEN": "a"}, "token"),
        ("token = 'a'\ntoken_file = '/a'", {}, "token"),
        ("token = 'a'\n[profiles.default]\ntoken_file = '/a'", {}, "token_file"),
    ],
)
def test_one_token(read: Read, tmp_path: Path, text: str, environ: dict[str, str], kept: str) -> None:
    settings = read(config=config(tmp_path, text), environ=environ)
    assert [name for name in ("token", "token_file") if getattr(settings, name) is not None] == [kept]
    assert [name for name in ("token", "token_file") if name in settings.sources] == [kept]


def test_hosts_are_a_list_or_have_commas(read: Read, tmp_path: Path) -> None:
    listed = config(tmp_path, "data_hosts = ['S3.example.org', '10.0.0.1']")
    assert read(config=listed, environ={}).data_hosts == ("s3.example.org", "10.0.0.1")
    settings = read(config=listed, environ={"SCORE_DATA_HOSTS": "a.org, b.org,"})
    assert {origin.name: origin.value for origin in settings.origins()}["data_hosts"] == "a.org, b.org"


def test_token_never_shows(read: Read) -> None:
    settings = read(environ={"SCORE_CONFIG": "/dev/null", "ACCESSTOKEN": "s3cr3t"})
    assert settings.token is not None
    assert settings.token.get_secret_value() == "s3cr3t"
    assert "s3cr3t" not in repr(settings) + str(settings.origins()) + str(settings.token)


@pytest.mark.parametrize("token", ["two words", "líne", "x" * 70_000])
def test_impossible_token_is_refused_unseen(read: Read, token: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(environ={"SCORE_CONFIG": "/dev/null", "ACCESSTOKEN": token})
    assert token[:3] not in str(caught.value).replace("with", "")


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, True), (0o604, True)])
def test_readable_secret_is_warned_of(read: Read, tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warned: bool) -> None:
    path = config(tmp_path, "[profiles.lab]\ntoken = 's3cr3t'")
    path.chmod(mode)
    with caplog.at_level(logging.WARNING):
        read(config=path, environ={})
    assert ("chmod 600" in caplog.text) is warned
    assert "s3cr3t" not in caplog.text
