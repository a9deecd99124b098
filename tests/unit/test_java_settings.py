"""The Java client's variables and `application.properties` (protocol section 11.2)."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from score_core.errors import ConfigurationError
from score_core.java_settings import IGNORED, KEYS, parse_properties, variable
from score_core.settings import Settings, load

Read = Callable[..., Settings]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """`load` in an environment without any setting but the given."""

    def run(environ: dict[str, str] | None = None, **where: Any) -> Settings:
        for name in list(os.environ):
            if name.startswith("SCORE_") or name in map(variable, KEYS):
                monkeypatch.delenv(name)
        for name, value in {"SCORE_CONFIG": os.devnull, **(environ or {})}.items():
            monkeypatch.setenv(name, value)
        return load(**where)

    return run


def properties(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "application.properties"
    path.write_bytes(text.encode("latin-1"))
    path.chmod(0o600)
    return path


MEANINGS = [
    ("accessToken", "abc", "token", "**********"),
    ("client.accessToken", "abc", "token", "**********"),
    ("storage.url", "https://s/", "url", "https://s"),
    ("metadata.url", "https://m", "metadata_url", "https://m"),
    ("portal.url", "https://p", "portal_url", "https://p"),
    ("storage.retryNumber", "3", "attempts", "3"),
    ("storage.retryNumber", "-1", "attempts", "1000"),
    ("client.connectTimeoutSeconds", "5", "connect_timeout_s", "5.0"),
    ("client.readTimeoutSeconds", "7", "read_timeout_s", "7.0"),
    ("transport.parallel", "12", "workers", "12"),
    ("client.quiet", "true", "progress", "none"),
    ("client.quiet", "false", "progress", "auto"),
    ("client.silent", "TRUE", "progress", "none"),
    ("client.ansi", "false", "progress", "log"),
    ("client.ansi", "true", "progress", "auto"),
]


@pytest.mark.parametrize(("key", "text", "name", "shown"), MEANINGS)
def test_key_means_a_setting_as_variable_and_in_a_file(read: Read, tmp_path: Path, key: str, text: str, name: str, shown: str) -> None:
    for settings in (read({variable(key): text}), read(config=properties(tmp_path, f"{key}={text}"))):
        assert {origin.name: origin.value for origin in settings.origins()}[name] == shown


@pytest.mark.parametrize("key", IGNORED)
def test_key_without_a_meaning_is_ignored_aloud(read: Read, tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str) -> None:
    with caplog.at_level(logging.INFO):
        settings = read({variable(key): "1"}, config=properties(tmp_path, f"{key} = 1"))
    assert settings.sources.keys() <= {"config"}
    assert f"{variable(key)} is ignored: " in caplog.text
    assert f"{key} in {tmp_path}/application.properties is ignored: " in caplog.text


def test_documentation_has_every_key() -> None:
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    assert [key for key in KEYS if f"`{key}`" not in text] == []


def test_unknown_keys_are_named_and_harmless(read: Read, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        read(config=properties(tmp_path, "logging.level.root=s3cr3t\nspring.main.banner-mode=off"))
    assert "logging.level.root, spring.main.banner-mode" in caplog.text
    assert "s3cr3t" not in caplog.text


@pytest.mark.parametrize("no", ["false", "FALSE", " no"])
def test_certificate_checks_stay(read: Read, tmp_path: Path, no: str) -> None:
    with pytest.raises(ConfigurationError, match=r"environment METADATA_SSL_ENABLED.*ca_file"):
        read({"METADATA_SSL_ENABLED": no})
    with pytest.raises(ConfigurationError, match=r"metadata\.ssl\.enabled in .*application\.properties.*ca_file"):
        read(config=properties(tmp_path, f"metadata.ssl.enabled={no}"))
    assert read({"METADATA_SSL_ENABLED": "true"}).metadata_url is None


def test_origin_names_key_and_file(read: Read, tmp_path: Path) -> None:
    path = properties(tmp_path, "storage.url=https://s\nstorage.retryNumber=4\ntransport.parallel=3\naccessToken=t0k3n\n")
    settings = read({"TRANSPORT_PARALLEL": "9"}, config=path)
    assert settings.sources["url"] == f"storage.url in {path}"
    assert settings.sources["attempts"] == f"storage.retryNumber in {path}"
    assert settings.sources["token"] == f"accessToken in {path}"
    assert settings.sources["workers"] == "environment TRANSPORT_PARALLEL"


def test_more_exact_token_wins(read: Read, tmp_path: Path) -> None:
    path = properties(tmp_path, "accessToken=weak\nclient.accessToken=strong")
    token = read(config=path).token
    assert token is not None
    assert token.get_secret_value() == "strong"


def test_wrong_value_names_key_and_file(read: Read, tmp_path: Path) -> None:
    path = properties(tmp_path, "transport.parallel=lots")
    with pytest.raises(ConfigurationError) as caught:
        read(config=path)
    assert str(caught.value) == f"workers must be a number of parts, got 'lots' (transport.parallel in {path})"


def test_properties_have_no_profiles(read: Read, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no profile 'aws' in .*\.properties file has none"):
        read(config=properties(tmp_path, ""), profile="aws")


def test_config_variable_may_name_properties(read: Read, tmp_path: Path) -> None:
    assert read({"SCORE_CONFIG": str(properties(tmp_path, "storage.url=https://s"))}).url == "https://s"


def test_others_who_can_read_the_token_are_warned_of(read: Read, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = properties(tmp_path, "accessToken=s3cr3t")
    path.chmod(0o644)
    read(config=path)
    assert "chmod 600" in caplog.text
    assert "s3cr3t" not in caplog.text


@pytest.mark.parametrize(
    ("value", "environ", "token"),
    [
        ("${accessToken:}", {}, None),
        ("${accessToken:}", {"accessToken": "x"}, "x"),
        ("${MY_TOKEN}", {"MY_TOKEN": "y"}, "y"),
        ("${MY_TOKEN:fallback}", {}, "fallback"),
        ("${one.two:${three:deep}}", {}, "deep"),
        ("${one.two}", {"ONE_TWO": "relaxed"}, "relaxed"),
        ("a${other}c", {}, "abc"),
    ],
)
def test_placeholders_are_filled(read: Read, tmp_path: Path, value: str, environ: dict[str, str], token: str | None) -> None:
    found = read(environ, config=properties(tmp_path, f"other=b\nclient.accessToken={value}")).token
    assert (found and found.get_secret_value()) == token


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("storage.url=${NOWHERE_SET}", "storage.url in FILE refers to ${NOWHERE_SET}, which is not set"),
        ("storage.url=${storage.url}", "storage.url in FILE refers to itself"),
        ("a=1\nstorage.url=\\\n  \\u12", "In line 2 of FILE \\\\u is not followed by four hex digits"),
    ],
)
def test_bad_properties_are_one_sentence(read: Read, tmp_path: Path, text: str, says: str) -> None:
    path = properties(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        read(config=path)
    assert says.replace("FILE", str(path)) in str(caught.value).replace("\\u", "\\\\u")


# Examples of the documentation of java.util.Properties.load
@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("Truth = Beauty\n Truth:Beauty\nTruth                  :Beauty", {"Truth": "Beauty"}),
        ("fruits    apple, banana, pear, \\\n          cantaloupe, watermelon, \\\r\n   kiwi", {"fruits": "apple, banana, pear, cantaloupe, watermelon, kiwi"}),  # noqa: E501
        ("cheeses", {"cheeses": ""}),
        ("\\:\\= = x", {":=": "x"}),
        ("# a = 1\n  ! b = 2\n\f\nc = # no comment \\\n# nor this", {"c": "# no comment # nor this"}),
        ("path=c:\\\\temp\\tx\\z", {"path": "c:\\temp\txz"}),
        ("a==b", {"a": "=b"}),
        ("a=1\ra=2", {"a": "2"}),
        ("key=\\u00e9\\ud83d\\ude00", {"key": "\u00e9\U0001f600"}),
        ("odd=\\\\\\\nnext", {"odd": "\\next"}),
        ("even=\\\\\nnext=1", {"even": "\\", "next": "1"}),
        ("last=a\\", {"last": "a"}),
        ("", {}),
    ],
)  # fmt: skip
def test_properties_are_read_as_java_does(text: str, values: dict[str, str]) -> None:
    assert parse_properties(text, "p") == values


def written(text: str, *, key: bool) -> str:
    """As java.util.Properties.store writes it."""
    out = []
    for place, letter in enumerate(text):
        if letter in "\\:=#!" or (letter == " " and (key or place == 0)):
            out.append("\\" + letter)
        elif letter in "\t\n\r\f":
            out.append("\\" + {"\t": "t", "\n": "n", "\r": "r", "\f": "f"}[letter])
        elif " " <= letter <= "~":
            out.append(letter)
        else:
            out += [f"\\u{unit:04X}" for unit in memoryview(letter.encode("utf-16-le")).cast("H")]
    return "".join(out)


TEXTS = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("\\:=#! \t\n\r\fu0")))


@given(st.dictionaries(TEXTS.filter(bool), TEXTS), st.sampled_from(["=", ":", " = ", "\t", " : "]), st.sampled_from(["\n", "\r\n", "\r"]))
def test_written_properties_come_back(values: dict[str, str], between: str, end: str) -> None:
    text = end.join(["# written", *(written(key, key=True) + between + written(value, key=False) for key, value in values.items())])
    assert parse_properties(text, "p") == values
