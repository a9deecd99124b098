"""One shared token: who has it may do everything; how it comes to be."""

import logging
import stat
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from score_core.auth.base import Authenticator
from score_core.auth.embedded import EmbeddedToken, make_token_file
from score_core.errors import AuthenticationError, ConfigurationError

TOKEN = "correct-horse-battery-staple"


def test_owner_of_token_may_do_everything():
    token = EmbeddedToken(TOKEN)
    caller = token.authenticate(TOKEN)
    assert (caller.name, caller.scopes, caller.expires_at) == ("embedded", frozenset({"score.READ", "score.WRITE"}), None)
    assert isinstance(token, Authenticator)


def test_scopes_can_be_narrowed():
    assert EmbeddedToken(TOKEN, scopes=["score.READ"]).authenticate(TOKEN).scopes == {"score.READ"}


@given(st.text())
def test_any_other_text_is_refused(text):
    with pytest.raises(AuthenticationError) as caught:
        EmbeddedToken(TOKEN).authenticate(text)
    assert len(text) < 8 or text not in str(caught.value)


@pytest.mark.parametrize("text", [TOKEN[:-1], TOKEN + "x", TOKEN + "\n", TOKEN.upper(), "", " " + TOKEN])
def test_near_misses_are_refused(text):
    with pytest.raises(AuthenticationError):
        EmbeddedToken(TOKEN).authenticate(text)


@pytest.mark.parametrize(
    "text", ["", "short", "with a blank in it all", "line\nbreak-in-a-long-token", "ümläut-ümläut-ümläut", "x" * 20_000]
)
def test_unusable_token_is_refused_at_start(text):
    with pytest.raises(ConfigurationError) as caught:
        EmbeddedToken(text)
    assert not text or text not in str(caught.value)


# The file


def test_missing_file_is_made_for_its_owner_only(tmp_path):
    path = tmp_path / "deep" / "token"
    token = make_token_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(token) == 43  # 32 bytes in base64
    assert [entry.name for entry in path.parent.iterdir()] == ["token"]
    assert EmbeddedToken(path).authenticate(token).name == "embedded"


def test_existing_file_is_kept(tmp_path):
    path = tmp_path / "token"
    assert make_token_file(path) == make_token_file(path)


def _made(path: str) -> str:
    return make_token_file(Path(path))


def test_processes_that_start_at_once_agree(tmp_path):
    with get_context("spawn").Pool(4) as pool:
        assert len(set(pool.map(_made, [str(tmp_path / "token")] * 16, chunksize=1))) == 1


def test_threads_that_start_at_once_agree(tmp_path):
    paths = [tmp_path / str(number) for number in range(50) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(make_token_file, paths))
    assert len(set(zip(paths, tokens, strict=True))) == 50


def test_file_that_others_read_is_warned_about(tmp_path, caplog):
    path = tmp_path / "token"
    token = make_token_file(path)
    path.chmod(0o640)
    with caplog.at_level(logging.DEBUG):
        EmbeddedToken(path)
    assert "chmod 600" in caplog.text
    assert token not in caplog.text


@pytest.mark.parametrize("content", [b"", b"\n", b"two tokens\n", b"\xff" * 40, b"a" * 20_000, b"a" * 30 + b"\0"])
def test_file_without_token_is_an_error(tmp_path, content):
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=str(path)):
        make_token_file(path)


def test_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be made"):
        make_token_file(tmp_path / "file" / "token")


def test_missing_file_is_an_error_when_only_read(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        EmbeddedToken(tmp_path / "none")


def test_token_is_in_no_repr():
    token = EmbeddedToken(TOKEN)
    assert TOKEN not in f"{token!r} {token} {vars(token)}"
