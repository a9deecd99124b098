"""Answers are remembered for a moment, by the digest of the token, and asked for once."""

import gc
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from score_core.auth.base import Authenticator, Principal, refusal
from score_core.auth.cache import Cached
from score_core.errors import AuthenticationError, Unavailable


class Counting:
    """Knows tokens that begin with "good", refuses others; counts. `fails` is raised instead, while it is set."""

    def __init__(self):
        self.asked = []
        self.fails = None
        self.expires_at = None
        self.is_closed = False
        self.gate = threading.Event()
        self.gate.set()

    def authenticate(self, token):
        self.asked.append(token)
        self.gate.wait(10)
        if self.fails:
            raise self.fails
        if not token.startswith("good"):
            raise refusal("a test")
        return Principal(token, frozenset({"a"}), self.expires_at)

    def close(self):
        self.is_closed = True


@pytest.fixture
def inner():
    return Counting()


@pytest.fixture
def cached(inner, clock):
    return Cached(inner, 30, 4, clock=clock, timer=clock)


def ask(cached, token):
    try:
        return cached.authenticate(token).name
    except AuthenticationError:
        return "refused"
    except Unavailable:
        return "unavailable"


def test_good_answer_lives_for_its_time(cached, inner, clock):
    for seconds in (0, 29):
        clock.now += seconds
        assert ask(cached, "good") == "good"
    assert inner.asked == ["good"]
    clock.now += 1
    assert ask(cached, "good") == "good"
    assert inner.asked == ["good"] * 2


def test_good_answer_ends_when_the_token_does(cached, inner, clock):
    inner.expires_at = clock.now + 10
    assert ask(cached, "good") == "good"
    clock.now += 9.9
    assert ask(cached, "good") == "good"
    clock.now += 0.1
    inner.fails = refusal("expired")
    assert ask(cached, "good") == "refused"


def test_wall_clock_set_back_prolongs_nothing(inner, clock):
    timer = type(clock)()
    cached = Cached(inner, 30, clock=clock, timer=timer)
    cached.authenticate("good")
    clock.now -= 86_400
    timer.now += 30
    cached.authenticate("good")
    assert len(inner.asked) == 2


def test_bad_answer_lives_for_three_seconds(cached, inner, clock):
    assert [ask(cached, "bad") for _ in range(5)] == ["refused"] * 5
    clock.now += 3
    assert ask(cached, "bad") == "refused"
    assert len(inner.asked) == 2


def test_outage_is_not_remembered(cached, inner):
    inner.fails = Unavailable("down")
    assert [ask(cached, "good"), ask(cached, "good")] == ["unavailable"] * 2
    inner.fails = None
    assert ask(cached, "good") == "good"


def test_defect_is_not_remembered(cached, inner):
    inner.fails = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        cached.authenticate("good")
    inner.fails = None
    assert ask(cached, "good") == "good"


def test_flood_of_bad_tokens_pushes_no_good_one_out(cached, inner):
    cached.authenticate("good")
    for number in range(100):
        ask(cached, f"bad {number}")
    cached.authenticate("good")
    assert inner.asked.count("good") == 1


def test_least_recently_used_goes_first(cached, inner):
    for name in ("1", "2", "3", "1", "4", "5", "1"):
        cached.authenticate(f"good {name}")
    assert inner.asked == ["good 1", "good 2", "good 3", "good 4", "good 5"]


def test_token_itself_is_not_kept(cached):
    token = "good-" + "x" * 40
    caller = cached.authenticate(token)
    with pytest.raises(AuthenticationError):
        cached.authenticate("bad-" + token)
    gc.collect()
    kept = [value for name, value in vars(cached).items() if name != "_authenticator"]
    assert token not in repr([vars(cached), [list(cache) for cache in (cached._good, cached._bad)]]).replace(repr(caller), "")
    assert cached._asking == {}
    assert kept


@pytest.mark.parametrize("token", ["", "\ud800", "\0", "x" * 100_000, "ü"])
def test_any_text_is_taken(cached, token):
    assert ask(cached, token) == "refused"


def test_it_is_an_authenticator_and_closes_what_it_asks(cached, inner):
    assert isinstance(cached, Authenticator)
    cached.close()
    assert inner.is_closed


# Threads


def together(cached, tokens):
    """What each gets when all are asked for at once."""
    got = [None] * len(tokens)

    def run(place):
        got[place] = ask(cached, tokens[place])

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(tokens))]
    for thread in threads:
        thread.start()
    return got, threads


def waiting(cached):
    """How many threads wait for somebody else's answer."""
    return sum(len(answer._condition._waiters) for answer in list(cached._asking.values()))


@pytest.mark.parametrize(
    ("token", "fails", "expected"),
    [("good", None, "good"), ("bad", None, "refused"), ("good", Unavailable("down"), "unavailable")],
)
def test_one_asks_for_all(cached, inner, token, fails, expected):
    inner.gate.clear()
    inner.fails = fails
    got, threads = together(cached, [token] * 8)
    while waiting(cached) < 7:
        time.sleep(0.001)
    inner.gate.set()
    for thread in threads:
        thread.join(10)
    assert got == [expected] * 8
    assert inner.asked == [token]


def test_slow_token_holds_up_no_other(cached, inner):
    cached.authenticate("good quick")
    inner.gate.clear()
    _, threads = together(cached, ["good slow"])
    assert ask(cached, "good quick") == "good quick"
    inner.gate.set()
    threads[0].join(10)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(["good 1", "good 2", "bad 1", "good 3", "bad 2"]), min_size=1, max_size=40))
def test_every_thread_gets_its_own_answer(tokens):
    cached = Cached(Counting(), 30, 2)
    got, threads = together(cached, tokens)
    for thread in threads:
        thread.join(10)
    assert got == [token if token.startswith("good") else "refused" for token in tokens]
