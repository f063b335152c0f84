"""A model card in the Hugging Face format, written from what a bundle's metadata says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medseg.bundle import Bundle

_LICENCES = {
    "apache license": "apache-2.0",
    "mit license": "mit",
    "bsd 3-clause": "bsd-3-clause",
    "creative commons attribution-sharealike 4.0": "cc-by-sa-4.0",
    "creative commons attribution-noncommercial 4.0": "cc-by-nc-4.0",
    "creative commons attribution 4.0": "cc-by-4.0",
}


def model_card(bundle: Bundle) -> str:
    """Model card (Markdown with YAML front matter) of a bundle; the same bundle gives the same text."""
    return "\n".join([*_front_matter(bundle), *_body(bundle)]) + "\n"


def _licence(folder: Path) -> str:
    path = folder / "LICENSE"
    text = " ".join(path.read_text(errors="replace").lower().split()) if path.is_file() else ""
    return next((name for phrase, name in _LICENCES.items() if phrase in text), "other")


def _quoted(text: Any) -> str:
    """A JSON string is a YAML string too, whatever stands in it."""
    return json.dumps(" ".join(str(text).split()), ensure_ascii=False)


def _front_matter(bundle: Bundle) -> Iterator[str]:
    image = bundle.metadata["network_data_format"]["inputs"]
    modality = str(next(iter(image.values())).get("modality", "")).lower()
    yield "---"
    yield f"license: {_licence(bundle.path)}"
    yield "library_name: monai"
    yield "pipeline_tag: image-segmentation"
    yield "tags:"
    for tag in dict.fromkeys(["monai", "medical", "segmentation", "3d", modality]):
        if tag:
            yield f"- {_quoted(tag)}"
    metrics = _numbers(bundle.metadata.get("eval_metrics", {}))
    if metrics:
        yield from ("model-index:", f"- name: {_quoted(bundle.name)}", "  results:")
        yield from ("  - task:", "      type: image-segmentation", "    dataset:")
        source = _quoted(bundle.metadata.get("data_source", "not stated"))
        yield from (f"      name: {source}", f"      type: {source}", "    metrics:")
        for name, value in metrics.items():
            yield from (f"    - type: {_quoted(name)}", f"      value: {value}")
    yield "---"


def _numbers(metrics: Any, prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    if isinstance(metrics, Mapping):
        for name, value in metrics.items():
            if isinstance(value, Mapping):
                found.update(_numbers(value, f"{prefix}{name} "))
            elif isinstance(value, int | float) and not isinstance(value, bool):
                found[f"{prefix}{name}"] = value
    return found


def _body(bundle: Bundle) -> Iterator[str]:
    data = bundle.metadata
    yield f"# {data.get('name', bundle.name)}"
    yield from ("", str(data.get("description", "")), "", f"Version {bundle.version}. {data.get('copyright', '')}")
    for title, key in (("Intended use", "intended_use"), ("Data", "data_source"), ("Authors", "authors")):
        if data.get(key):
            yield from ("", f"## {title}", "", str(data[key]))
    yield from ("", "## Structures", "", "| value | structure |", "| --- | --- |")
    for value, name in bundle.labels.items():
        yield f"| {value} | {name} |"
    metrics = _numbers(data.get("eval_metrics", {}))
    if metrics:
        yield from ("", "## Results", "", "| figure | value |", "| --- | --- |")
        for name, number in metrics.items():
            yield f"| {name} | {number} |"
    if bundle.training_range:
        yield from ("", "## Trained on", "", "```json", json.dumps(bundle.training_range), "```")
    yield from ("", "## Use", "", "```", f"medseg infer {bundle.name} INPUT -o OUTPUT", "```", "")
    yield "Without medseg: `python -m monai.bundle run --config_file configs/inference.json` in this folder."
    if data.get("references"):
        yield from ("", "## References", "", *(f"- {reference}" for reference in data["references"]))
    yield from ("", "## Changes", "")
    for version, change in data.get("changelog", {}).items():
        yield f"- {version}: {change}"
