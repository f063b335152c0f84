"""To and from a PACS: DICOM network and DICOMweb clients, and a node that listens. Needs the extra ``pacs``."""

from medseg.pacs.failures import PacsError
from medseg.pacs.nodes import DicomNode, PacsSettings, WebNode, parse_node, read_settings
from medseg.pacs.remote import Remote, SendResult, StudyMatch, open_remote

__all__ = [
    "DicomNode",
    "PacsError",
    "PacsSettings",
    "Remote",
    "SendResult",
    "StudyMatch",
    "WebNode",
    "open_remote",
    "parse_node",
    "read_settings",
]
