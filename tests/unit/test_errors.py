"""No secret and no control character gets through any error; every error says what it is to callers and to other processes."""

import pickle
import re
import time
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from score_core import errors
from score_core.errors import AccessDenied, IntegrityError, ManifestError, PartMismatch, ScoreError, TransientError, redact

SECRET = "hunter2hunter2"
# Where a secret may stand in what others' libraries and servers say. A literal list: one made of the patterns misses what they miss.
PLANTED = [
    f"https://store.example/b/data/x?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={SECRET}",
    f"HTTPConnectionPool(host='h', port=80): Max retries exceeded with url: /b/data/x?X-Amz-Signature={SECRET} (Caused by ...)",
    f"/data/x?Expires=1&Signature={SECRET}",
    f"/data/x?sv=2020&sig={SECRET}&se=2026",
    f"see <https://store.example/x?a={SECRET}>",
    f"HTTPS://STORE.EXAMPLE/X?A={SECRET}",
    f"https://user:{SECRET}@store.example/x",
    f"https://user:p@{SECRET}@store.example/x",
    f"https://store.example/x#access_token={SECRET}",
    f"Authorization: Bearer {SECRET}",
    f"authorization: basic {SECRET}",
    f"Bearer\t{SECRET}",
    f"AWS_SECRET_ACCESS_KEY={SECRET}",
    f"AWS_SESSION_TOKEN={SECRET}",
    f"SCORE_TOKEN={SECRET}",
    f"ACCESSTOKEN={SECRET}",
    f"accessToken = {SECRET}",
    f"'accessToken': '{SECRET}'",
    f'{{"access_token":"{SECRET}"}}',
    f"x-amz-security-token: {SECRET}",
    f"X-Amz-Credential={SECRET}",
    f"password: {SECRET}",
    f"secret_key={SECRET}",
    f"https://h/x?X-Amz-Sig\nnature={SECRET}",
    f"https://h/x?a=1\r\n&X-Amz-Signature={SECRET}",
    f"https://h/x?a\u200b={SECRET}",
    f"Bearer abcd\x00{SECRET}",
    f"Bearer abcd\u202e{SECRET}",
]
UGLY = "\x00\x07\x1b[31m\r\n2026-01-01 INFO all is well\x85\x9b\u200b\u200f\u202e\u2028\u2029\u2066\ufeff"
CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ScoreError)]


def build(kind: type[ScoreError], message: str) -> ScoreError:
    if issubclass(kind, IntegrityError):
        return kind(message, expected="a" * 32, actual="b" * 32)
    return kind(message)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("text", PLANTED)
def test_no_error_shows_a_secret(kind: type[ScoreError], text: str) -> None:
    shown = [*faces(build(kind, text)), *faces(build(kind, "x").at(text))]
    assert not [face for face in shown if SECRET in face]


def faces(error: ScoreError) -> list[str]:
    return [str(error), repr(error), repr(error.args), repr(vars(error))]


@pytest.mark.parametrize("kind", CLASSES)
def test_no_error_shows_control_characters(kind: type[ScoreError]) -> None:
    text = str(build(kind, f"name {UGLY}.bam").at(UGLY))
    assert text.isprintable()
    assert "\\n" in text


@given(st.text(), st.sampled_from(PLANTED), st.text())
def test_secret_is_hidden_in_any_surroundings(before: str, planted: str, after: str) -> None:
    assert SECRET not in redact(f"{before} {planted} {after}")


@given(st.text(alphabet=st.characters()))
def test_redacted_text_is_one_clean_line(text: str) -> None:
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", redact(text))


@given(st.one_of(st.text(), st.sampled_from(PLANTED)))
def test_redacting_again_changes_nothing(text: str) -> None:
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "Part 17 of object 3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11: expected MD5 d41d8cd98f00b204e9800998ecf8427e, got other",
        "https://store.example/b/data/x is not reached",
        "Cannot read /data/sample.bam: it does not exist",
        "the token is too long; is this file a token?",
    ],
)
def test_harmless_text_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "text", ["/" * 60_000, "a." * 30_000, "a://" * 15_000, "?" * 60_000, "/?" * 30_000, "x-amz-" * 10_000, "bearer " * 9_000]
)
def test_long_hostile_text_is_redacted_quickly(text: str) -> None:
    began = time.process_time()
    redact(text)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("kind", CLASSES)
def test_error_survives_pickling(kind: type[ScoreError]) -> None:
    error = build(kind, "something about part 3")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.exit_code, vars(copy)) == (kind, str(error), error.exit_code, vars(error))


def test_facts_survive_pickling() -> None:
    made: list[ScoreError] = [
        TransientError("busy", busy=True, retry_after_s=7.0),
        AccessDenied("no", status=403),
        ManifestError("bad", line=3, column=4),
        PartMismatch("part 3", expected="a" * 32, actual="b" * 32).at("here"),
        errors.Interrupted(signal_number=15),
    ]
    for error in made:
        copy = pickle.loads(pickle.dumps(error))
        assert (str(copy), vars(copy), copy.exit_code) == (str(error), vars(error), error.exit_code)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.ObjectNotFound, FileNotFoundError),
        (errors.AccessDenied, PermissionError),
        (errors.Conflict, FileExistsError),
        (errors.Unavailable, ConnectionError),
        (errors.LocalFileError, OSError),
        (errors.ConfigurationError, ValueError),
        (errors.ManifestError, ValueError),
        (errors.PlanError, ValueError),
    ],
)
def test_callers_who_know_only_python_catch_it(kind: type[ScoreError], builtin: type[Exception]) -> None:
    with pytest.raises(builtin, match="^what, why and what next$"):
        raise kind("what, why and what next")


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = set(re.findall(r"^ {4,}([A-Z]\w+)", errors.__doc__ or "", re.MULTILINE))
    assert drawn == {kind.__name__ for kind in CLASSES}


def test_exit_codes_are_the_documented_ones() -> None:
    codes: dict[str, int] = {kind.__name__: build(kind, "x").exit_code for kind in CLASSES}
    assert (codes["AuthenticationError"], codes["AccessDenied"]) == (3, 4)
    assert (codes["ObjectNotFound"], codes["IntegrityError"], codes["TransientError"], codes["NoSpaceError"]) == (5, 6, 7, 8)
    assert (codes["BatchError"], codes["ChangedError"], codes["Interrupted"]) == (9, 10, 130)
    assert errors.Interrupted(signal_number=15).exit_code == 143


def test_integrity_error_names_both_digests() -> None:
    error = PartMismatch("Part 3 arrived damaged", expected="a" * 32, actual="b" * 32)
    assert all(text in str(error) for text in ("Part 3", "a" * 32, "b" * 32))


Maker = Callable[[str], str]


def _shown(kind: type[ScoreError], text: str) -> str:
    return str(build(kind, text))


EVERYWHERE: list[Maker] = [redact, *(partial(_shown, kind) for kind in CLASSES)]


@pytest.mark.parametrize("make", EVERYWHERE)
def test_secret_split_by_control_characters_is_hidden(make: Maker) -> None:
    for control in "\x00\x1b\t\x85\u200b\u202e\u2066":
        shown = make(f"https://h/x?X-Amz-Signature=aaaa{control}{SECRET}")
        assert SECRET not in shown
