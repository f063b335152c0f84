"""Networks of bundles for other runtimes."""

from medseg.conversion.export import Exported, export
from medseg.conversion.export_pipeline import export_pipeline

__all__ = ["Exported", "export", "export_pipeline"]
