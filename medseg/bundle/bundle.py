"""A bundle as data: what it says of itself, its weights; nothing is executed."""

from __future__ import annotations

import copy
import hashlib
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medseg.bundle.adoption import Adopted, adopt
from medseg.bundle.audit import Role, require_trusted, trusted_parts
from medseg.bundle.audit_costs import check_parts
from medseg.bundle.checkpoints import WEIGHT_FILES, filled_network, loaded_files, weight_files, weight_places
from medseg.bundle.config import Parsed, config_file, laid_out, read_config
from medseg.bundle.find import METADATA, find_bundle, is_bundle, no_bundle
from medseg.bundle.packages import check_packages, stated_packages
from medseg.bundle.pipeline import Pipeline, check_trainer, read_pipeline
from medseg.bundle.policy import require_listed
from medseg.bundle.portable import arrays_as_data, portable
from medseg.bundle.promptable import intensity_channels, note_on, without_clicks
from medseg.bundle.resolve import may_hold, needless_imports, resolved, without_needless_imports
from medseg.bundle.text_limits import METADATA_FORM
from medseg.errors import BundleError, Refusal, UsageError
from medseg.files import sha256_file
from medseg.geometry import Geometry, millimetres, ras_axes
from medseg.json_shape import misfit, without_nulls
from medseg.labels.scheme import LabelScheme

if TYPE_CHECKING:
    import torch

Permission = Literal["audited", "network-only", "everything"]

_BACKGROUND = frozenset({"background", "bg", "back", "none", "unlabelled", "unlabeled", "no label", ""})


class Bundle:
    """A MONAI bundle on disk.

    Opening reads JSON only; nothing of the bundle is executed. Weights are read by :meth:`load_network`, and
    only after the audit has found nothing outside its allow-list.

    Parameters
    ----------
    path, metadata
        The bundle's folder, and its parsed ``configs/metadata.json``.
    permission
        What may be evaluated: ``"audited"`` a bundle whose audit blocks nothing; ``"network-only"`` the network and
        those parts of ``inference.json`` that are clean on their own, whatever else lies beside them;
        ``"everything"`` runs the bundle's own code, too.
    presets
        Names of configs that are laid over ``train.json``.
    """

    def __init__(
        self, path: Path, metadata: Mapping[str, Any], permission: Permission = "audited", presets: Sequence[str] = ()
    ) -> None:
        self.path, self.metadata, self.permission, self.presets = path, dict(metadata), permission, presets
        self._named: dict[int, str] | None = None

    @classmethod
    def open(cls, path: str | Path, permission: Permission = "audited", presets: Sequence[str] = ()) -> Bundle:
        """Open the bundle in the folder ``path``, or of that name (:func:`~medseg.bundle.find.find_bundle`).

        Raises
        ------
        UsageError
            If there is no such folder, or it holds no ``configs/metadata.json``.
        BundleError
            If the metadata cannot be parsed, or what medseg reads of them has another form.
        """
        folder = find_bundle(path)
        if not is_bundle(folder):
            raise UsageError(no_bundle(folder))
        return cls.of(folder, read_config(folder / METADATA), permission, presets)

    @classmethod
    def of(
        cls, path: Path, metadata: object, permission: Permission = "audited", presets: Sequence[str] = ()
    ) -> Bundle:
        """The bundle of what its metadata hold, wherever they were read; raises ``BundleError`` as :meth:`open`."""
        if wrong := misfit(metadata, METADATA_FORM):
            raise BundleError(f"{path / METADATA}: {wrong}; correct it, or ask its authors for a sound one")
        return cls(path, without_nulls(metadata, METADATA_FORM), permission, presets)

    def __repr__(self) -> str:
        return f"Bundle({self.name} {self.version})"

    @property
    def name(self) -> str:
        """The bundle's folder name, which is its name in the model zoo's convention."""
        return self.path.resolve().name

    @property
    def version(self) -> str:
        """The version that the metadata states."""
        return str(self.metadata.get("version", "unknown"))

    def config_file(self, name: str) -> Path:
        """The file of the config ``name``: ``configs/NAME.json``, else ``.yaml`` or ``.yml``.

        Raises
        ------
        BundleError
            If there is none.
        """
        found = config_file(self.path, name)
        if found is None:
            raise BundleError(f"bundle {self.name} has no configs/{name}.json or .yaml; it cannot be used for this")
        return found

    def config(self, name: str) -> dict[str, Any]:
        """Read the config ``name`` as plain data, unparsed: expressions stay strings."""
        return read_config(self.config_file(name))

    @cached_property
    def inference(self) -> dict[str, Any]:
        """``inference.json`` as plain data, with its overlaying keys in their places, less imports of no use."""
        config = self._without_clicks
        return config if self.permission == "everything" else without_needless_imports(config)

    @cached_property
    def _without_clicks(self) -> dict[str, Any]:
        return without_clicks(check_parts(laid_out(self.config("inference")), self._where("inference")))

    @cached_property
    def training(self) -> dict[str, Any]:
        """``train.json`` as plain data, with its overlaying keys and those of the presets in their places.

        One that MONAI's own trainer would run is :attr:`adopted`.
        """
        return self._training if self.adopted is None else self.adopted.config

    @cached_property
    def adopted(self) -> Adopted | None:
        """How ``train.json`` is trained by medseg, if it is written for MONAI's own trainer."""
        return adopt(self._training, self._where("train"))

    @cached_property
    def _training(self) -> dict[str, Any]:
        return check_parts(laid_out(*map(self.config, ("train", *self.presets))), self._where("train"))

    @cached_property
    def pipeline(self) -> Pipeline:
        """Where the parts of a run stand in ``inference.json``."""
        found = read_pipeline(self.inference, self._where("inference"))
        left_out = {} if self.permission == "everything" else needless_imports(self._without_clicks)
        listed = ", ".join(text[1:] for text in left_out.values())
        notes = [f"not executed, since nothing else in the config names it: {listed}"] if listed else []
        return replace(found, notes=(*found.notes, *note_on(self.inference), *notes))

    def _where(self, name: str) -> str:
        return f"{self.config_file(name).name} of {self.name}"

    def parsed(self, *places: str) -> Parsed:
        """``inference.json``, to be evaluated: all of it, or the named parts if only they are trusted.

        What is evaluated is what was judged. The id ``bundle_root`` is the bundle's folder, as if ``--bundle_root``
        named it.

        Raises
        ------
        UntrustedBundle
            If the audit finds anything outside its allow-list.
        """
        config = copy.deepcopy(self.inference)
        if "bundle_root" in config:
            config["bundle_root"] = str(self.path.resolve())
        config = portable(resolved(config, self.metadata), has_cuda=_has_cuda())
        if self.permission == "network-only":
            self._listed  # noqa: B018  asks the site's policy once
            config = trusted_parts(self.path, self.config_file("inference").name, config, places)
        else:
            self.permit("infer", inference=config)
        return Parsed(config, self._where("inference"))

    def check_packages(self) -> None:
        """Raise ``MissingDependency`` if a part of the run needs a package that is not installed."""
        run = self.pipeline
        parts = (run.network, run.preprocessing, run.inferer, run.postprocessing)
        check_packages(self.inference, [part for part in parts if part is not None], self._where("inference"))

    @property
    def weight_files(self) -> list[str]:
        """The files of weights that its network is filled from, as its ``inference.json`` spells them out."""
        return loaded_files(self.path, self.inference, self.pipeline)

    def permit(self, role: Role, given: Collection[str] = (), **configs: Mapping[str, Any]) -> None:
        """Pass if what ``role`` reads may be evaluated.

        Parameters
        ----------
        role
            What the bundle is opened for.
        given
            Ids in them whose values the user gave: these are not judged.
        configs
            By name, configs as they are going to be evaluated: they are judged, not what lies on disk by now.

        Raises ``UntrustedBundle`` if the audit finds anything outside its allow-list in what that role reads, or a
        policy of the site does not list the bundle.
        """
        self._listed  # noqa: B018
        if self.permission != "everything":
            read = {f"configs/{self.config_file(name).name}": config for name, config in configs.items()}
            require_trusted(self.path, role, read={METADATA: self.metadata, **read}, given=given)
        elif str(self.path.resolve()) not in sys.path:
            sys.path.append(str(self.path.resolve()))  # where its scripts are found, after everything else

    def permitted_training(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """``train.json`` as it is going to be evaluated, once it is permitted.

        ``given``: Ids and the user's values; those that it has no place for are left out. Raises ``UntrustedBundle`` as
        :meth:`permit`, ``BundleError`` as :meth:`check_trainable`.
        """
        root = str(self.path)
        values = {"bundle_root": str(self.path.resolve()) if root[:1] in "$@%" else root, **given}
        known = {name: value for name, value in values.items() if may_hold(self.training, name)}
        config = resolved(laid_out(self.training, known), self.metadata)
        if self.permission != "everything":  # MONAI's trainers are judged by what is usual for them
            check_trainer(config, self.name, self.config_file("train"))
        self.permit("train", tuple(known), train=config)
        return config

    def check_trainable(self) -> None:
        """Raise ``BundleError`` if there is no ``train.json``, no trainer in it, or one that is not medseg's."""
        check_trainer(self.training, self.name, self.config_file("train"))

    @cached_property
    def _listed(self) -> bool:
        """True, once no policy of the site has anything against it (:mod:`medseg.bundle.policy`)."""
        require_listed(self)
        return True

    @cached_property
    def sums(self) -> dict[str, str]:
        """SHA-256 of each file that a prediction depends on: metadata, inference config, weights and trust."""
        trust = sorted((self.path / "trust").glob("*")) if (self.path / "trust").is_dir() else []
        weights = dict.fromkeys([*WEIGHT_FILES, *weight_files(self.path)])
        config = config_file(self.path, "inference")
        inference = "" if config is None else f"configs/{config.name}"
        names = [METADATA, inference, *weights, *(f"trust/{file.name}" for file in trust if file.is_file())]
        return {name: sha256_file(self.path / name) for name in names if (self.path / name).is_file()}

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of everything that a prediction depends on."""
        lines = "".join(f"{digest}  {name}\n" for name, digest in self.sums.items())
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def packages(self) -> dict[str, str]:
        """Packages and versions that its metadata name, and which are not installed."""
        return stated_packages(self.metadata)

    @property
    def input_channels(self) -> int:
        """Number of channels of the network's image input, without those that its preprocessing adds for clicks."""
        image = self._tensor("inputs", "image")
        stated, named = int(image.get("num_channels", 1)), image.get("channel_def") or {}
        if len(named) < stated and config_file(self.path, "inference"):
            return intensity_channels(self.inference) or stated
        return stated

    @property
    def dimensions(self) -> int:
        """Number of axes of the network's image input, 3 if the metadata do not say."""
        return len(self._tensor("inputs", "image").get("spatial_shape") or (0, 0, 0))

    @property
    def output_channels(self) -> int:
        """Number of channels of the network's output, background included."""
        if "num_channels" not in (described := self._tensor("outputs", "pred")):
            raise BundleError(f"configs/metadata.json of {self.name} does not say num_channels of its output; add it")
        channels, named = int(described["num_channels"]), self._channels()
        # one channel for many names is a label map, of a network that is asked class by class
        return max(named) + 1 if channels == 1 and len(named) > 2 else channels

    @property
    def has_background(self) -> bool:
        """Whether channel 0 of the network's output is the background, by what ``channel_def`` says of it.

        A channel that ``channel_def`` does not name is the background, too. One channel alone stands for its structure.
        """
        name = self._channels().get(0)
        if "labels" in self._tensor("outputs", "pred") and self.scheme.regions:
            return False
        return self.output_channels > 1 and (name is None or name.strip().lower() in _BACKGROUND)

    @property
    def scheme(self) -> LabelScheme:
        """What the values of its label maps mean; its output's ``labels`` (as in a datalist) may declare regions."""
        if "labels" not in (described := self._tensor("outputs", "pred")):
            return LabelScheme(self.labels)
        try:
            return LabelScheme.of(described, f"the output of {self.name}")
        except UsageError as error:
            raise BundleError(str(error)) from error

    @property
    def labels(self) -> dict[int, str]:
        """Names of the structures by label value, without the background; of a region: by the value it paints.

        The label of a channel is its number; that of an only channel is 1, whichever number ``channel_def`` gives it.
        """
        return self.stated_labels if self._named is None else self._named

    @property
    def stated_labels(self) -> dict[int, str]:
        """The same by the metadata alone, whatever the post-processing makes of the channels."""
        if "labels" in self._tensor("outputs", "pred"):
            return self.scheme.structures
        named = self._channels()
        if self.output_channels == 1:
            if self._tensor("outputs", "pred").get("type") == "image":
                return {}
            first = next((name for name in named.values() if name.strip().lower() not in _BACKGROUND), None)
            return {} if first is None else {1: first}
        return {value: name for value, name in named.items() if value > 0 or not self.has_background}

    def name_values(self, names: Mapping[int, str]) -> None:
        """Take other names of structures by label value, where its post-processing renumbers the channels."""
        self._named = dict(names)

    @property
    def label_codes(self) -> dict[int, Any]:
        """Coded terms of the structures (for DICOM objects) by label value; empty if the bundle states none."""
        codes = self._tensor("outputs", "pred").get("segment_codes", self.metadata.get("segment_codes", {}))
        found = {int(value): code for value, code in codes.items()}
        return {1: found[0]} if self.output_channels == 1 and set(found) == {0} else found

    @property
    def training_range(self) -> dict[str, Any] | None:
        """Spacing and field of view seen in training (RAS axis order, in mm) and the modalities, if stated."""
        value = self.metadata.get("training_range")
        return dict(value) if isinstance(value, Mapping) else None

    @property
    def import_state(self) -> str:
        """Where an imported bundle comes from, and whether its label maps were compared there; empty for others."""
        if not (facts := self.metadata.get("imported")):
            return ""
        checked = facts.get("checked")
        found = "not checked: nobody has compared its label maps with those of its origin"
        if checked:
            different, voxels = checked.get("different_voxels", 0), checked.get("voxels", 0)
            mirror = f" with --mirror {','.join(checked['mirror'])}" if checked.get("mirror") else ""
            compared = f"label maps of {checked.get('cases', 0)} cases equal those of its origin{mirror}"
            found = f"checked: {compared} in all but {different} of {voxels} voxels"
        return f"imported ({facts.get('origin', 'of unknown origin')}), {found}"

    def check_range(self, geometry: Geometry, modality: str | None = None) -> None:
        """Refuse a volume whose grid is far from what the bundle was trained on.

        Spacing and extent are compared along the array axes, each assigned to the closest patient axis, so that an
        oblique acquisition is judged by its own size.

        Parameters
        ----------
        geometry
            The grid of the volume (after a crop, if one was asked for).
        modality
            DICOM modality code such as ``"MR"``, if known.

        Raises
        ------
        Refusal
            ``outside-training-range`` or ``wrong-modality``.
        """
        if (limits := self.training_range) is None:
            return
        allowed = limits.get("modality") or []
        if modality and allowed and modality not in allowed:
            why = f"found {modality}, {self.name} was trained on {', '.join(allowed)}; choose such a series"
            raise Refusal("wrong-modality", why)
        spacing = [geometry.spacing_mm[axis] for axis in ras_axes(geometry)]
        extent = [geometry.spacing_mm[axis] * geometry.shape[axis] for axis in ras_axes(geometry)]
        checks = (
            ("spacing_mm", "voxel spacing", spacing, "choose another series"),
            ("fov_mm", "field of view", extent, f"crop to the region the bundle expects with --roi{self._or_locate}"),
        )
        for key, what, found, remedy in checks:
            low, high = (limits.get(key, {}).get(name) for name in ("low", "high"))
            if low and high and not all(a <= value <= b for a, value, b in zip(low, found, high, strict=True)):
                raise Refusal(
                    "outside-training-range",
                    f"found a {what} of {millimetres(found)}, {self.name} was trained on {millimetres(low)} to"
                    f" {millimetres(high)} (left-right, posterior-anterior, inferior-superior); {remedy}",
                )

    @property
    def _or_locate(self) -> str:
        """How another bundle finds what this one labels, for a message."""
        recipe = self.metadata.get("locate") or {}
        if not (recipe.get("bundle") and recipe.get("structure")):
            return ", or have another bundle find it first with --locate BUNDLE:STRUCTURE"
        return f", or have {recipe['bundle']} find the {recipe['structure']} first with --locate auto"

    def load_network(self, device: str | torch.device = "cpu") -> torch.nn.Module:
        """Build the network that ``network_def`` names and load the weights, strictly, in evaluation mode.

        Raises
        ------
        UntrustedBundle
            If the audit finds anything outside its allow-list.
        BundleError
            If weights are missing, do not fit, are not finite, or the two weight files contradict each other.
        MissingDependency
            If a package that the network needs is not installed.
        """
        pipeline = self.pipeline
        parsed = self.parsed(pipeline.network, *weight_places(pipeline))
        self.check_packages()

        def build() -> torch.nn.Module:
            with arrays_as_data():
                network: torch.nn.Module | None = parsed.afresh().get(pipeline.network)
            if network is None:
                raise BundleError(f"{self._where('inference')} has no {pipeline.network} that is not disabled")
            return network

        return filled_network(build, self.path, self.inference, pipeline, parsed).eval().to(device)

    def _channels(self) -> dict[int, str]:
        """What ``channel_def`` says of the channels of the network's output."""
        definition = self._tensor("outputs", "pred").get("channel_def") or {}
        return {int(value): str(name) for value, name in sorted(definition.items(), key=lambda item: int(item[0]))}

    def _tensor(self, side: str, name: str) -> dict[str, Any]:
        """Description of one input or output; the first one if none has the usual name."""
        described = self.metadata.get("network_data_format", {}).get(side, {})
        if not described:
            raise BundleError(f"configs/metadata.json of {self.name} lacks network_data_format.{side}")
        return dict(described.get(name) or next(iter(described.values())))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
