"""To and from a PACS: DICOM network and DICOMweb clients, and a node that listens. Needs the extra ``pacs``."""

from medseg.pacs.connect import open_remote, parse_node
from medseg.pacs.remote import PacsError, Remote, SendResult, StudyMatch
from medseg.pacs.settings import DicomNode, PacsSettings, WebNode, read_settings

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
