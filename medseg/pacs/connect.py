"""From what a person types to a client of that node."""

from __future__ import annotations

from medseg.errors import UsageError
from medseg.pacs.remote import Remote
from medseg.pacs.settings import DicomNode, PacsSettings, WebNode


def parse_node(text: str, settings: PacsSettings | None = None) -> DicomNode | WebNode:
    """Turn what a person types into a node: a name from the settings, ``AET@host:port`` or an ``http(s)`` URL."""
    if settings and text in settings.nodes:
        return settings.nodes[text]
    if text.startswith(("http://", "https://")):
        return WebNode(text.rstrip("/"))
    title, _, address = text.partition("@")
    host, _, port = address.rpartition(":")
    if not title or not host or not port.isdigit():
        known = f" or one of {sorted(settings.nodes)}" if settings and settings.nodes else ""
        raise UsageError(f"found {text!r}, expected AET@host:port, a DICOMweb URL{known}")
    return DicomNode(title, host, int(port))


def open_remote(node: DicomNode | WebNode) -> Remote:
    """Client for a node; imports pynetdicom or dicomweb-client, whichever it needs."""
    if isinstance(node, WebNode):
        from medseg.pacs.dicomweb import WebRemote

        return WebRemote(node)
    from medseg.pacs.dicom_network import NetworkRemote

    return NetworkRemote(node)
