"""A trained model of nnU-Net v2 as data: its folder or zip, its plans, its checkpoints. Nothing of it is executed.

Checkpoints hold numpy's scalars beside the weights. They are judged first as a bundle's weights are, then loaded with
``weights_only=True`` where stand-ins that do nothing take the place of numpy's names.
"""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from medseg.bundle.audit_weights import judge_torch_archive
from medseg.bundle.checkpoints import plain
from medseg.bundle.unpacking import extract
from medseg.errors import BundleError, UntrustedBundle, UsageError
from medseg.files import open_zip, shown
from medseg.json_shape import (
    ANYTHING,
    FLAG,
    NUMBER,
    TEXT,
    misfit,
    number,
    numbered,
    numbers,
    read_json,
    wholes,
    without_nulls,
)

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST_JSON = 64 << 20
_LARGEST_PICKLE = 64 << 20
"""A checkpoint's pickle holds the scores of every epoch and class, 40 bytes each: 4 MB for 1000 epochs of 100."""
_LARGEST_RATIO, _SMALL_BYTES = 20, 1 << 20
_MOST_FOLDS, _MOST_PARENTS = 20, 16
_CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
_TEXTS = ("plans.json", "dataset.json")
_PREFERRED = ("3d_fullres", "3d_lowres", "2d")
_FOLD = re.compile(r"fold_(\d{1,3}|all)")
_MEMBER = re.compile(rf"plans\.json|dataset\.json|{_FOLD.pattern}/(?:{'|'.join(map(re.escape, _CHECKPOINTS))})")
_NUMPY = (
    *(f"numpy.{core}.multiarray {name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"numpy.dtypes {name}DType" for name in ("Float64", "Float32", "Float16", "Int64", "Int32", "Bool")),
    *("numpy dtype", "numpy ndarray"),
)
_INERT = frozenset({*_NUMPY, "_codecs encode", "torch device"})

PLANS_FORM = {
    "configurations!": {"*": {"inherits_from": TEXT}},
    "transpose_forward!": wholes(0),
    "foreground_intensity_properties_per_channel": {"*": {"*": ANYTHING}},
    "foreground_intensity_properties_by_modality": {"*": {"*": ANYTHING}},
    "image_reader_writer": TEXT,
    "label_manager": TEXT,
    "dataset_name": TEXT,
    "plans_name": TEXT,
}
CONFIGURATION_FORM = {
    "spacing!": numbers(1e-4, 1e4),
    "patch_size!": wholes(1, 4096),
    "normalization_schemes!": [TEXT],
    "use_mask_for_norm!": [FLAG],
    **dict.fromkeys(("preprocessor_name", "label_manager", "image_reader_writer"), TEXT),
    "previous_stage": TEXT,
    **{f"resampling_fn_{what}": TEXT for what in ("data", "probabilities")},
    **{
        f"resampling_fn_{what}_kwargs": {
            "order": NUMBER,
            "order_z": NUMBER,
            "force_separate_z": FLAG,
            "separate_z_anisotropy_threshold": number(1, 1e4),
            "mode": TEXT,
            "aniso_axis_mode": TEXT,
        }
        for what in ("data", "probabilities")
    },
}
_DATASET_FORM = {
    "labels!": {"*": ANYTHING},
    "channel_names": numbered(TEXT),
    "modality": numbered(TEXT),
    "regions_class_order": wholes(0, 65535),
    **dict.fromkeys(("name", "description", "licence", "license", "reference"), TEXT),
}


@dataclass(frozen=True)
class Model:
    """A folder of results: what its two JSON files say, and one checkpoint per fold."""

    folder: Path
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    checkpoints: tuple[Path, ...]

    @property
    def files(self) -> list[Path]:
        """All that is read of it."""
        return [*(self.folder / name for name in _TEXTS), *self.checkpoints]

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels, in order."""
        named = self.dataset.get("channel_names") or self.dataset.get("modality") or {}
        keys = [str(number) for number in range(len(named))]
        if {*named} != {*keys}:
            raise BundleError(f"dataset.json numbers its channels {sorted(named)[:9]}, expected 0, 1, 2 … without gaps")
        return tuple(named[key] for key in keys)

    def configuration(self, name: str) -> dict[str, Any]:
        """A configuration of the plans, with what it inherits; a ``BundleError`` if it has another form."""
        merged: dict[str, Any] = {}
        following: str | None = name
        for _ in range(_MOST_PARENTS):
            if following is None:
                break
            if following not in self.plans["configurations"]:
                raise BundleError(f"plans.json has no configuration {following[:80]!r}; it belongs to other weights")
            own = self.plans["configurations"][following]
            merged, following = {**own, **merged}, own.get("inherits_from")
        if wrong := misfit(merged, CONFIGURATION_FORM):
            raise BundleError(f"plans.json, configuration {name}: {wrong}; the plans are damaged")
        return dict(without_nulls(merged, CONFIGURATION_FORM))


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of itself, and the weights of its network, mapped from the file."""

    state: Mapping[str, Tensor]
    configuration: str
    trainer: str
    mirror_axes: tuple[int, ...]


def find_models(source: Path) -> list[Path]:
    """Folders of results at or below a folder, up to three levels deep."""
    found = [path.parent for depth in range(4) for path in sorted(source.glob("*/" * depth + "plans.json"))]
    return [folder for folder in found if (folder / "dataset.json").is_file() and _folds(folder)]


def is_nnunet(source: Path) -> bool:
    """Whether a folder or zip holds a trained model of nnU-Net v2; read by names alone."""
    if source.is_dir():
        return bool(find_models(source))
    try:
        with open_zip(source) as archive:
            return bool(_members(archive))
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def open_model(source: Path, scratch: Path) -> tuple[Model, tuple[str, ...]]:
    """Read the model of a folder or a zip, whose members are unpacked to ``scratch``; with notes on what was chosen.

    Raises ``UsageError`` if there are several to choose from; ``BundleError`` or ``UntrustedBundle`` if it cannot be
    read; if a zip holds what could land elsewhere or never end, a folder what lies elsewhere.
    """
    root = source if source.is_dir() else scratch
    if root is scratch:
        _unpack(source, scratch)
    found = find_models(root)
    folder = _chosen(found, source)
    folds = _folds(folder)
    files = [*(folder / name for name in _TEXTS), *folds]
    if outside := [path for path in files if not path.resolve().is_relative_to(root.resolve())]:
        raise UntrustedBundle(
            f"{shown(outside[0])} is a link that leads out of {shown(source)}; put the file there itself"
        )
    remedy = "the folder is incomplete or damaged; export it again with nnUNetv2_export_model_to_zip"
    plans, dataset = (
        read_json(path, form, remedy, BundleError, _LARGEST_JSON)
        for path, form in zip(files, (PLANS_FORM, _DATASET_FORM), strict=False)
    )
    notes = [f"{folder.name}: of {len(found)} configurations"] if len(found) > 1 else []
    if any(path.name != _CHECKPOINTS[0] for path in folds):
        notes.append(f"{folds[0].name} of {len(folds)} folds: there is no {_CHECKPOINTS[0]}")
    return Model(folder, without_nulls(plans, PLANS_FORM), dataset, folds), tuple(notes)


def _chosen(found: Sequence[Path], source: Path) -> Path:
    by_name = {folder.name.rpartition("__")[2]: folder for folder in found}
    if len(by_name) < len(found) or len({folder.parent for folder in found}) > 1 or not found:
        listed = ", ".join(shown(f"{folder.parent.name}/{folder.name}") for folder in found) or "none"
        raise UsageError(f"{source} holds several models or none ({listed}); give the folder of one of them")
    return next((by_name[name] for name in _PREFERRED if name in by_name), found[0])


def _folds(folder: Path) -> tuple[Path, ...]:
    """One checkpoint per fold, as nnU-Net finds them: the folds by number, that of all cases only if it is alone."""
    named = {int(match[1]) if match[1] != "all" else -1: path for path in folder.glob("fold_*")
             if (match := _FOLD.fullmatch(path.name))}  # fmt: skip
    for name in _CHECKPOINTS:
        files = {number: path / name for number, path in sorted(named.items()) if (path / name).is_file()}
        numbered = [path for number, path in files.items() if number >= 0][:_MOST_FOLDS]
        if files:
            return tuple(numbered or files.values())
    return ()


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members that are read, by name; empty if it is no trained model."""
    wanted = {info.filename: info for info in archive.infolist() if _is_wanted(PurePosixPath(info.filename))}
    names = {PurePosixPath(name).name for name in wanted}
    return wanted if names >= {*_TEXTS} and names & {*_CHECKPOINTS} else {}


def _is_wanted(path: PurePosixPath) -> bool:
    ends = ("/".join(path.parts[-count:]) for count in (1, 2))
    return len(path.parts) <= 6 and any(_MEMBER.fullmatch(end) for end in ends)


def _unpack(source: Path, scratch: Path) -> None:
    """Write the members that are read, each as large as it states and no larger than such files compress."""
    try:
        with open_zip(source) as archive:
            members = _members(archive)
            if sum(info.file_size for info in members.values()) > shutil.disk_usage(scratch).free:
                raise UsageError(f"{source} unpacks to more than the disk of {scratch.parent} has room for; make room")
            for name, info in members.items():
                parts = PurePosixPath(name).parts
                if ".." in parts or name.startswith("/") or "\\" in name or ":" in name or info.flag_bits & 0x1:
                    raise UntrustedBundle(f"{source} holds {shown(name)}, no plain file below it; not unpacked")
                if info.file_size > _LARGEST_RATIO * info.compress_size + _SMALL_BYTES:
                    raise UntrustedBundle(f"{source} holds {shown(name)}, which unpacks to {info.file_size} bytes of"
                                          f" {info.compress_size}, a bomb; not unpacked")  # fmt: skip
            extract(archive, members, {}, scratch)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        raise BundleError(f"{source} cannot be unpacked: {error}; copy it again") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint as data.

    Raises ``UntrustedBundle`` if loading it could run code, or asks for more memory than the file has weights;
    ``BundleError`` if it is damaged, or no checkpoint of nnU-Net v2.
    """
    import pickle

    import torch

    if found := judge_torch_archive(path, path.name, _INERT, _LARGEST_PICKLE):
        raise UntrustedBundle(f"{path}: {found[0].what}; {found[0].why}")
    stubs: list[Any] = [(_Inert, name.replace(" ", ".")) for name in _NUMPY]
    try:
        with torch.serialization.safe_globals(stubs):
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, TypeError, pickle.UnpicklingError) as error:
        raise BundleError(f"{path} cannot be read as a checkpoint: {error}") from error
    held = plain(held)
    state = plain(held.get("network_weights"))
    if not state or not all(isinstance(part, torch.Tensor) for part in state.values()):
        raise BundleError(f"{path} holds no network_weights (names to tensors); it is no checkpoint of nnU-Net v2")
    named = {re.sub(r"^(?:module\.|_orig_mod\.)+", "", str(key)): value for key, value in state.items()}
    axes = held.get("inference_allowed_mirroring_axes") or ()
    if len(named) < len(state) or not isinstance(axes, tuple | list) or not {*map(repr, axes)} <= {"0", "1", "2"}:
        raise BundleError(f"{path} names a tensor twice, or mirrors along other axes than 0, 1 and 2; it is damaged")
    name = plain(held.get("init_args")).get("configuration")
    return Checkpoint(
        named,
        name if isinstance(name, str) else path.parent.parent.name.rpartition("__")[2],
        trainer if isinstance(trainer := held.get("trainer_name"), str) else "not stated",
        tuple(dict.fromkeys(axes)),
    )


class _Inert:
    """Stands for what a checkpoint holds of numpy: takes everything, does nothing."""

    def __init__(self, *_: object) -> None:
        """Take the arguments of a call."""

    def __setstate__(self, _: object) -> None:
        """Take a state."""
