"""Networks of bundles for other runtimes."""

from medseg.conversion.export import Exported, export

__all__ = ["Exported", "export"]
