"""What the extra ``cluster`` brings, or a message that says how to install it."""

from __future__ import annotations

from medseg.errors import MissingDependency

try:
    import dask
    import distributed
except ImportError as error:
    raise MissingDependency("dask.distributed", "cluster", "--cluster") from error

__all__ = ["dask", "distributed"]
