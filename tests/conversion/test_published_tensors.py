"""Weights without a network: TorchScript archives whose code is never run, state dicts under any name."""

from __future__ import annotations

import json
import pickle
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import BasicUNet
from safetensors.torch import save_file

from medseg.bundle import Bundle
from medseg.conversion.imported import ImportOptions
from medseg.conversion.published import import_published, is_published
from medseg.conversion.published_tensors import read_state
from medseg.errors import BundleError, UntrustedBundle, UsageError
from tests.conversion.hostile import Shadowed

_FEATURES = [4, 4, 4, 4, 4, 4]
_DEFINITION = {"_target_": "BasicUNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "features": _FEATURES}
_SEEN = {"compile", "exec", "import", "os.system", "subprocess.Popen", "pickle.find_class"}


def _network() -> torch.nn.Module:
    torch.manual_seed(0)
    return BasicUNet(3, 1, 2, _FEATURES).eval()


def _options(tmp_path: Path, content: Any = None) -> ImportOptions:
    path = tmp_path / "network.json"
    path.write_text(json.dumps(content or _DEFINITION))
    return ImportOptions("tiny_ct_segmentation", network=path)


def _script(path: Path, network: torch.nn.Module) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the format is deprecated, and shapes are compared while it is traced
        torch.jit.save(torch.jit.trace(network, torch.rand(1, 1, 32, 32, 32)), path)
    return path


def _same(folder: Path, network: torch.nn.Module) -> bool:
    loaded, own = Bundle.open(folder).load_network().state_dict(), network.state_dict()
    return all(torch.equal(loaded[key], own[key]) for key in own)


@contextmanager
def _watched(events: list[tuple[str, str]]) -> Iterator[None]:
    """Note what is compiled, executed, imported or started meanwhile; a hook stays, so that it is told to be quiet."""
    on = True

    def hook(event: str, values: tuple[Any, ...]) -> None:
        if on and event in _SEEN:
            events.append((event, repr(values)))

    sys.addaudithook(hook)
    yield
    on = False


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A traced network as a TorchScript archive."""
    return _script(tmp_path_factory.mktemp("script") / "model.pt", _network())


def _changed(source: Path, target: Path, change: dict[str, bytes]) -> Path:
    """An archive with other bytes in some members, named without the root."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, change.get(info.filename.partition("/")[2], old.read(info)))
    return target


def test_a_torchscript_archive_gives_its_weights_and_runs_nothing(
    tmp_path: Path, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    opened = zipfile.ZipFile.open

    def opening(self: zipfile.ZipFile, name: Any, *rest: Any, **options: Any) -> Any:
        read.append(getattr(name, "filename", name))
        return opened(self, name, *rest, **options)

    monkeypatch.setattr(zipfile.ZipFile, "open", opening)
    monkeypatch.setattr(torch.jit, "load", None)
    network, events = _network(), list[tuple[str, str]]()
    with _watched(events):
        state, kind = read_state(script)
    assert kind == "a TorchScript archive"
    assert [event for event in events if event[0] not in {"import", "compile", "exec"}] == []
    assert not [event for event in events if "__torch__" in event[1]]
    assert read
    assert not [name for name in read if "/code/" in name]
    assert {key: value.shape for key, value in state.items()} == {
        key: value.shape for key, value in network.state_dict().items()
    }
    assert is_published(script)
    assert _same(import_published(script, tmp_path, _options(tmp_path)).path, network)


class _Evil:
    def __reduce__(self) -> Any:
        return (print, ("executed",))


def _pickle(value: Any) -> bytes:
    return pickle.dumps(value, protocol=2)


_STORAGE = b"ctorch\nFloatStorage\n"


def _tensor(size: str, stride: str, offset: int, count: int) -> bytes:
    """A pickle of one tensor in a storage ``0`` that states ``count`` elements; sizes as opcodes."""
    what = b"((X\x07\x00\x00\x00storage" + _STORAGE + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuI" + b"%d\ntQ" % count
    view = b"I%d\n(" % offset + size.encode() + b"t(" + stride.encode() + b"t"
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n"
        + what
        + view
        + b"I00\nctorch.jit._pickle\nbuild_intlist\n(]tRtR."
    )


_NAMED = b"X\x07\x00\x00\x00storage" + _STORAGE


def _often(count: int) -> bytes:
    """A pickle of a module whose attributes all are the whole of one storage of 1 MiB."""
    whole = _tensor("I262144\n", "I1\n", 0, 262144)[2:-1]
    entries = b"".join(b"X\x03\x00\x00\x00%03d" % number + whole for number in range(count))
    return b"\x80\x02c__torch__\nX\n)\x81}(" + entries + b"ub."


_BAD: dict[str, tuple[dict[str, bytes], str]] = {
    "code": ({"data.pkl": _pickle(_Evil())}, "it names .*print"),
    "no pickle": ({"data.pkl": b"nothing"}, "cannot be read"),
    "beyond": ({"data.pkl": _tensor("I4\n", "I1\n", 3, 4), "data/0": b"\0" * 16}, "reaches beyond"),
    "huge": ({"data.pkl": _tensor("I4611686018427387904\n", "I0\n", 0, 4), "data/0": b"\0" * 16}, "reaches beyond"),
    "negative": ({"data.pkl": _tensor("I-4\n", "I1\n", 0, 4), "data/0": b"\0" * 16}, "odd size"),
    "short": ({"data.pkl": _tensor("I4\n", "I1\n", 0, 4), "data/0": b"\0" * 12}, "the pickle states 16"),
    "long": ({"data.pkl": _tensor("I4\n", "I1\n", 0, 2), "data/0": b"\0" * 16}, "expected at most 8"),
    "memo": ({"data.pkl": b"\x80\x02Nr\xff\xff\xff\x7f."}, "keeps more than it holds"),
    "ages to hash": ({"data.pkl": b"\x80\x02})" + b"2\x86" * 40 + b"K\x01s."}, "texts and numbers"),
    "ages in a set": ({"data.pkl": b"\x80\x04\x8f()" + b"2\x86" * 40 + b"\x90."}, "no archive of weights"),
    "ages in a name": ({"data.pkl": b"\x80\x02(" + _NAMED + b")" + b"2\x86" * 40 + b"NNtQ."}, "cannot be read"),
    "state of a class": ({"data.pkl": b"\x80\x02c__torch__\nX\nN}\x86b."}, "no archive of weights"),
    "shown often": ({"data.pkl": _often(30), "data/0": b"\0" * (1 << 20)}, "more than its storages hold"),
    "not finite": ({"data.pkl": _tensor("I4\n", "I1\n", 0, 4), "data/0": b"\xff" * 16}, "not finite"),
}


@pytest.mark.parametrize("name", _BAD)
def test_an_archive_that_is_damaged_or_hostile_is_refused(
    tmp_path: Path, script: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = _BAD[name]
    path = _changed(script, tmp_path / "bad.pt", change)
    with pytest.raises(BundleError, match=message):
        import_published(path, tmp_path / "out", _options(tmp_path))
    assert capsys.readouterr().out == ""
    assert not list((tmp_path / "out").glob("*"))


def test_the_hostile_tensors_are_read_where_they_are_sound(tmp_path: Path, script: Path) -> None:
    """So that the refusals above are for what they say."""
    sound = {"data.pkl": _tensor("I4\n", "I1\n", 0, 4), "data/0": b"\0" * 16}
    state, _ = read_state(_changed(script, tmp_path / "sound.pt", sound))
    assert torch.equal(state[""], torch.zeros(4))


@pytest.mark.parametrize("prefix", ["", "module.", "module.model."])
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors", ".ckpt"])
def test_a_state_dict_under_any_name_fits_the_network_that_is_named(tmp_path: Path, prefix: str, suffix: str) -> None:
    network = _network()
    state = {prefix + key: value for key, value in network.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    if suffix in {".pt", ".ckpt"}:
        torch.save(state if suffix == ".pt" else {"epoch": 3, "state_dict": state}, path)
    else:
        save_file(state, path)
    imported = import_published(path, tmp_path, _options(tmp_path))
    assert _same(imported.path, network)
    assert any(prefix in note and "left out" in note for note in imported.notes) == bool(prefix)
    assert any("preprocessing" in note for note in imported.notes)


@pytest.mark.parametrize("hidden", ["values", "items", "get"])
def test_a_table_that_hides_its_methods_is_read_all_the_same(tmp_path: Path, hidden: str) -> None:
    network = _network()
    state = Shadowed(dict(network.state_dict()), hidden)
    torch.save(Shadowed({"epoch": 3, "state_dict": state}, hidden), tmp_path / "weights.pt")
    assert _same(import_published(tmp_path / "weights.pt", tmp_path, _options(tmp_path)).path, network)


def test_what_the_user_says_of_the_pipeline_is_kept(tmp_path: Path) -> None:
    torch.save(_network().state_dict(), tmp_path / "weights.pt")
    scale = {"_target_": "ScaleIntensityd", "keys": "image"}
    said = {"network_def": _DEFINITION, "preprocessing": [scale], "labels": ["background", "liver"], "modality": "CT"}
    imported = import_published(tmp_path / "weights.pt", tmp_path, _options(tmp_path, said))
    bundle = Bundle.open(imported.path)
    assert scale in bundle.config("inference")["preprocessing"]["transforms"]
    assert bundle.labels == {1: "liver"}
    assert len(imported.notes) == 1


def test_weights_need_a_network_that_fits_and_that_the_audit_permits(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(_network().state_dict(), path)
    with pytest.raises(UsageError, match="say which with --network"):
        import_published(path, tmp_path, ImportOptions())
    with pytest.raises(BundleError, match="do not fit its network_def"):
        import_published(path, tmp_path, _options(tmp_path, {**_DEFINITION, "out_channels": 3}))
    with pytest.raises(UntrustedBundle):
        import_published(
            path, tmp_path, _options(tmp_path, {"_target_": "os.system", "command": "x", "out_channels": 2})
        )
    with pytest.raises(UsageError, match="has no network_def"):
        import_published(path, tmp_path, _options(tmp_path, {"labels": ["a"]}))
    path.write_bytes(_pickle({"a": _Evil()}))
    with pytest.raises(BundleError, match="cannot be read"):
        import_published(path, tmp_path, _options(tmp_path))
    assert not (tmp_path / "tiny_ct_segmentation").exists()
