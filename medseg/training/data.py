"""The cases of one fold, and which comes when with which augmentation: pure functions of the seed and a counter.

Every drawn sample has a number k, counted from the start of the run over all epochs. Its case and the random
numbers of its augmentation depend on (seed, k) alone, so a run that starts again at sample k goes on exactly as
if it had never stopped, with any number of workers, and over several processes.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader
from monai.data.utils import worker_init_fn
from monai.transforms import Compose
from torch.utils.data import Sampler

from medseg.bundle.config import config_file, read_config
from medseg.errors import UsageError
from medseg.labels import (
    ANNOTATED_KEY,
    MAPPING_KEY,
    READING_KEY,
    ROI_MAPPING_KEY,
    LabelScheme,
    ReadingRules,
    object_kind,
)
from medseg.labels.raters import RATERS_KEY, check_way, raters_of
from medseg.labels.regions import ORDER_KEY
from medseg.manifests import Item, Manifest
from medseg.manifests.items import check_item
from medseg.training.distributed import world
from medseg.transforms import KnownLabelsd, LoadLabeld

Part = Literal["training", "validation", "unlabelled"]

_WHAT = {
    READING_KEY: "DICOM object or files of single structures",
    ANNOTATED_KEY: "region, an ignore value or a partly annotated case",
}
_OF_LABELS = ("labels", ORDER_KEY, ROI_MAPPING_KEY, READING_KEY)
"""What of a datalist tells how a DICOM object or mask files are read."""


def data_root(
    datalist: str | PathLike[str], dataset_dir: str | PathLike[str] | None, bundle_root: str | PathLike[str]
) -> str | None:
    """Where the paths of a datalist start, if not where the datalist says.

    The ``dataset_dir`` that a bundle's ``train.json`` is written with belongs to the bundle's own datalist: another
    datalist, whose relative names may well exist there too, must not be read from it. The parameters are the ids of the
    configuration after overrides; ``dataset_dir`` comes back if it was given, or the datalist is the bundle's own.
    """
    if dataset_dir is None:
        return None
    root = Path(bundle_root)
    own_config = config_file(root, "train")
    written = {} if own_config is None else read_config(own_config)
    own_datalist = (root / "configs").resolve() == Path(datalist).resolve().parent
    if str(dataset_dir) == written.get("dataset_dir") and not own_datalist:
        return None
    return str(dataset_dir)


def with_folder(given: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The ids of a call with ``dataset_dir`` beside ``datalist``, so that no folder of another datalist is read.

    Without ``dataset_dir`` it is what the datalist says, whatever the bundle's configuration makes of the id. One that
    was given ends in a separator, and so is never taken for that of the configuration (:func:`data_root`). A
    configuration without the id is left alone.
    """
    datalist, folder = given.get("datalist"), given.get("dataset_dir")
    if not isinstance(datalist, str) or "dataset_dir" not in config:
        return dict(given)
    start = Path(folder) if isinstance(folder, str) else read_datalist(datalist, None).dataset_dir
    return {**given, "dataset_dir": os.path.join(start.absolute(), "")}  # noqa: PTH118  Path drops the separator


def read_datalist(datalist: str | PathLike[str], dataset_dir: str | PathLike[str] | None) -> Manifest:
    """The datalist of a training run."""
    if not Path(datalist).exists():
        raise UsageError(f"there is no datalist at {datalist}; give a JSON file with the list 'training'")
    return Manifest.read(datalist, dataset_dir=dataset_dir)


def fold_items(
    datalist: str | PathLike[str],
    dataset_dir: str | PathLike[str] | None,
    fold: int,
    part: Part,
    limit: int | None = None,
    keys: Sequence[str] = ("image",),
) -> list[dict[str, Any]]:
    """Cases to train on or to validate on, with absolute paths.

    Parameters
    ----------
    datalist
        JSON with a list ``training`` of items ``{"image", "label", "fold"}``. Items without ``label`` are unlabelled
        cases, and so are those of a list ``unlabelled`` (paths, or items with ``image``), if there is one. Its
        ``label_mapping`` goes into the cases, for :class:`medseg.transforms.LoadLabeld`, and so does what it says of
        DICOM objects and mask files, to those that have any; an item's ``annotated`` goes there for
        :class:`medseg.transforms.KnownLabelsd`.
    dataset_dir
        Folder the paths in it are relative to; ``None``: where the datalist says, else the folder it lies in.
    fold
        Held-out fold: its cases validate, all others train. A negative number trains on every case and
        validates on fold 0 (figures are then not held out).
    part
        ``"unlabelled"`` gives items with ``image`` alone, none of them from the held-out fold; often there are none.
    keys
        Where the images go. With several keys each item lists one file per key, the channels, which may lie on
        different grids; with one, whatever the item says goes there.

    Raises
    ------
    UsageError
        If a file or folder is missing, the fold is empty, or the datalist declares odd labels.
    """
    manifest = read_datalist(datalist, dataset_dir)
    mapping = manifest.scheme.mapping
    folds = sorted({item.get("fold", 0) for item in manifest.training})
    if fold >= 0 and fold not in folds:
        raise UsageError(f"the datalist {datalist} has the folds {folds}, not {fold}; choose one of them with --fold")
    labelled = part != "unlabelled"
    items = [item for item in manifest.training if bool(item.get("label")) == labelled]
    items += [] if labelled else _unlabelled_list(manifest, datalist)
    chosen = [item for item in items if _belongs(item, fold, part, 0 if labelled else -1)]
    if not chosen and labelled:
        raise UsageError(f"the datalist {datalist} leaves no case for {part} with fold {fold}; split it first")
    _require_first_image(manifest, chosen)
    cases = [_images(manifest, item, keys, datalist) for item in chosen[:limit]]
    if not labelled:
        return cases
    mapped = {MAPPING_KEY: dict(mapping)} if mapping else {}
    return [
        {**case, **_label(manifest, item, part), **mapped, **_annotated(manifest.scheme, item)}
        for case, item in zip(cases, chosen, strict=False)
    ]


def _annotated(scheme: LabelScheme, item: Item) -> dict[str, Any]:
    """The structures that a case was looked through for, where labels say more than a class for each voxel."""
    if scheme.unknown_of(item.get(ANNOTATED_KEY)):
        return {ANNOTATED_KEY: list(item[ANNOTATED_KEY])}
    more = bool(scheme.regions) or scheme.ignore is not None
    return {ANNOTATED_KEY: list(scheme.structures.values())} if more else {}


def image_items(
    datalist: str | PathLike[str],
    dataset_dir: str | PathLike[str] | None,
    fold: int,
    part: Part,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Every case of a datalist, labelled or not, as ``{"image": absolute path}``; labels are ignored.

    The parameters and errors are those of :func:`fold_items`; an item without ``fold`` is never held out.
    """
    manifest = read_datalist(datalist, dataset_dir)
    items = [*manifest.training, *_unlabelled_list(manifest, datalist)]
    chosen = [item for item in items if _belongs(item, fold, part, -1)]
    if not chosen:
        raise UsageError(f"the datalist {datalist} leaves no volume for {part} with fold {fold}; choose another fold")
    _require_first_image(manifest, chosen)
    files = [[str(path) for path in manifest.files(item, "image")] for item in chosen[:limit]]
    return [{"image": paths[0] if len(paths) == 1 else paths} for paths in files]


def _belongs(item: Item, fold: int, part: Part, usual: int) -> bool:
    """Whether an item is in a part of the run; one that names no fold is in fold ``usual``."""
    held_out: bool = item.get("fold", usual) == max(fold, 0)
    return held_out if part == "validation" else fold < 0 or not held_out


def _images(manifest: Manifest, item: Item, keys: Sequence[str], datalist: str | PathLike[str]) -> dict[str, Any]:
    """The images of an item under their keys."""
    files = [str(path) for path in manifest.files(item, "image")]
    if len(keys) == 1:
        return {keys[0]: files[0] if isinstance(item["image"], str) else files}
    if len(files) != len(keys):
        raise UsageError(
            f"an item of {datalist} lists {len(files)} image(s), the bundle takes {len(keys)} channels; "
            "list one file per channel under 'image'"
        )
    return dict(zip(keys, files, strict=True))


def _label(manifest: Manifest, item: Item, part: Part) -> dict[str, Any]:
    """The label of an item, and what its datalist says of it where it is no label map, or there are several raters."""
    label, way = manifest.label_entry(item), {}
    if raters := raters_of(label):
        chosen = str(manifest.content.get(RATERS_KEY, "draw"))
        check_way(chosen, list(raters))
        if chosen in raters:
            label = raters[chosen]
        else:
            way = {RATERS_KEY: "majority" if chosen == "draw" and part == "validation" else chosen}
    maps = [isinstance(one, str) and object_kind(one) is None for one in (raters_of(label) or {"": label}).values()]
    if all(maps) and (not way or manifest.scheme.ignore is None):  # else: which value has no vote among raters
        return {"label": label, **way}
    content = {key: value for key in _OF_LABELS if (value := manifest.content.get(key)) is not None}
    ReadingRules.of(content)  # odd ones are told now, not in the middle of a training
    return {"label": label, **way, READING_KEY: content}


def _unlabelled_list(manifest: Manifest, datalist: str | PathLike[str]) -> list[Item]:
    """Items of the list ``unlabelled``, which may name paths alone."""
    listed = manifest.content.get("unlabelled", [])
    if not isinstance(listed, list):
        raise UsageError(f"{datalist}: 'unlabelled' is a {type(listed).__name__}, expected a list of paths or items")
    entries = [entry if isinstance(entry, dict) else {"image": entry} for entry in listed]
    for entry in entries:
        check_item(entry, Path(datalist))
    return entries


def _require_first_image(manifest: Manifest, chosen: Sequence[Item]) -> None:
    """Notice a wrong folder before anything is loaded."""
    missing = [path for item in chosen[:1] for path in manifest.files(item, "image") if not path.exists()]
    if missing:
        raise UsageError(
            f"the first image of the datalist, {missing[0]}, does not exist: paths start in {manifest.dataset_dir}; "
            "give the folder that holds the data with --dataset-dir (dataset_dir in the configuration), or name it in "
            "the datalist"
        )


def random_state() -> dict[str, Any]:
    """State of torch (CPU and CUDA), numpy and Python's ``random``."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, float(cached)],
        "python": [version, list(internal), gauss_next],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Go back to a captured state."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


class Draw(NamedTuple):
    """One drawn sample: its number in the run and the case it shows."""

    number: int
    case: int


class DrawSampler(Sampler[Draw]):
    """Endless stream of draws: shuffled passes over the cases, one after another.

    ``length`` is what ``len`` answers, the draws of an epoch; the stream itself does not end. ``group`` draws make a
    batch of one process; of ``processes`` each takes its own groups.
    """

    def __init__(
        self, cases: int, length: int, seed: int = 0, group: int = 1, rank: int = 0, processes: int = 1
    ) -> None:
        if cases < 1:
            raise ValueError("found no case to train on, expected at least one; check the datalist and the fold")
        self.cases, self.length, self.seed = cases, length, seed
        self.group, self.rank, self.processes = group, rank, processes
        self.start = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Draw]:
        position = self.start
        while True:
            batch, inside = divmod(position, self.group)
            number = (batch * self.processes + self.rank) * self.group + inside
            order, place = divmod(number, self.cases)
            yield Draw(number, int(np.random.default_rng((self.seed, order)).permutation(self.cases)[place]))
            position += 1

    def go_to(self, iteration: int) -> None:
        """Begin the next stream with the batch after ``iteration`` batches."""
        self.start = iteration * self.group


class TrainingDataset(CacheDataset):
    """Cases in memory, preprocessed once; each draw is augmented with random numbers of its own.

    The cached tensors are handed to the random transforms without a copy, so these must not write in place. The first
    transforms, deterministic ones, are cached; a case of several raters to draw from is cached once for each; ``seed``
    is that of the random ones behind them; ``cache`` holds keyword arguments of :class:`monai.data.CacheDataset`.
    """

    def __init__(self, data: Sequence[Any], transform: Compose, seed: int = 0, **cache: Any) -> None:
        self.seed = seed
        steps = transform.flatten().transforms
        loaded = ((key, LoadLabeld) for key in (MAPPING_KEY, READING_KEY, RATERS_KEY))
        for key, kind in (*loaded, (ANNOTATED_KEY, KnownLabelsd)):
            named = any(isinstance(case, Mapping) and key in case for case in data)
            if named and not any(isinstance(step, kind) for step in steps):
                what = _WHAT.get(key, key)
                raise UsageError(  # other structures would be learnt
                    f"the datalist has a {what}, which the bundle does not apply; put medseg.transforms."
                    f"{kind.__name__} into train#preprocessing_transforms of its configs/train.json, as `medseg bundle "
                    "new` does"
                )
        drawn = [_by_rater(case) for case in data]
        ends = np.cumsum([len(raters) for raters in drawn]).tolist()
        self._raters = [range(end - len(raters), end) for end, raters in zip(ends, drawn, strict=True)]
        data = [case for raters in drawn for case in raters]
        super().__init__(data, transform, **{"copy_cache": False, "progress": False, "num_workers": 2, **cache})

    def __len__(self) -> int:
        return len(self._raters)

    def __getitem__(self, index: int | slice | Sequence[int] | Draw) -> Any:
        if not isinstance(index, Draw):
            return super().__getitem__(self._raters[index][0] if isinstance(index, int) else index)
        state, rater = np.random.SeedSequence((self.seed, index.number)).generate_state(2)
        self.transform.set_random_state(seed=int(state))
        raters = self._raters[index.case]
        return self._transform(raters[int(rater) % len(raters)])


def _by_rater(case: Any) -> list[Any]:
    """A case once for each rater whose label may be drawn for it, else as it is."""
    if not isinstance(case, Mapping) or case.get(RATERS_KEY) != "draw":
        return [case]
    rest = {key: value for key, value in case.items() if key != RATERS_KEY}
    return [{**rest, "label": entry} for entry in raters_of(case["label"]).values()]


def training_loader(dataset: TrainingDataset, batch_size: int, iterations: int, *, num_workers: int = 0) -> DataLoader:
    """Loader of ``iterations`` batches per epoch; ``batch_size`` is per process, each process draws its own."""
    rank, processes = world()
    sampler = DrawSampler(len(dataset), iterations * batch_size, dataset.seed, batch_size, rank, processes)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        drop_last=True,
        timeout=600 if num_workers else 0,
        worker_init_fn=_begin_worker,
        generator=torch.Generator().manual_seed(dataset.seed),  # else every start would draw from the global state
    )


def place_sampler(loader: Any, iteration: int) -> None:
    """Let the next stream of a loader of :func:`training_loader` begin after ``iteration`` batches."""
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, DrawSampler):
        sampler.go_to(iteration)


def _begin_worker(number: int) -> None:
    """Leave Ctrl-C to the main process, which still waits for this worker's batch; SIGTERM is how it ends workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker_init_fn(number)
