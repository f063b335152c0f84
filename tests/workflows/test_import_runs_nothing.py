"""Nothing of a source runs while it is imported, of whichever kind: told by Python itself, for every one of them."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.conversion.imported import ImportOptions
from medseg.errors import MedsegError
from medseg.workflows.importing import import_bundle
from tests.conversion.nnunet_model import Fake, checkpoint_of, write_model
from tests.conversion.test_zoo import packed, write
from tests.conversion.tfjs_models import TfjsModel

_WATCHED: list[tuple[str, str]] = []
_EVENTS = {"exec", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "marshal.loads"}
_RAN = "the code of the source ran"
_EVIL = f"raise SystemExit({_RAN!r})\n"
_ON: list[bool] = []


def _hook(event: str, values: tuple[Any, ...]) -> None:
    if not _ON or event not in _EVENTS:
        return
    code = values[0] if values else None
    # dataclasses and torch compile lines of their own
    if event != "exec" or "/source/" in getattr(code, "co_filename", "") or _RAN in getattr(code, "co_consts", ()):
        _WATCHED.append((event, repr(values)[:200]))


sys.addaudithook(_hook)


class _Call:
    def __reduce__(self) -> Any:
        return (exec, (_EVIL,))


def _zoo(folder: Path) -> Path:
    source = write(folder / "spleen_ct_segmentation")
    config = json.loads((source / "configs" / "inference.json").read_text())
    config["imports"] = ["$import scripts.networks", "$import sitecustomize_of_the_source"]
    (source / "configs" / "inference.json").write_text(json.dumps(config))
    (source / "sitecustomize_of_the_source.py").write_text(_EVIL)
    return source


def _zip(folder: Path) -> Path:
    return packed(_zoo(folder), folder / "bundle.zip")


def _nnunet(folder: Path) -> Path:
    source = write_model(folder, Fake())
    for name in ("__init__.py", "numpy.py", "torch.py"):
        (source / name).write_text(_EVIL)
    return source


def _pickled(folder: Path) -> Path:
    source = _nnunet(folder)
    torch.save({**checkpoint_of(Fake(), 0), "logging": _Call()}, source / "fold_0" / "checkpoint_final.pth")
    return source


def _layers(folder: Path) -> Path:
    source = TfjsModel.stack().write(folder / "net")
    (source / "__init__.py").write_text(_EVIL)
    return source


def _weights(folder: Path) -> Path:
    state = {"0.weight": torch.rand(2, 1, 1, 1, 1), "0.bias": torch.rand(2), "evil": _Call()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.pt").write_bytes(buffer.getvalue())
    return folder / "net.pt"


@pytest.mark.parametrize("make", [_zoo, _zip, _nnunet, _pickled, _layers, _weights])
def test_import_runs_no_line_of_the_source(make: Callable[[Path], Path], tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    network = tmp_path / "network.json"
    network.write_text(json.dumps({"_target_": "BasicUNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2}))
    options = ImportOptions("any_ct_model", orientation="RAS", network=network)
    for name in ("first", "watched"):  # the first time imports what medseg itself needs
        _WATCHED.clear()
        _ON.extend([True] if name == "watched" else [])
        try:
            import_bundle(source, tmp_path / name, options)
        except MedsegError:
            assert make in (_pickled, _weights)
        finally:
            _ON.clear()
    assert not _WATCHED


def test_the_hook_sees_what_runs() -> None:
    _WATCHED.clear()
    _ON.append(True)
    try:
        with pytest.raises(SystemExit):
            exec(_EVIL)
    finally:
        _ON.clear()
    assert [event for event, _ in _WATCHED] == ["exec"]
