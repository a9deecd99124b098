"""A flag that reaches everything below it and nothing above."""

import signal
import threading

import pytest

from score_core.errors import Interrupted
from score_core.transfer.stop import Stop


def test_check_passes_until_set() -> None:
    stop = Stop()
    stop.check()
    stop.set(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        stop.check()
    assert caught.value.exit_code == 143


def test_setting_reaches_grandchildren() -> None:
    stop = Stop()
    grandchild = (child := stop.child()).child()
    stop.set(15)
    assert child.is_set()
    assert grandchild.is_set()
    assert grandchild.signal_number == 15


def test_child_stops_alone() -> None:
    stop = Stop()
    child, sibling = stop.child(), stop.child()
    child.set()
    assert child.is_set()
    assert not stop.is_set()
    assert not sibling.is_set()


def test_child_of_a_set_flag_is_set() -> None:
    stop = Stop()
    stop.set(2)
    assert stop.child().is_set()


def test_wait_ends_when_set() -> None:
    stop = Stop()
    threading.Timer(0.01, stop.set).start()
    assert stop.wait(30)
    assert not Stop().wait(0)


def test_children_do_not_pile_up() -> None:
    stop = Stop()
    for _ in range(1000):
        stop.child()
    assert len(stop._children) < 10


def test_set_races_with_new_children() -> None:
    stop, go = Stop(), threading.Event()
    made: list[Stop] = []

    def make() -> None:
        go.wait()
        made.extend(stop.child() for _ in range(2000))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    go.set()
    for _ in range(50):
        stop.set(2)
    for thread in threads:
        thread.join()
    assert all(child.is_set() for child in made)
