"""nnU-Net v2 models become bundles that label as nnU-Net's formulas do; nothing of them is executed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from medseg.bundle import Bundle
from medseg.bundle.findings import blocks
from medseg.conversion.imported import ImportOptions
from medseg.conversion.nnunet import import_nnunet, is_nnunet
from medseg.conversion.nnunet_source import read_checkpoint
from medseg.errors import BundleError, UntrustedBundle, UsageError
from medseg.inference.predictor import Predictor
from medseg.ingest import save_nifti
from medseg.sharing.archive import pack, unpack
from medseg.sharing.verify import verify
from tests.conversion.hostile import Shadowed
from tests.conversion.nnunet_model import (
    ANISO,
    ANISO_STRIDES,
    Fake,
    checkpoint_of,
    plans_of,
    predicted,
    scores_of,
    state_of,
    write_model,
)

LPS = ImportOptions(orientation="LPS")
_SIGN = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
ANISOTROPIC = Fake(kernels=ANISO, strides=ANISO_STRIDES, patch=(8, 16, 16), spacing=(4.0, 1.0, 1.0))

FLAT = Fake(
    flat=True, kernels=((1, 3, 3),) * 3, strides=((1, 1, 1), (1, 2, 2), (1, 2, 2)), patch=(1, 16, 16), mirror=(1, 2)
)


def made(tmp_path: Path, fake: Fake, options: ImportOptions = LPS) -> Path:
    """The bundle of a fake model."""
    source = write_model(tmp_path / "model", fake)
    (tmp_path / "bundles").mkdir(exist_ok=True)
    return import_nnunet(source, tmp_path / "bundles", options).path


def images(fake: Fake, shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    """Images ``(C, x, y, z)`` that are zero along their edges, and in a hole."""
    drawn = np.random.default_rng(seed).normal(60, 90, (len(fake.channels), *shape)).astype(np.float32)
    inside = np.zeros(shape, dtype=bool)
    inside[2:-1, 1:-2, 1:] = True
    inside[6:9, 6:9, 3:6] = False
    return np.where(inside, drawn, 0).astype(np.float32)


def affine_of(orientation: str, spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """The affine of a file whose axes run so."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, letter in enumerate(orientation):
        row, sign = _SIGN[letter]
        affine[row, axis] = sign * spacing[axis]
    return affine


@pytest.mark.parametrize(
    "fake",
    [
        pytest.param(Fake(), id="plain"),
        pytest.param(replace(ANISOTROPIC, old=True, filters=(4, 8, 8)), id="older-plans-anisotropic"),
        pytest.param(Fake(residual=True, depths=(1, 2, 2), decoder=(1, 1)), id="residual"),
        pytest.param(replace(ANISOTROPIC, residual=True, depths=(1, 2, 1), decoder=(2, 1)), id="residual-anisotropic"),
        pytest.param(Fake(depths=(1, 3, 2), decoder=(1, 2)), id="other-depths"),
    ],
)
def test_networks_answer_as_nnunets_weights_do(fake: Fake, tmp_path: Path) -> None:
    network = Bundle.open(made(tmp_path, fake)).load_network()
    x = torch.randn(1, len(fake.channels), 8, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        difference = (network(x) - scores_of(fake, state_of(fake, 0), x)).abs().max()
    assert type(network).__name__ == ("DynUNet" if fake == Fake() else "NNUNet")
    assert difference < (1e-5 if fake == Fake() else 1e-6)


@pytest.mark.parametrize(
    ("fake", "orientation", "mirrored"),
    [
        pytest.param(Fake(), "LPS", False, id="plain"),
        pytest.param(replace(ANISOTROPIC, transpose=(1, 2, 0)), "PIR", True, id="transposed-anisotropic-mirrored"),
        pytest.param(
            Fake(
                channels=("T1", "T2"),
                schemes=("ZScoreNormalization",) * 2,
                masked=(True, False),
                labels={"background": 0, "whole": [1, 2], "core": 2},
                order=(1, 2),
                patch=(32, 16, 16),
            ),
            "RAS",
            False,
            id="two-channels-masked-regions-padded",
        ),
        pytest.param(FLAT, "LPS", True, id="slices-mirrored"),
        pytest.param(Fake(folds=2, residual=True, decoder=(1, 1), mirror=(1,)), "LPS", True, id="folds-residual"),
    ],
)
def test_labels_are_nnunets(fake: Fake, orientation: str, mirrored: bool, tmp_path: Path) -> None:
    spacing = (1.0, 1.2, 2.0) if fake.spacing[0] < 2 else (4.5, 0.9, 1.1)
    array = images(fake, (22, 20, 14))
    names = json.loads((path := made(tmp_path, fake, ImportOptions(orientation=orientation))).joinpath(
        "configs", "metadata.json").read_text())["imported"]["mirror"]  # fmt: skip
    expected = predicted(fake, array.transpose(0, 3, 2, 1), spacing[::-1], mirrored=mirrored).transpose(2, 1, 0)
    image = MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(affine_of(orientation, spacing)))
    found = Predictor(path, "cpu", mirror=names if mirrored else ()).predict(image).label_map
    assert len(np.unique(expected)) > 1
    assert (found != expected).mean() <= 1e-4
    flipped = MetaTensor(torch.from_numpy(array[:, ::-1].copy()), affine=image.affine.clone())
    flipped.affine[:3, 0] *= -1  # the same patient, stored from the other side
    other = Predictor(path, "cpu", mirror=names if mirrored else ()).predict(flipped).label_map
    assert np.array_equal(other[::-1], found)


def test_bundle_verifies_packs_and_runs_elsewhere(tmp_path: Path) -> None:
    path = made(tmp_path, Fake(folds=2, labels={"background": 0, "liver": 1, "ignore": 2}))
    assert not blocks(verify(path))
    bundle = Bundle.open(path)
    assert bundle.labels == {1: "liver"}
    assert bundle.metadata["imported"]["sha256"].keys() >= {"plans.json", "fold_1/checkpoint_final.pth"}
    packed = pack(path, tmp_path / "packed.zip")
    unpacked = unpack(packed.path, tmp_path / "elsewhere").path
    x = torch.zeros(1, 1, 16, 16, 16)
    with torch.inference_mode():
        assert torch.equal(Bundle.open(unpacked).load_network()(x), bundle.load_network()(x))


@pytest.mark.slow
@pytest.mark.parametrize("fake", [Fake(folds=2), Fake(channels=("CT", "CT"), schemes=("CTNormalization",) * 2,
                                                      masked=(False, False))])  # fmt: skip
def test_monai_bundle_run_gives_the_same(fake: Fake, tmp_path: Path) -> None:
    path, array = made(tmp_path, fake), images(fake, (22, 20, 14))
    for number, channel in enumerate(array):
        save_nifti(channel, affine_of("LPS", (1.0, 1.2, 2.0)), tmp_path / "images" / f"case_{number:04d}.nii.gz")
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(path / "configs/inference.json")]
    given = {"bundle_root": path, "dataset_dir": tmp_path / "images", "output_dir": tmp_path / "out"}
    command += [part for key, value in given.items() for part in (f"--{key}", str(value))]
    subprocess.run(command, check=True, capture_output=True)
    from medseg.ingest.image_files import read_image

    image = MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(affine_of("LPS", (1.0, 1.2, 2.0))))
    expected = Predictor(path, "cpu").predict(image).label_map
    assert np.array_equal(read_image(tmp_path / "out" / "case_0000_seg.nii.gz")[0], expected)


def test_zip_and_tree_are_found(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "results", Fake())
    assert is_nnunet(tmp_path / "results")
    assert not is_nnunet(tmp_path / "results" / "nothing")
    archive = shutil.make_archive(str(tmp_path / "model"), "zip", tmp_path / "results")
    (tmp_path / "out").mkdir()
    assert is_nnunet(Path(archive))
    assert not is_nnunet(folder / "plans.json")
    imported = import_nnunet(Path(archive), tmp_path / "out", LPS)
    assert imported.path.name == "dataset007_fake_3d_fullres"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [imported.path.name]
    assert any("--mirror is,ap,lr" in note for note in imported.notes)


def test_a_name_that_is_too_long_for_a_file_is_cut(tmp_path: Path) -> None:
    path = made(tmp_path, Fake(plans={"dataset_name": "Dataset001_" + "long" * 100}))
    assert re.fullmatch(r"dataset001_(long)+l?o?n?_3d_fullres", path.name)


def test_orientation_is_asked_for_or_read(tmp_path: Path) -> None:
    source = write_model(tmp_path / "model", Fake())
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="mirrored"):
        import_nnunet(source, tmp_path / "out", ImportOptions())
    with pytest.raises(UsageError, match="one letter each"):
        import_nnunet(source, tmp_path / "out", ImportOptions(orientation="RAL"))
    save_nifti(np.zeros((4, 4, 4), dtype=np.int16), affine_of("PIR", (1.0, 1.0, 1.0)), tmp_path / "like.nii.gz")
    path = import_nnunet(source, tmp_path / "out", ImportOptions(like=tmp_path / "like.nii.gz")).path
    assert Bundle.open(path).inference["preprocessing"]["transforms"][2]["axcodes"] == "RIP"
    reader = Fake(plans={"image_reader_writer": "NibabelIOWithReorient"})
    assert Bundle.open(made(tmp_path / "b", reader, ImportOptions())).metadata["imported"]["orientation"] == "RAS"


def test_mirroring_is_that_of_the_origin(tmp_path: Path) -> None:
    path = made(tmp_path, Fake(mirror=(0,), labels={"background": 0, "left lung": 1, "right lung": 2}))
    assert Predictor(path, "cpu", mirror=("is",)).mirror == ("is",)
    with pytest.raises(UsageError, match="not trained on images mirrored so"):
        Predictor(path, "cpu", mirror=("lr",))


def _with(**settings: Any) -> Fake:
    return Fake(settings=settings)


@pytest.mark.parametrize(
    ("fake", "message"),
    [
        (_with(previous_stage="3d_lowres"), "cascade"),
        (_with(patch_size=[16, 16]), "three axes"),
        (_with(normalization_schemes=["MyNormalization"]), "MyNormalization"),
        (_with(normalization_schemes=["CTNormalization"] * 2), "belong"),
        (_with(resampling_fn_data="mine"), "mine"),
        (_with(spacing=[1.0, "2", 1.0]), "spacing"),
        (_with(spacing=[1.0, 0.0, 1.0]), "spacing"),
        (_with(patch_size=[16, -1, 16]), "patch_size"),
        (_with(architecture={"network_class_name": "os.system", "arch_kwargs": {}}), "system"),
        (_with(architecture={"network_class_name": "x.PlainConvUNet", "arch_kwargs": {"n_stages": 10**9}}), "n_stages"),
        (_with(preprocessor_name="Mine"), "Mine"),
        (Fake(plans={"transpose_forward": [0, 0, 1]}), "three axes"),
        (Fake(plans={"configurations": {"3d_fullres": {"inherits_from": "3d_fullres"}}}), "spacing"),
        (Fake(plans={"configurations": []}), "configurations"),
        (Fake(plans={"foreground_intensity_properties_per_channel": {"0": {}}}), "percentile_00_5"),
        (Fake(labels={"background": 0, "a": 1, "b": 3}), "without gaps"),
        (Fake(labels={"background": 0, "a": [1, 2], "b": 1, "c": 2, "d": 3}), "regions_class_order"),
        (Fake(labels={"background": 0, "a": "x"}), "'a'"),
        (Fake(labels={"background": 0, "a": 1, "$__import__('os').abort()": 2}), "abort"),
        (Fake(channels=("$open('x', 'w')",)), "open"),
        (_with(architecture={"network_class_name": "x.PlainConvUNet", "arch_kwargs": {
            **plans_of(Fake())["configurations"]["base"]["architecture"]["arch_kwargs"], "n_conv_per_stage": 10**6}}),
         "n_conv_per_stage"),
        (Fake(plans=plans_of(Fake(filters=(4, 6, 10)))), "does not hold the network"),
        (_with(architecture=None), "UNet_class_name"),
        (_with(preprocessor_name=7), "preprocessor_name"),
        (Fake(plans={"label_manager": "Mine"}), "Mine"),
        (_with(resampling_fn_data_kwargs={"separate_z_anisotropy_threshold": -1}), "threshold"),
        (_with(patch_size=[16, 18, 16]), "no multiple"),
        (Fake(strides=((2, 2, 2),) * 3), "first stride"),
        (Fake(kernels=((2, 2, 2),) * 3), "even size"),
        (Fake(plans={"foreground_intensity_properties_per_channel": {"0": {
            "mean": 10**400, "std": 1, "percentile_00_5": 0, "percentile_99_5": 1}}}), "intensities.mean"),
    ],
)  # fmt: skip
def test_what_would_be_run_otherwise_is_refused(fake: Fake, message: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=message):
        made(tmp_path, fake)
    assert not list((tmp_path / "bundles").iterdir())


class _Call:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize(
    "change",
    [
        {"logging": _Call()},
        {"network_weights": {"a": torch.zeros(1).expand(1 << 40)}},
        {"network_weights": {}},
        {"network_weights": [1, 2]},
        {"init_args": {"configuration": "../../elsewhere"}},
        {"logging": {((1,), 2): 3}},
        {"network_weights": {key: value * torch.nan for key, value in state_of(Fake(), 0).items()}},
        {"network_weights": {key: value.int() for key, value in state_of(Fake(), 0).items()}},
        {"network_weights": {**state_of(Fake(), 0), "module.decoder.seg_layers.1.bias": torch.zeros(3)}},
        {"inference_allowed_mirroring_axes": (0, 5)},
    ],
)
def test_hostile_checkpoints_are_refused(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_model(tmp_path / "model", Fake())
    torch.save({**checkpoint_of(Fake(), 0), **change}, source / "fold_0" / "checkpoint_final.pth")
    (tmp_path / "out").mkdir()
    with pytest.raises(BundleError):
        import_nnunet(source, tmp_path / "out", LPS)
    assert not list((tmp_path / "out").iterdir())
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("hidden", ["items", "values", "keys", "get"])
def test_a_table_that_hides_its_methods_is_read_all_the_same(hidden: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    inner = {**checkpoint_of(Fake(), 0), "network_weights": Shadowed(state_of(Fake(), 0), hidden)}
    inner["init_args"] = Shadowed({"configuration": "3d_fullres"}, hidden)
    torch.save(Shadowed(inner, hidden), path)
    found = read_checkpoint(path)
    assert (found.configuration, found.state.keys()) == ("3d_fullres", state_of(Fake(), 0).keys())


@pytest.mark.parametrize("name", ["plans.json", "fold_0", "fold_0/checkpoint_final.pth", "."])
def test_links_out_of_the_folder_are_not_followed(name: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "model", Fake())
    (tmp_path / "out").mkdir()
    (source / name).rename(tmp_path / "elsewhere")
    (source / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UntrustedBundle, match="a link that leads out of"):
        import_nnunet(tmp_path / "model", tmp_path / "out", LPS)
    assert not list((tmp_path / "out").iterdir())


def test_bare_pickle_is_refused(tmp_path: Path) -> None:
    source = write_model(tmp_path / "model", Fake())
    torch.save(
        checkpoint_of(Fake(), 0), source / "fold_0" / "checkpoint_final.pth", _use_new_zipfile_serialization=False
    )
    (tmp_path / "out").mkdir()
    with pytest.raises(UntrustedBundle, match="zip archive"):
        import_nnunet(source, tmp_path / "out", LPS)


@pytest.mark.parametrize(("name", "content"), [("../../plans.json", b"{}"), ("x/plans.json", b" " * (40 << 20))])
def test_hostile_zips_are_refused(name: str, content: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
        archive.writestr("x/dataset.json", "{}")
        archive.writestr("x/fold_0/checkpoint_final.pth", b"0")
    (tmp_path / "out").mkdir()
    assert is_nnunet(tmp_path / "model.zip")
    with pytest.raises(UntrustedBundle, match="not unpacked"):
        import_nnunet(tmp_path / "model.zip", tmp_path / "out", LPS)
    assert not list((tmp_path / "out").iterdir())
    assert not (tmp_path / "plans.json").exists()


@pytest.mark.parametrize("names", [{"²": "CT"}, {"9" * 5000: "CT"}, {"1": "CT"}, {"T1": "CT"}])
def test_channels_are_numbered(names: dict[str, str], tmp_path: Path) -> None:
    source = write_model(tmp_path / "model", Fake())
    dataset = json.loads((source / "dataset.json").read_text())
    (source / "dataset.json").write_text(json.dumps({**dataset, "channel_names": names}))
    (tmp_path / "out").mkdir()
    with pytest.raises(BundleError, match="channel"):
        import_nnunet(source, tmp_path / "out", LPS)


def test_what_is_null_is_absent(tmp_path: Path) -> None:
    kwargs = {"order": 3, "aniso_axis_mode": None, "separate_z_anisotropy_threshold": None}
    fake = Fake(
        settings={"preprocessor_name": None, "resampling_fn_data_kwargs": kwargs}, plans={"label_manager": None}
    )
    config = json.loads((made(tmp_path, fake) / "configs" / "inference.json").read_text())
    forth = config["preprocessing"]["transforms"][-1]["forth"]
    assert (forth["mode_z"], forth["threshold"]) == ("nearest-exact", 3.0)


def test_no_random_numbers_are_drawn_for_weights_without_memory(tmp_path: Path) -> None:
    """For these torch imports its compiler, which takes seconds."""

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    seen: set[str] = set()
    with Seen():
        made(tmp_path, Fake())
    assert "empty" in seen
    assert not {name for name in seen if name.endswith(("normal_", "uniform_"))}


_WATCHED: list[str] = []
# not "compile": the audit parses expressions with ast; whatever ran would have to pass "exec"
_EVENTS = {"exec", "import", "pickle.find_class", "marshal.loads", "os.system", "subprocess.Popen"}


def test_import_executes_nothing(tmp_path: Path) -> None:
    made(tmp_path / "first", Fake())  # imports what medseg itself needs
    source = write_model(tmp_path / "model", Fake())
    (tmp_path / "out").mkdir()
    watching = [True]
    sys.addaudithook(lambda event, _: _WATCHED.append(event) if watching and event in _EVENTS else None)
    import_nnunet(source, tmp_path / "out", LPS)
    watching.clear()
    assert not _WATCHED
