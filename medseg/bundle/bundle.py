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
from medseg.bundle.described import DescribedBundle
from medseg.bundle.find import METADATA, find_bundle, is_bundle, no_bundle
from medseg.bundle.packages import check_packages
from medseg.bundle.pipeline import Pipeline, check_trainer, read_pipeline
from medseg.bundle.policy import require_listed, require_unchanged
from medseg.bundle.portable import arrays_as_data, portable
from medseg.bundle.promptable import intensity_channels, note_on, without_clicks
from medseg.bundle.resolve import may_hold, needless_imports, resolved, without_needless_imports
from medseg.bundle.text_limits import METADATA_FORM
from medseg.errors import BundleError, UsageError
from medseg.files import sha256_file
from medseg.json_shape import misfit, without_nulls

if TYPE_CHECKING:
    import torch

Permission = Literal["audited", "network-only", "everything"]


class Bundle(DescribedBundle):
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

    @classmethod
    def open(cls, path: str | Path, permission: Permission = "audited", presets: Sequence[str] = ()) -> Bundle:
        """Open the bundle in the folder ``path``, or of that name (:func:`~medseg.bundle.find.find_bundle`).

        Raises ``UsageError`` if there is no such folder, or it holds no ``configs/metadata.json``; ``BundleError`` if
        the metadata cannot be parsed, or what medseg reads of them has another form.
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

    def config_file(self, name: str) -> Path:
        """The file of the config ``name``: ``configs/NAME.json``, else ``.yaml`` or ``.yml``.

        Raises ``BundleError`` if there is none.
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
        named it. Raises ``UntrustedBundle`` if the audit finds anything outside its allow-list.
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
    def input_channels(self) -> int:
        """Number of channels of the network's image input, without those that its preprocessing adds for clicks."""
        image = self._tensor("inputs", "image")
        stated, named = int(image.get("num_channels", 1)), image.get("channel_def") or {}
        if len(named) < stated and config_file(self.path, "inference"):
            return intensity_channels(self.inference) or stated
        return stated

    def load_network(self, device: str | torch.device = "cpu") -> torch.nn.Module:
        """Build the network that ``network_def`` names and load the weights, strictly, in evaluation mode.

        Raises
        ------
        UntrustedBundle
            If the audit finds anything outside its allow-list, or a policy does not list what was loaded.
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

        network = filled_network(build, self.path, self.inference, pipeline, parsed)
        require_unchanged(self, Bundle.open(self.path))
        return network.eval().to(device)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
