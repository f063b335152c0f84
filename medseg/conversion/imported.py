"""What is asked of an import, what it left, and what all bundles that are made of other tools' models have alike."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata as packages
from pathlib import Path
from typing import Any

from medseg.bundle.unpacking import FOLDER_NAME
from medseg.errors import UsageError
from medseg.files import shown, write_json, write_text

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_LONGEST_NAME = 128
"""Characters; what is made of a name (partial files, archives) is longer."""


@dataclass(frozen=True)
class ImportOptions:
    """What a source does not say of itself.

    ``name``: of the bundle, by default one made of the source's. ``orientation``: of the images that the origin was
    trained on, as they lay on disk (``RAS``, ``LPS`` …); ``like``: one of these images, to read it from. ``fetch``:
    weights that the source lists and has not. ``network``: a JSON file that defines the network of weights that come
    without one.
    """

    name: str | None = None
    orientation: str | None = None
    like: Path | None = None
    fetch: bool = False
    network: Path | None = None


@dataclass(frozen=True)
class Imported:
    """A bundle that was made of another tool's model.

    ``kind``: what the source was, for people. ``notes``: what was decided on the way, and what is not as in the origin.
    ``checked``: what a comparison with the origin gave; None without one.
    """

    path: Path
    kind: str
    notes: tuple[str, ...] = ()
    checked: Mapping[str, Any] | None = None


def name_of(stated: str) -> str:
    """A bundle's name made of what a source calls itself."""
    return re.sub(r"[^a-z0-9]+", "_", stated[:_LONGEST_NAME].lower()).strip("_")[:_LONGEST_NAME]


def free_place(
    output: Path,
    name: str,
    form: re.Pattern[str] = FOLDER_NAME,
    expected: str = "letters, digits, _, - and ., a folder below --output alone",
) -> Path:
    """Where a bundle of that name is going to lie; a ``UsageError`` if it cannot be named so, or there is one."""
    if not form.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise UsageError(
            f"the name is {shown(name[:_LONGEST_NAME])}, expected {expected}, at most {_LONGEST_NAME} characters; give"
            " another --name"
        )
    place = output / name
    if place.exists():
        raise UsageError(f"{shown(place)} exists already; give another --name or --output, or remove it")
    return place


def template(name: str) -> dict[str, Any]:
    """What ``inference`` or ``metadata`` of all imported bundles have alike, afresh."""
    content: dict[str, Any] = json.loads((_TEMPLATES / f"imported_{name}.json").read_text())
    return content


def describe(
    name: str,
    kind: str,
    channels: Mapping[int, str],
    outputs: Mapping[int, str],
    shape: Sequence[int | str],
    modality: str,
) -> dict[str, Any]:
    """``metadata.json``: names of the channels of image and scores, the shape of a window (``*``: of any image)."""
    metadata = template("metadata")
    tensors = metadata["network_data_format"]
    image, pred = tensors["inputs"]["image"], tensors["outputs"]["pred"]
    image |= {"modality": modality, "format": "hounsfield" if modality == "CT" else "magnitude"}
    for tensor, names in ((image, channels), (pred, outputs)):
        tensor |= {"num_channels": len(names), "spatial_shape": list(shape), "is_patch_data": "*" not in shape}
        tensor["channel_def"] = {str(number): text for number, text in names.items()}
    return metadata | {
        "name": name.replace("_", " ").capitalize(),
        "changelog": {metadata["version"]: f"imported from {kind}"},
        "monai_version": packages.version("monai"),
        "pytorch_version": packages.version("torch").partition("+")[0],
        "numpy_version": packages.version("numpy"),
        "required_packages_version": {key: packages.version(key) for key in ("nibabel", "pytorch-ignite")},
        "description": f"A network, imported from {kind}.",
        "imported": {"origin": kind},
    }


def write_texts(
    folder: Path, inference: Mapping[str, Any], metadata: Mapping[str, Any], licence: str, notes: Sequence[str]
) -> None:
    """Write all of a bundle but its weights."""
    write_json(folder / "configs" / "inference.json", inference)
    write_json(folder / "configs" / "metadata.json", metadata)
    write_text(folder / "configs" / "logging.conf", (_TEMPLATES / "logging.conf").read_text())
    write_text(folder / "LICENSE", licence)
    named = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    structures = "\n".join(f"| {number} | {text} |" for number, text in named.items())
    said = "\n".join(f"- {note}" for note in notes)
    origin = metadata["imported"]["origin"]
    write_text(
        folder / "docs" / "README.md",
        f"# {folder.name}\n\nImported from {origin} by `medseg bundle import`. Whether its label maps were compared"
        f" with those of its origin stands under `imported` in `configs/metadata.json`.\n\n{said}\n\n"
        f"| channel | structure |\n| --- | --- |\n{structures}\n\n"
        f"```bash\nmedseg infer {folder.name} INPUT -o OUTPUT\n```\n\nDICOM objects need the coded term of each"
        " structure: state it under `segment_codes` in `configs/metadata.json`.\n",
    )
