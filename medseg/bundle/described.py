"""What a bundle says of itself in its metadata: channels, structures, the range of images, where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.bundle.packages import stated_packages
from medseg.errors import BundleError, Refusal, UsageError
from medseg.geometry import Geometry, millimetres, ras_axes
from medseg.labels.scheme import LabelScheme

BACKGROUND = frozenset({"background", "bg", "back", "none", "unlabelled", "unlabeled", "no label", ""})
"""What the background is called, in small letters."""


class DescribedBundle:
    """A bundle in the folder ``path`` as its ``metadata`` describe it."""

    path: Path
    metadata: dict[str, Any]
    _named: dict[int, str] | None = None

    @property
    def name(self) -> str:
        """The bundle's folder name, which is its name in the model zoo's convention."""
        return self.path.resolve().name

    @property
    def version(self) -> str:
        """The version that the metadata states."""
        return str(self.metadata.get("version", "unknown"))

    @property
    def packages(self) -> dict[str, str]:
        """Packages and versions that its metadata name, and which are not installed."""
        return stated_packages(self.metadata)

    @property
    def input_names(self) -> list[str]:
        """Names of the input's channels in their order, in small letters; empty if not every channel has one."""
        named = self._tensor("inputs", "image").get("channel_def") or {}
        numbers = [str(number) for number in range(int(self._tensor("inputs", "image").get("num_channels", 1)))]
        return [str(named[number]).strip().lower() for number in numbers] if numbers == sorted(named, key=int) else []

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
        return self.output_channels > 1 and (name is None or name.strip().lower() in BACKGROUND)

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
            first = next((name for name in named.values() if name.strip().lower() not in BACKGROUND), None)
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

        ``geometry``: the grid of the volume (after a crop, if one was asked for). ``modality``: DICOM modality code
        such as ``"MR"``, if known. Raises ``Refusal``: ``outside-training-range`` or ``wrong-modality``.
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
