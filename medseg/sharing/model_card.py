"""A model card in the Hugging Face format, written from what a bundle's metadata says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.bundle import Bundle
from medseg.bundle.find import LICENCE_FILE, licence_in
from medseg.bundle.text_limits import read_text_file
from medseg.errors import BundleError
from medseg.files import shown


def model_card(bundle: Bundle) -> str:
    """Model card (Markdown with YAML front matter) of a bundle; the same bundle gives the same text."""
    data, metrics = bundle.metadata, _numbers(bundle.metadata.get("eval_metrics", {}))
    path = bundle.path / LICENCE_FILE
    licence = licence_in(_licence(path) if path.is_file() else "") or "other"
    image = next(iter(data["network_data_format"]["inputs"].values()))
    tags = dict.fromkeys(["monai", "medical", "segmentation", "3d", str(image.get("modality", "")).lower()])
    figures = "".join(f"    - type: {_quoted(name)}\n      value: {value}\n" for name, value in metrics.items())
    source = _quoted(data.get("data_source", "not stated"))
    index = (
        f"model-index:\n- name: {_quoted(bundle.name)}\n  results:\n  - task:\n      type: image-segmentation\n"
        f"    dataset:\n      name: {source}\n      type: {source}\n    metrics:\n{figures}"
    )
    sections = {
        "Intended use": _line(data.get("intended_use") or ""),
        "Data": _line(data.get("data_source") or ""),
        "Authors": _line(data.get("authors") or ""),
        "Structures": _table("value", "structure", bundle.labels),
        "Results": _table("figure", "value", metrics) if metrics else "",
        "Trained on": f"```json\n{json.dumps(bundle.training_range)}\n```" if bundle.training_range else "",
        "Use": f"```\nmedseg infer {bundle.name} INPUT -o OUTPUT\n```\n\nWithout medseg: `python -m monai.bundle run"
        " --config_file configs/inference.json` in this folder.",
        "References": "\n".join(f"- {_line(reference)}" for reference in data.get("references") or ()),
    }
    return (
        f"---\nlicense: {licence}\nlibrary_name: monai\npipeline_tag: image-segmentation\ntags:\n"
        + "".join(f"- {_quoted(tag)}\n" for tag in tags if tag)
        + (f"{index}---\n" if metrics else "---\n")
        + f"# {_line(data.get('name', bundle.name))}\n\n{_line(data.get('description', ''))}\n\n"
        + f"Version {_line(bundle.version)}. {_line(data.get('copyright', ''))}\n"
        + "".join(f"\n## {title}\n\n{text}\n" for title, text in sections.items() if text)
        + "\n## Changes\n\n"
        + "".join(f"- {_line(version)}: {_line(change)}\n" for version, change in data.get("changelog", {}).items())
    )


def _licence(path: Path) -> str:
    """The text of a licence, which is a few pages long."""
    try:
        return read_text_file(path)
    except ValueError as error:
        raise BundleError(f"{path} cannot be a licence: {error}") from error


def _line(text: Any) -> str:
    """A text of the metadata within a line of Markdown: it opens no section, no element of HTML and no cell."""
    return " ".join(shown(" ".join(str(text).split())).replace("|", "\\|").replace("<", "&lt;").split())


def _quoted(text: Any) -> str:
    """A JSON string is a YAML string too, whatever stands in it."""
    return json.dumps(shown(" ".join(str(text).split())), ensure_ascii=False)


def _table(first: str, second: str, rows: Mapping[Any, Any]) -> str:
    cells = [f"| {_line(key)} | {_line(value)} |" for key, value in rows.items()]
    return "\n".join([f"| {first} | {second} |", "| --- | --- |", *cells])


def _numbers(metrics: Any, prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    if isinstance(metrics, Mapping):
        for name, value in metrics.items():
            if isinstance(value, Mapping):
                found.update(_numbers(value, f"{prefix}{name} "))
            elif isinstance(value, int | float) and not isinstance(value, bool):
                found[f"{prefix}{name}"] = value
    return found
