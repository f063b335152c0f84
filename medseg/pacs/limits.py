"""How much may pass between medseg and a peer: instances and bytes of one study, instances per second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields

from medseg.errors import UsageError
from medseg.pacs.failures import LimitExceeded


@dataclass(frozen=True)
class Limits:
    """Limits of one peer; None is no limit.

    Parameters
    ----------
    studies
        Studies that one ``medseg pacs run`` takes from the peer.
    instances
        Instances of one study, fetched, or sent in one go.
    megabytes
        Their size in MiB.
    instances_per_second
        Rate that is kept to on average from the first instance on.
    """

    studies: int | None = None
    instances: int | None = None
    megabytes: float | None = None
    instances_per_second: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
                raise UsageError(f"limits.{field.name} is {value!r}, expected a positive number")


class Meter:
    """Counts what passes in one transfer, and holds it to the limits.

    Parameters
    ----------
    limits
        What is allowed.
    peer
        Name of the peer, for messages.
    clock, sleep
        Time in seconds and how to wait; for tests.
    """

    def __init__(
        self,
        limits: Limits,
        peer: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._limits, self._peer = limits, peer
        self._clock, self._sleep = clock, sleep
        self._begin: float | None = None
        self.instances = 0
        self.bytes = 0

    def count(self, size: int) -> None:
        """Take note of an instance of ``size`` bytes before it passes; waits where the rate demands it.

        Raises
        ------
        LimitExceeded
            If the study becomes larger than is allowed.
        """
        self.check(self.instances + 1, self.bytes + size)
        if self._begin is None:
            self._begin = self._clock()
        rate = self._limits.instances_per_second
        if rate is not None:
            self._sleep(max(0.0, self._begin + self.instances / rate - self._clock()))
        self.instances += 1
        self.bytes += size

    def check(self, instances: int, size: int = 0) -> None:
        """Refuse a study of so many instances and bytes.

        Raises
        ------
        LimitExceeded
            If it is larger than is allowed.
        """
        most, megabytes = self._limits.instances, self._limits.megabytes
        if most is not None and instances > most:
            raise LimitExceeded(
                f"a study has more than the {most} instances that limits.instances of {self._peer} allows; raise it,"
                " or choose fewer series"
            )
        if megabytes is not None and size > megabytes * 2**20:
            raise LimitExceeded(
                f"a study has more than the {megabytes:g} MiB that limits.megabytes of {self._peer} allows; raise it,"
                " or choose fewer series"
            )
