"""Verify that a bundle is complete, that it does what it says, and that its parts belong together.

The audit comes first; the network is built and run only if the audit blocks nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata as packages
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.bundle.audit import audit
from medseg.bundle.bundle import Bundle
from medseg.bundle.config import ABSENT, SEPARATOR, config_file, item_at, laid_out, read_config, strings_in
from medseg.bundle.findings import Finding, Severity, blocks, sort_findings
from medseg.bundle.training_run import training_run_findings
from medseg.errors import BundleError, MedsegError
from medseg.trust.discriminator_acceptance import discriminator_findings
from medseg.trust.trust_files import CALIBRATION_NAME, TrustFiles

if TYPE_CHECKING:
    import torch

SCHEMA_FILE = Path(__file__).resolve().parent / "schema" / "meta_schema_20240725.json"
"""The metadata schema, for checks without a network; also for MONAI's ``verify_metadata --filepath``."""

_METADATA = "configs/metadata.json"
_FILES: dict[str, Severity] = {
    "LICENSE": "block",
    "docs/README.md": "warn",
    "docs/data_license.txt": "warn",
    "configs/logging.conf": "warn",
}
_TRAINING_IDS = ("trainer", "trainer::max_epochs", "dataset", "inferer")
_REQUIRED_IDS = {
    "inference": ("device", "dataset_dir", "dataset", "evaluator", "network_def", "inferer"),
    "train": ("device", "dataset_dir", *(f"train::{name}" for name in _TRAINING_IDS)),
}
_NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+){2,}")
_PACKAGES = "required_packages_version"
_FEW = 5
_LARGEST_BYTES = 25_000_000
_LARGEST_VOXELS = 128**3
_LONGEST_EXTENT = 24
_LARGEST_INPUT = 16 * _LARGEST_VOXELS


def verify(path: str | Path) -> list[Finding]:
    """Findings of the audit of what labelling reads, and of all checks, most serious first.

    Checks: required files, the metadata schema (offline), versions and changelog, the ids that MONAI's workflows ask
    for, the network's answer to an input of the declared shape, weights, coded terms of the labels, and that the trust
    calibration belongs to these weights. Raises ``UsageError`` if ``path`` is not a bundle's folder.
    """
    bundle = Bundle.open(path)
    findings = audit(path, "infer")
    trusted = not blocks(findings)
    checks = (_files, _schema, _versions, _ids, _labels, _trust, discriminator_findings, training_run_findings)
    findings += [finding for check in checks for finding in check(bundle)]
    if trusted:
        findings.extend(_network(bundle))
    return sort_findings(findings)


def _files(bundle: Bundle) -> Iterator[Finding]:
    configs: dict[str, Severity] = {"inference": "block", "train": "warn"}
    missing = {
        f"configs/{name}.json": severity for name, severity in configs.items() if not config_file(bundle.path, name)
    }
    missing |= {name: severity for name, severity in _FILES.items() if not (bundle.path / name).is_file()}
    for name, severity in missing.items():
        yield Finding(severity, name, "", "missing", "a shared bundle has it; add the file")
    if not _NAME.fullmatch(bundle.name):
        yield Finding("info", "", "", f"the name is {bundle.name}", "the usual form is <anatomy>_<modality>_<task>")
    listed = bundle.path / "large_files.yml"
    for file in sorted((bundle.path / "models").glob("*")):
        if file.stat().st_size > _LARGEST_BYTES and not listed.is_file():
            why = "more than 25 MB in one file; keep it out of version control by large_files.yml"
            yield Finding("info", f"models/{file.name}", "", f"{file.stat().st_size} bytes", why)


def _house_rule(bundle: Bundle) -> Severity:
    """How serious it is to break a rule that is kept by bundles that medseg trains; others label without it."""
    train = config_file(bundle.path, "train")
    trained = train is not None and any("medseg." in text for _, text in strings_in(read_config(train)))
    return "block" if trained else "warn"


def _schema(bundle: Bundle) -> Iterator[Finding]:
    import jsonschema

    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text()))
    stated = str(bundle.metadata.get("schema", SCHEMA_FILE.name)).rpartition("/")[2]
    severity: Severity = "block" if stated == SCHEMA_FILE.name else "warn"
    described = bundle.metadata
    if severity == "warn" and _PACKAGES not in described:  # schemas before 2024 call them optional
        described = {**described, _PACKAGES: described.get("optional_packages_version", {})}
    why = f"{SCHEMA_FILE.name} does not allow it" + ("" if severity == "block" else f"; the metadata follow {stated}")
    for error in validator.iter_errors(described):
        place = "::".join(str(part) for part in error.absolute_path)
        yield Finding(severity, _METADATA, place, error.message, why)


def _versions(bundle: Bundle) -> Iterator[Finding]:
    changelog = bundle.metadata.get("changelog", {})
    if not isinstance(changelog, Mapping) or bundle.version not in changelog:
        why = "say in the changelog what is new in it"
        what = f"version {bundle.version} is not in the changelog"
        yield Finding(_house_rule(bundle), _METADATA, "changelog", what, why)
    for package, version in bundle.packages.items():
        if "not installed" in version:
            why = "its metadata name it; install it if a part of the bundle asks for it"
            yield Finding("info", _METADATA, _PACKAGES, f"{package} {version}", why)
    for package, key in (("monai", "monai_version"), ("torch", "pytorch_version"), ("numpy", "numpy_version")):
        stated, installed = str(bundle.metadata.get(key, "0")), packages.version(package)
        if _major_minor(stated) > _major_minor(installed):
            why = f"{package} {installed} is installed; update it if the bundle does not work"
            yield Finding("warn", _METADATA, key, f"made with {package} {stated}", why)


def _major_minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d{1,9}", version)[:2])


@cache
def vocabulary() -> frozenset[str]:
    """Words that stand in every bundle: keys of the metadata's schema, ids that MONAI's workflows know."""
    from monai.bundle.properties import InferProperties, MetaProperties, TrainProperties

    known = {**InferProperties, **TrainProperties, **MetaProperties}
    ids = {word for name, about in known.items() for word in (name, *about["id"].split(SEPARATOR))}
    return frozenset(ids | {*_keys_of(json.loads(SCHEMA_FILE.read_text()))})


def _keys_of(schema: Any) -> Iterator[str]:
    """Keys that a JSON schema describes, at all depths."""
    if isinstance(schema, Mapping):
        yield from schema.get("properties", ())
        for part in schema.values():
            yield from _keys_of(part)


def _ids(bundle: Bundle) -> Iterator[Finding]:
    for name, required in _REQUIRED_IDS.items():
        path = config_file(bundle.path, name)
        if path is None:
            continue
        file, config = f"configs/{path.name}", laid_out(read_config(path))
        for place in required:
            if item_at(config, place) is ABSENT:
                yield Finding(_house_rule(bundle), file, place, "missing", "MONAI's workflows ask for this id")
        if not {"run", "training", "evaluating"} & config.keys():
            yield Finding("warn", file, "run", "missing", "`python -m monai.bundle run` starts there")


def _labels(bundle: Bundle) -> Iterator[Finding]:
    try:
        names, codes, channels = bundle.labels, bundle.label_codes, bundle.output_channels
    except (BundleError, KeyError, ValueError, TypeError, AttributeError) as error:
        yield Finding("block", _METADATA, "network_data_format::outputs", f"cannot be read: {error}", "describe pred")
        return
    place = "network_data_format::outputs::pred"
    if bundle.scheme.regions:
        if len(names) != channels:
            why = "every region needs its channel, in the order of `labels`"
            yield Finding("block", _METADATA, place, f"{len(names)} regions of a network with {channels} channels", why)
    elif max(names, default=0) >= max(channels, 2):
        why = "every label needs its channel"
        yield Finding("block", _METADATA, place, f"label {max(names)} of a network with {channels} channels", why)
    coded = {value for value, code in codes.items() if isinstance(code, Mapping) and "type" in code}  # no mere colour
    lacking = [f"{name} (label {value})" for value, name in names.items() if value not in coded]
    if len(lacking) > _FEW and not coded:
        lacking = [f"{', '.join(lacking[:_FEW])} and {len(lacking) - _FEW} more: each"]
    for name in lacking:
        why = "DICOM objects need a coded term; add it to segment_codes"
        yield Finding("warn", _METADATA, f"{place}::segment_codes", f"{name} has no code", why)
    for value in sorted(set(codes) - set(names)):
        yield Finding("block", _METADATA, f"{place}::segment_codes", f"a code for {value}", "there is no such label")


def _trust(bundle: Bundle) -> Iterator[Finding]:
    """What is under ``trust/`` can be read, and belongs to these weights."""
    if not (bundle.path / CALIBRATION_NAME).is_file():
        yield Finding("info", CALIBRATION_NAME, "", "missing", "results are not calibrated: none is accepted")
        return
    files, why = TrustFiles(bundle), "calibrate again with: medseg trust fit"
    try:
        weights = files.weights
    except BundleError:
        weights = {}
    if not weights:
        return  # no weights, or a config that does not tell them, are findings of their own
    from medseg.trust.doubts import doubts_of_calibration

    try:
        stated = files.stated_calibration
    except BundleError as error:
        yield Finding("block", CALIBRATION_NAME, "", f"it cannot be read: {error}", why)
        return
    if stated is not None and stated.weights_sha256 not in weights.values():
        yield Finding("block", CALIBRATION_NAME, "weights_sha256", "it belongs to other weights", why)
    elif stated is not None and stated.cleaning != files.cleaning:
        yield Finding("block", CALIBRATION_NAME, "cleaning", "it belongs to another cleaning of labels", why)
    unusable = list(files.unusable())
    for name, reason in unusable:
        yield Finding("block", name, "", f"it cannot be used: {reason}", why)
    if not unusable and files.state.state == "damaged":
        yield Finding("block", CALIBRATION_NAME, "", f"it cannot be used: {files.state.message}", why)
    for severity, what in doubts_of_calibration(stated) if stated is not None else ():
        yield Finding(severity, CALIBRATION_NAME, "", what, why)


def _network(bundle: Bundle) -> Iterator[Finding]:
    """Build the network, load the weights, and run it once on an input of the declared shape."""
    try:
        yield from _run_network(bundle)
    except MedsegError as error:
        yield Finding("block", "models", "", str(error), "the network cannot be used")
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
        what = f"the network fails on it: {error}"
        yield Finding("block", _METADATA, "network_data_format", what, "correct the shapes")


def _judged(bundle: Bundle, network: torch.nn.Module) -> Iterator[Finding]:
    """What the trust model makes of results that are certainly poor."""
    files = TrustFiles(bundle)
    if files.state.state != "ready":
        return  # which is a finding of its own
    from medseg.trust.doubts import doubts_of_model
    from medseg.trust.trust_model import TrustModel

    why = "calibrate again, on poor results as well: medseg trust fit"
    try:
        model = TrustModel.open(files, network)
    except BundleError as error:
        yield Finding("block", CALIBRATION_NAME, "", f"it cannot be used: {error}", why)
        return
    for severity, what in doubts_of_model(model) if model is not None else ():
        yield Finding(severity, CALIBRATION_NAME, "", what, why)


def _run_network(bundle: Bundle) -> Iterator[Finding]:
    import torch

    described = bundle.metadata["network_data_format"]
    image, pred = (next(iter(described[side].values())) for side in ("inputs", "outputs"))
    shape, channels = fake_shape(image["spatial_shape"]), int(image["num_channels"])
    if not 0 < channels * math.prod(shape) <= _LARGEST_INPUT:
        found = f"{channels} channels of {shape} voxels are declared"
        raise BundleError(f"{found}, expected at most {_LARGEST_INPUT} numbers in all")
    network = bundle.load_network()
    with torch.inference_mode():
        answer = network(torch.rand(1, channels, *shape, generator=torch.Generator().manual_seed(0)))
    if not isinstance(answer, torch.Tensor):
        what = f"gives a {type(answer).__name__}"
        yield Finding("block", "configs/inference.json", "network_def", what, "give a tensor")
        return
    place = "network_data_format::outputs::pred"
    expected = (pred["num_channels"], *fake_shape(pred["spatial_shape"]))
    if tuple(answer.shape[1:]) != expected:
        what = f"the network gives {tuple(answer.shape[1:])} for an input of {shape}"
        yield Finding("block", _METADATA, place, what, f"{expected} is declared")
    if str(answer.dtype).removeprefix("torch.") != str(pred["dtype"]):
        what = f"the network gives {answer.dtype}"
        yield Finding("block", _METADATA, f"{place}::dtype", what, "state the right type")
    if not bool(answer.isfinite().all()):
        yield Finding("block", "models", "", "the network gives numbers that are not finite", "train it again")
    elif tuple(answer.shape[1:]) == expected:
        yield from _judged(bundle, network)


def fake_shape(declared: list[int | str]) -> tuple[int, ...]:
    """Smallest sensible shape that fits a declared one such as ``["16*n", "2**p", 96, "*"]``.

    Only numbers, one letter, ``*`` and ``**`` are understood, as MONAI documents them.

    >>> fake_shape(["16*n", "2**p*n", 96, "*"])
    (16, 16, 96, 16)
    """
    shape = tuple(_extent(item) for item in declared)
    if not shape or any(extent < 1 for extent in shape):
        raise BundleError(f"the declared shape {declared} has no size")
    if math.prod(shape) > _LARGEST_VOXELS:
        raise BundleError(f"the declared shape {declared} is too large to try ({shape})")
    return shape


def _extent(item: int | str) -> int:
    if isinstance(item, int):
        return item
    text = item.replace(" ", "")
    if text == "*":
        return 16
    if len(text) > _LONGEST_EXTENT:
        raise BundleError(f"a declared extent is {len(text)} characters long, expected one such as '16*n'")
    if power := re.fullmatch(r"(\d+)\*\*p(?:\*n)?", text):
        base = int(power[1])
        return next((base**p for p in range(1, 8) if base**p >= 16), base)
    multiple = re.fullmatch(r"(\d+)(?:\*n)?|n\*(\d+)", text)
    if multiple is None:
        raise BundleError(f"the declared extent {item!r} is not understood; write for example '16*n'")
    return int(multiple[1] or multiple[2])
