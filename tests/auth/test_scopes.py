"""Scopes open what they say, letter by letter, and nothing else (B40)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from score_core.auth.base import Principal, ScopeRules

RULES = ScopeRules()


def caller(*scopes):
    return Principal("ada", frozenset(scopes))


def allowed(who, study):
    return RULES.may_download(who, study), RULES.may_upload(who, study)


@pytest.mark.parametrize(
    ("scope", "study", "expected"),
    [
        ("score.READ", "AB", (True, False)),
        ("score.WRITE", "AB", (False, True)),  # writing does not imply reading
        ("PROGRAMDATA-AB.READ", "AB", (True, False)),
        ("PROGRAMDATA-AB.WRITE", "AB", (False, True)),
        ("PROGRAMDATA-a.b.READ.READ", "a.b.READ", (True, False)),
    ],
)
def test_scope_opens_what_it_says(scope, study, expected):
    assert allowed(caller(scope), study) == expected


@pytest.mark.parametrize(
    "scope",
    [
        "score.READ ",
        " score.READ",
        "score.read",
        "SCORE.READ",
        "score.READ\n",
        "score.",
        "score.*",
        "*",
        "*.*",
        "score",
        "READ",
        "",
        "PROGRAMDATA-*.READ",
        "PROGRAMDATA-.READ",
        "PROGRAMDATA-%.READ",
        "PROGRAMDATA-A.READ",
        "PROGRAMDATA-ABC.READ",
        "PROGRAMDATA-ab.READ",
        "programdata-AB.READ",
        "PROGRAMDATA-AB.READ ",
        "PROGRAMDATA-AB .READ",
        "PROGRAMDATA-AB.READ.READ",
        "xPROGRAMDATA-AB.READ",
        "AB.READ",
        "PROGRAMDATA-AB.READ,score.WRITE",
        "score.READ score.WRITE",
        "PROGRAMDATA-\u0391B.READ",
    ],  # a Greek Alpha
)
def test_near_misses_open_nothing(scope):
    assert allowed(caller(scope), "AB") == (False, False)


def test_nobody_and_no_study_get_nothing():
    assert allowed(None, "AB") == (False, False)
    assert allowed(caller(), "AB") == (False, False)
    assert allowed(caller("PROGRAMDATA-.READ", "PROGRAMDATA-.WRITE"), "") == (False, False)


@given(st.sets(st.text()), st.text(min_size=1))
def test_only_exact_scopes_open(scopes, study):
    system, own = {"score.READ"} & scopes, {f"PROGRAMDATA-{study}.READ"} & scopes
    assert RULES.may_download(caller(*scopes), study) == bool(system or own)


@given(st.text(min_size=1), st.text(min_size=1))
def test_scope_of_one_study_opens_another_only_if_they_are_one(granted, wanted):
    assert RULES.may_download(caller(f"PROGRAMDATA-{granted}.READ"), wanted) == (granted == wanted)


@given(st.text(min_size=1), st.text(min_size=1))
def test_other_prefixes_are_put_together_literally(study, other):
    rules = ScopeRules(download_prefix="score.", download_suffix=".READ")
    assert rules.may_download(caller(f"score.{study}.READ"), study)
    assert not rules.may_download(caller(f"PROGRAMDATA-{study}.READ"), other)
