"""Export a bundle's network for other runtimes, each file compared with the original before it is handed over.

Only the network is exported here; :mod:`medseg.conversion.export_pipeline` puts what surrounds it beside it.
"""

from __future__ import annotations

import itertools
import math
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from medseg.bundle import Bundle
from medseg.bundle.config import item_at
from medseg.errors import BundleError, MissingDependency, UsageError
from medseg.files import atomic_path

if TYPE_CHECKING:
    import torch

    Runner = Callable[[torch.Tensor], torch.Tensor]

ExportFormat = Literal["torchscript", "onnx", "openvino"]
_WINDOWS = 4
_TOLERANCE = 1e-3
_OPSET = 17
_LARGEST_WINDOW = 1 << 28


@dataclass(frozen=True)
class Exported:
    """An exported network and how far it is from the original.

    ``path`` is the file (``.xml`` with a ``.bin`` beside it for OpenVINO), ``max_difference`` the largest difference of
    a logit relative to the largest logit, ``label_agreement`` the fraction of voxels that get the same label, over
    ``windows`` windows, cut from an image if they are ``real_windows``, else drawn at random.
    """

    path: Path
    format: ExportFormat
    max_difference: float
    label_agreement: float
    windows: int
    real_windows: bool


def export(
    bundle: str | Path | Bundle,
    format: ExportFormat,
    output: str | Path,
    *,
    images: Sequence[str | Path] = (),
) -> Exported:
    """Write the bundle's network to ``output`` and compare it with the original on windows.

    Parameters
    ----------
    bundle
        The bundle or its folder; it must pass the audit.
    format
        ``torchscript``, ``onnx`` or ``openvino``.
    output
        File to write; ``.xml`` for OpenVINO.
    images
        NIfTI files (one channel each) to cut windows from, preprocessed as the bundle does. Without them the windows
        are smooth noise of the declared shape.

    Raises
    ------
    BundleError
        If the exported network answers differently from the original; nothing is written then.
    MissingDependency
        If the runtime that must check the export is not installed.
    """
    import torch

    if format not in get_args(ExportFormat):
        raise UsageError(f"the format is {format!r}, expected one of {', '.join(get_args(ExportFormat))}")
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    network = opened.load_network()
    windows = list(itertools.islice(_windows(opened, images), _WINDOWS))
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        draft = Path(folder) / Path(output).name
        run = _WRITERS[format](network, windows[0], draft)
        difference, agreement = _compare(network, run, windows, overlapping=bool(opened.scheme.regions))
        if difference > _TOLERANCE:
            raise BundleError(
                f"the {format} export differs from the original by {difference:.2g} of the largest logit, "
                f"expected at most {_TOLERANCE:g}; nothing was written"
            )
        for made in sorted(Path(folder).iterdir(), reverse=True):  # .bin after .xml would leave a half export
            with atomic_path(Path(output).with_name(made.name)) as partial:
                shutil.copyfile(made, partial)
    return Exported(Path(output), format, difference, agreement, len(windows), bool(images))


def _windows(bundle: Bundle, images: Sequence[str | Path]) -> Iterator[torch.Tensor]:
    """Windows (1, C, H, W, D) of the inferer's size: from preprocessed images, else smooth noise."""
    inferer = item_at(bundle.inference, bundle.pipeline.inferer or "inferer")
    size = inferer.get("roi_size") if isinstance(inferer, dict) else None
    if not (isinstance(size, list) and len(size) == 3 and all(isinstance(n, int) and n > 0 for n in size)):
        raise BundleError(f"{bundle.name} states no literal inferer roi_size of three positive numbers for inference")
    if (wanted := bundle.input_channels * math.prod(size)) > _LARGEST_WINDOW:
        found = f"{bundle.name} takes windows of {wanted} numbers (channels and voxels)"
        raise BundleError(f"{found}, expected at most {_LARGEST_WINDOW}; correct roi_size or num_channels")
    if not images:
        yield from (_noise(bundle.input_channels, tuple(size), seed) for seed in range(_WINDOWS))
    for path in images:
        if not Path(path).is_file():
            raise UsageError(f"{path} is not a file; give a NIfTI file to compare on")
        transform = bundle.parsed(bundle.pipeline.preprocessing).get(bundle.pipeline.preprocessing)
        yield from _cut(transform({"image": str(path)})["image"].as_tensor().detach().clone().float(), tuple(size))


def _noise(channels: int, size: tuple[int, ...], seed: int) -> torch.Tensor:
    import torch

    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, channels, *(max(2, extent // 4) for extent in size), generator=generator)
    return torch.nn.functional.interpolate(coarse, size=size, mode="trilinear")


def _cut(volume: torch.Tensor, size: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """The central window, then the corners, padded where the volume is smaller."""
    import torch

    missing = [max(0, extent - found) for extent, found in zip(size, volume.shape[1:], strict=True)]
    padding = [amount for extent in reversed(missing) for amount in (extent // 2, extent - extent // 2)]
    volume = torch.nn.functional.pad(volume, padding)
    free = [found - extent for extent, found in zip(size, volume.shape[1:], strict=True)]
    starts = [tuple(extent // 2 for extent in free), (0, 0, 0), tuple(free)]
    for start in dict.fromkeys(starts):
        yield volume[(slice(None), *(slice(a, a + n) for a, n in zip(start, size, strict=True)))].unsqueeze(0)


def _compare(
    network: torch.nn.Module, run: Runner, windows: Sequence[torch.Tensor], *, overlapping: bool = False
) -> tuple[float, float]:
    """Largest difference relative to the largest logit, and the fraction of equal labels (of regions: of all masks)."""
    worst, equal, total = 0.0, 0, 0
    for window in windows:
        expected, found = network(window), run(window)
        if expected.shape != found.shape:
            raise BundleError(f"the export gives {tuple(found.shape)}, the original {tuple(expected.shape)}")
        scale = float(expected.abs().max()) or 1.0
        difference = float((expected - found).abs().max()) / scale
        worst = max(worst, difference if difference == difference else float("inf"))  # noqa: PLR0124  NaN is a failure
        same = ((expected > 0) == (found > 0)).all(1) if overlapping else expected.argmax(1) == found.argmax(1)
        equal += int(same.sum())
        total += expected[:, 0].numel()
    return worst, equal / total


def _torchscript(network: torch.nn.Module, window: torch.Tensor, path: Path) -> Runner:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, but it is what MONAI's ckpt_export writes
        traced = torch.jit.trace(network, window, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, path)
        loaded: Runner = torch.jit.load(path)  # type: ignore[no-untyped-call]
    return loaded


def _onnx(network: torch.nn.Module, window: torch.Tensor, path: Path) -> Runner:
    write_onnx(network, {"image": window}, "pred", path, {"image": {0: "batch"}, "pred": {0: "batch"}})
    return _openvino_runner(path)


def write_onnx(
    module: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    output: str,
    path: Path,
    axes: Mapping[str, Mapping[int, str]],
) -> None:
    """Write a module as an ONNX graph with named inputs and axes of any length, traced on examples of the inputs."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracing exporter is deprecated; it needs no second framework
            torch.onnx.export(
                module,
                tuple(inputs.values()),
                str(path),
                input_names=list(inputs),
                output_names=[output],
                dynamic_axes=axes,
                opset_version=_OPSET,
                dynamo=False,
            )
    except ImportError as error:
        raise MissingDependency("onnx", "export", "export to ONNX") from error


def _openvino(network: torch.nn.Module, window: torch.Tensor, path: Path) -> Runner:
    openvino = _import_openvino()
    if path.suffix != ".xml":
        raise UsageError(f"the output is {path.name}, OpenVINO needs a name that ends in .xml")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = openvino.convert_model(network, example_input=window)
    openvino.save_model(model, path, compress_to_fp16=False)
    return _openvino_runner(path)


def _openvino_runner(path: Path) -> Runner:
    """Run a model file (ONNX or OpenVINO) on the CPU in full precision."""
    import torch

    openvino = _import_openvino()
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(window: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(compiled(window.numpy())[0].copy())

    return run


def _import_openvino() -> Any:
    from medseg.inference.engines import import_openvino

    try:
        return import_openvino()
    except ImportError as error:
        raise MissingDependency("openvino", "export", "an export that is checked") from error


_WRITERS: dict[str, Callable[[Any, Any, Path], Any]] = {
    "torchscript": _torchscript,
    "onnx": _onnx,
    "openvino": _openvino,
}
