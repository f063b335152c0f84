"""Load volumes as MONAI's :class:`LoadImaged` does, but sound ones only: exact grids, or a refusal that says why."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, get_track_meta, remove_extra_metadata
from monai.transforms import DeleteItemsd, EnsureChannelFirst, LoadImage, LoadImaged, MapTransform
from monai.utils import PostFix, ensure_tuple, ensure_tuple_rep
from numpy.typing import DTypeLike, NDArray

from medseg.errors import Refusal, UsageError
from medseg.geometry import Geometry
from medseg.ingest.image_files import is_image_file
from medseg.ingest.read import Source, read_volume
from medseg.ingest.record import SeriesRecord
from medseg.labels.image_grid import FRAME_OF_REFERENCE, SERIES

_OWN_KEYS = ("case_id", "modality", "notes", "resampled", SERIES, FRAME_OF_REFERENCE)
"""Meta data that MONAI's readers do not give."""


class LoadOptions(TypedDict, total=False):
    """What :class:`monai.transforms.LoadImage` takes besides the type, with the same meaning and defaults.

    A ``reader`` is accepted and not used, so that a configuration written for MONAI's class works here.
    """

    reader: Any
    image_only: bool
    ensure_channel_first: bool
    simple_keys: bool
    prune_meta_pattern: str | None
    prune_meta_sep: str
    expanduser: bool


class DictionaryOptions(LoadOptions, total=False):
    """What :class:`monai.transforms.LoadImaged` takes besides keys and type."""

    meta_keys: KeysCollection | None
    meta_key_postfix: str
    overwriting: bool
    allow_missing_keys: bool


class LoadVolume(LoadImage):
    """Load one volume, or several image files of one grid as channels.

    Parameters
    ----------
    dtype
        Type of the values; ``None`` keeps the smallest exact one.
    allow_resample
        Resample uneven slice spacing or a gantry tilt onto a regular grid; recorded in the meta data.
    **options
        See :class:`LoadOptions`.
    """

    def __init__(
        self, dtype: DTypeLike | None = np.float32, *, allow_resample: bool = False, **options: Unpack[LoadOptions]
    ) -> None:
        # LoadImage's own constructor starts every reader of MONAI, and one of them warns each time: none is needed.
        _refuse_unknown(options, LoadOptions)
        self.readers: list[Any] = []
        self.auto_select = False
        self.dtype = dtype
        self.allow_resample = allow_resample
        self.image_only = options.get("image_only", True)
        self.ensure_channel_first = options.get("ensure_channel_first", False)
        self.simple_keys = options.get("simple_keys", False)
        self.pattern = options.get("prune_meta_pattern")
        self.sep = options.get("prune_meta_sep", ".")
        self.expanduser = options.get("expanduser", True)

    def __call__(self, filename: Source, reader: Any = None) -> Any:  # noqa: ARG002 - the signature of LoadImage
        """Load ``filename``: a folder, a file, a list of them or a :class:`~medseg.ingest.SeriesRecord`.

        Parameters
        ----------
        filename
            What :func:`medseg.ingest.read_volume` reads. A list in which something is a volume of its own (an image
            file, a folder, a record) becomes channels in its order; any other list is the files of one DICOM series.
            All of a list is read, or nothing.
        reader
            Not used: which reader is right is not a matter of choice.

        Returns
        -------
        MetaTensor
            Shape (i, j, k), or (channel, i, j, k) for several files or with ``ensure_channel_first``; affine in mm,
            RAS+. With ``image_only=False`` a pair with the meta data.

        Raises
        ------
        Refusal
            With the reason code.
        UsageError
            An entry of a list is no path, or does not exist.
        """
        source = self._expanded(filename)
        if isinstance(source, list) and any(_is_a_volume(entry) for entry in source):
            values, geometry, facts = self._channels(source)
            channel_dim: float = 0
        else:
            values, geometry, facts = read_volume(source, dtype=self.dtype, allow_resample=self.allow_resample)
            channel_dim = float("nan")
        meta = meta_of(source, geometry, facts, channel_dim)
        image = self._tensor(torch.from_numpy(values), meta)
        if self.ensure_channel_first:
            image = EnsureChannelFirst()(image, meta_dict=meta)
        return image if self.image_only else (image, image.meta if isinstance(image, MetaTensor) else meta)

    def _expanded(self, source: Any) -> Any:
        if isinstance(source, np.ndarray):
            source = source.tolist()
        if isinstance(source, SeriesRecord):
            return source
        if isinstance(source, str | os.PathLike):
            return self._path(source)
        entries = [entry if isinstance(entry, SeriesRecord) else self._path(entry) for entry in _entries(source)]
        _check_there(entries)
        return entries[0] if len(entries) == 1 else entries

    def _path(self, path: str | os.PathLike[str]) -> str:
        text = os.fspath(path)
        return os.path.expanduser(text) if self.expanduser else text  # noqa: PTH111 - names that are not UTF-8 survive

    def _channels(self, sources: Sequence[str | SeriesRecord]) -> tuple[NDArray[Any], Geometry, dict[str, Any]]:
        """Several volumes as channels; they must have one grid."""
        volumes = [self._channel(number, source) for number, source in enumerate(sources, start=1)]
        _, geometry, facts = volumes[0]
        for number, (_, other, _) in enumerate(volumes[1:], start=2):
            if not other.matches(geometry):
                raise Refusal(
                    "geometry-mismatch",
                    f"channel {number} has the grid {other.describe()}, the first one {geometry.describe()}; "
                    "resample one onto the other first",
                )
        notes = [f"channel {n}: {note}" for n, (_, _, found) in enumerate(volumes, start=1) for note in found["notes"]]
        firsts = [sources.index(source) + 1 for source in sources]
        notes += [f"channel {n} is channel {first} once more" for n, first in enumerate(firsts, start=1) if n != first]
        return np.stack([values for values, _, _ in volumes]), geometry, {**facts, "notes": tuple(notes)}

    def _channel(self, number: int, source: str | SeriesRecord) -> tuple[NDArray[Any], Geometry, dict[str, Any]]:
        try:
            return read_volume(source, dtype=self.dtype, allow_resample=self.allow_resample)
        except Refusal as refusal:
            raise Refusal(refusal.code, f"channel {number}: {refusal.message}") from refusal
        except UsageError as error:
            raise UsageError(f"channel {number}: {error}") from error

    def _tensor(self, values: torch.Tensor, meta: dict[str, Any]) -> torch.Tensor:
        """What :meth:`MetaTensor.ensure_torch_and_prune_meta` makes, without its copy of the values."""
        if not get_track_meta():
            return values
        if self.simple_keys:
            remove_extra_metadata(meta)
            meta = {key: value for key, value in meta.items() if key not in _OWN_KEYS}
        if self.pattern is not None:
            meta = DeleteItemsd(keys=self.pattern, sep=self.sep, use_re=True)(meta)
        return MetaTensor(values, meta=meta)  # the affine of the meta data is the tensor's


class LoadVolumed(LoadImaged):
    """Dictionary form of :class:`LoadVolume`, in the place of MONAI's ``LoadImaged``.

    Parameters
    ----------
    keys
        Keys whose values are sources: a folder of one DICOM series, a file, a list of files, a record.
    dtype, allow_resample
        As for :class:`LoadVolume`.
    **options
        See :class:`DictionaryOptions`.

    Raises
    ------
    Refusal
        When called: no sound volume. Inside a MONAI ``Compose`` it is the cause of the ``RuntimeError`` raised there.

    Examples
    --------
    >>> LoadVolumed(keys="image")({"image": "study/series-folder"})["image"].affine  # doctest: +SKIP
    """

    def __init__(
        self,
        keys: KeysCollection,
        dtype: DTypeLike | None = np.float32,
        *,
        allow_resample: bool = False,
        **options: Unpack[DictionaryOptions],
    ) -> None:
        _refuse_unknown(options, DictionaryOptions)
        MapTransform.__init__(self, keys, options.get("allow_missing_keys", False))
        meta_keys = options.get("meta_keys")
        self.meta_keys = ensure_tuple_rep(None, len(self.keys)) if meta_keys is None else ensure_tuple(meta_keys)
        if len(self.meta_keys) != len(self.keys):
            raise ValueError(f"found {len(self.meta_keys)} meta_keys for {len(self.keys)} keys; give one for each")
        self.meta_key_postfix = ensure_tuple_rep(options.get("meta_key_postfix", PostFix.meta()), len(self.keys))
        self.overwriting = options.get("overwriting", False)
        own: dict[str, Any] = {name: value for name, value in options.items() if name in LoadOptions.__annotations__}
        self._loader = _NamedLoadVolume(dtype, allow_resample=allow_resample, **own)


class _NamedLoadVolume(LoadVolume):
    """Says which source of a dataset was refused; whoever loads one volume knows what was given."""

    def __call__(self, filename: Source, reader: Any = None) -> Any:
        try:
            return super().__call__(filename, reader)
        except Refusal as refusal:
            raise Refusal(refusal.code, f"{_name(filename)}: {refusal.message}") from refusal


def _name(source: Any) -> str:
    if isinstance(source, SeriesRecord):
        return source.case_id
    first = source if isinstance(source, str | os.PathLike) else next(iter(source), "nothing")
    return os.path.basename(os.fspath(first)) or os.fspath(first)  # noqa: PTH119  names that are not UTF-8 survive


LoadVolumeD = LoadVolumeDict = LoadVolumed


def _refuse_unknown(options: Mapping[str, Any], known: type) -> None:
    names = known.__annotations__
    for name in options:
        if name not in names:
            raise TypeError(f"unknown argument {name!r}; expected one of {', '.join(sorted(names))}")


def _entries(source: Any) -> list[Any]:
    """The entries of a list, whatever holds them in an order: list, tuple, array, generator."""
    if isinstance(source, bytes | bytearray | Mapping | AbstractSet) or not isinstance(source, Iterable):
        raise UsageError(f"found {type(source).__name__} as a source, expected a path or a list of paths; convert it")
    entries = list(source)
    if not entries:
        raise UsageError("the list is empty; give a folder of one series, an image file, or a list of such")
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, str | os.PathLike | SeriesRecord) or entry == "":
            shown = repr(entry) if entry == "" else type(entry).__name__
            raise UsageError(f"entry {number} of the list is {shown}, expected a path; correct the list")
    return entries


def _check_there(entries: Sequence[str | SeriesRecord]) -> None:
    gone = [entry for entry in entries if isinstance(entry, str) and not os.path.exists(entry)]  # noqa: PTH110
    if gone:
        raise UsageError(
            f"{len(gone)} of {len(entries)} entries of the list do not exist, such as {gone[0]!r}; correct the list: "
            "all of it is read, or nothing"
        )


def _is_a_volume(entry: str | SeriesRecord) -> bool:
    return isinstance(entry, SeriesRecord) or os.path.isdir(entry) or is_image_file(entry)  # noqa: PTH112


def meta_of(source: Any, geometry: Geometry, facts: dict[str, Any], channel_dim: float) -> dict[str, Any]:
    """Meta data of plain types only, so that batches collate; nothing that identifies the patient."""
    first = source[0] if isinstance(source, list) else source
    return {
        "filename_or_obj": first.source if isinstance(first, SeriesRecord) else os.fspath(first),
        "affine": np.array(geometry.affine),
        "original_affine": np.array(geometry.affine),
        "spatial_shape": np.array(geometry.shape),
        "space": "RAS",
        "original_channel_dim": channel_dim,
        "case_id": str(facts["case_id"]),
        "modality": str(facts.get("modality", "")),
        "notes": "; ".join(facts["notes"]),
        "resampled": str((facts["resampled"] or {}).get("because", "")),
        SERIES: str(facts.get(SERIES, "")),
        FRAME_OF_REFERENCE: str(facts.get(FRAME_OF_REFERENCE, "")),
    }
