from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.pacs.remote import LimitExceeded, Meter
from medseg.pacs.settings import Limits


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


def test_one_instance_too_many_is_refused() -> None:
    meter = Meter(Limits(instances=3), "PEER")
    for _ in range(3):
        meter.count(10)
    with pytest.raises(LimitExceeded, match=r"limits\.instances of PEER"):
        meter.count(10)
    assert (meter.instances, meter.bytes) == (3, 30)


def test_one_byte_too_many_is_refused() -> None:
    meter = Meter(Limits(megabytes=1), "PEER")
    meter.count(2**20)
    with pytest.raises(LimitExceeded, match=r"limits\.megabytes of PEER"):
        meter.count(1)


@given(rate=st.floats(0.1, 1000), count=st.integers(2, 50), work=st.floats(0, 1))
def test_the_rate_is_kept_and_not_undercut_when_the_peer_is_slow(rate: float, count: int, work: float) -> None:
    time = Time()
    meter = Meter(Limits(instances_per_second=rate), "PEER", clock=time.clock, sleep=time.sleep)
    for _ in range(count):
        meter.count(1)
        passed = time.now
        time.now += work
    least = (count - 1) / rate
    assert passed - 100.0 == pytest.approx(max(least, (count - 1) * work), rel=1e-6, abs=1e-6)


def test_without_limits_nothing_is_held_up() -> None:
    time = Time()
    meter = Meter(Limits(), "PEER", clock=time.clock, sleep=time.sleep)
    for _ in range(1000):
        meter.count(2**30)
    assert time.now == 100.0
