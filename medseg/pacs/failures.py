"""What can go wrong between medseg and a peer."""

from __future__ import annotations

from medseg.errors import CaseFailed


class PacsError(CaseFailed):
    """A peer could not be reached, refused, or answered with a failure."""


class LimitExceeded(PacsError):
    """A study is larger than the settings of its peer allow; trying again finds the same."""
