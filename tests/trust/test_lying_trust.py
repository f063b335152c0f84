"""Trust files that lie: they give no verdict, and are told before the first case."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from medseg.bundle import Bundle
from medseg.errors import BundleError
from medseg.sharing import verify
from medseg.trust.calibration import Calibration
from medseg.trust.doubts import doubts_of_calibration
from medseg.trust.fault_classifier import FaultClassifier
from medseg.trust.out_of_distribution import TrainingStatistics
from medseg.trust.stored import StoredPart
from medseg.trust.trust_files import (
    CALIBRATION_NAME,
    ERROR_NET_NAME,
    FAULT_CLASSIFIER_NAME,
    STATISTICS_NAME,
    TrustFiles,
)
from medseg.trust.trust_model import TrustModel
from tests.odd_values import crashes, places

Change = Callable[[Any], None]


@pytest.fixture
def judged(fitted: tuple[Bundle, nn.Module], tmp_path: Path) -> Bundle:
    """A copy of the bundle with everything under ``trust/``."""
    return Bundle.open(shutil.copytree(fitted[0].path, tmp_path / "copy" / fitted[0].path.name))


def edit(bundle: Bundle, name: str, change: Change) -> None:
    path = bundle.path / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def put(*way: Any, value: Any) -> Change:
    def change(content: Any) -> None:
        for key in way[:-1]:
            content = content[key]
        content[way[-1]] = value

    return change


def times(factor: float, *way: Any) -> Change:
    def change(content: Any) -> None:
        for key in way[:-1]:
            content = content[key]
        content[way[-1]] = [factor * value for value in content[way[-1]]]

    return change


def double(content: Any) -> None:
    content["structures"].append(content["structures"][0])


def circle(content: Any) -> None:
    tree = content["structures"][0]["regressor"]["trees"][0]
    tree["left"][0] = 0


def outside(content: Any) -> None:
    tree = content["structures"][0]["regressor"]["trees"][0]
    tree["right"][0] = len(tree["right"])


def padded(content: Any) -> None:
    """One large tree makes all others as large, if they are laid side by side."""
    leaf: dict[str, list[Any]] = {"feature": [-1], "threshold": [0.0], "left": [-1], "right": [-1], "value": [0.0]}
    large = {name: values * 5_000 for name, values in leaf.items()}
    content["structures"][0]["regressor"]["trees"] = [large, *[leaf] * 5_000]


FIRST = ("structures", 0)
LIES: dict[str, tuple[str, Change]] = {
    "thresholds NaN": (CALIBRATION_NAME, put("thresholds", "accept", value=float("nan"))),
    "thresholds infinite": (CALIBRATION_NAME, put("thresholds", "reject", value=float("-inf"))),
    "thresholds text": (CALIBRATION_NAME, put("thresholds", "accept", value="0.1")),
    "thresholds true": (CALIBRATION_NAME, put("thresholds", "accept", value=True)),
    "thresholds in per cent": (CALIBRATION_NAME, put("thresholds", value={"accept": 80, "reject": 50})),
    "thresholds below all": (CALIBRATION_NAME, put("thresholds", "accept", value=-1e9)),
    "accept below reject": (CALIBRATION_NAME, put("thresholds", value={"accept": 0.3, "reject": 0.5})),
    "label text": (CALIBRATION_NAME, put(*FIRST, "label", value="1")),
    "label true": (CALIBRATION_NAME, put(*FIRST, "label", value=True)),
    "label of none": (CALIBRATION_NAME, put(*FIRST, "label", value=7)),
    "label twice": (CALIBRATION_NAME, double),
    "no structures": (CALIBRATION_NAME, put("structures", value=[])),
    "quantile NaN": (CALIBRATION_NAME, put(*FIRST, "quantile", value=float("nan"))),
    "quantile text": (CALIBRATION_NAME, put(*FIRST, "quantile", value="0.5")),
    "quantile negative": (CALIBRATION_NAME, put(*FIRST, "quantile", value=-1.0)),
    "errors of another length": (CALIBRATION_NAME, put(*FIRST, "error", value=[0.1] * 99)),
    "errors negative": (CALIBRATION_NAME, times(-1.0, *FIRST, "error")),
    "errors in per cent": (CALIBRATION_NAME, times(100.0, *FIRST, "error_at")),
    "trees of another scale": (CALIBRATION_NAME, put(*FIRST, "regressor", "constant", value=85.0)),
    "trees in a circle": (CALIBRATION_NAME, circle),
    "trees that lead outside": (CALIBRATION_NAME, outside),
    "trees with NaN": (CALIBRATION_NAME, put(*FIRST, "regressor", "trees", 0, "value", 0, value=float("nan"))),
    "trees that grow when they are laid out": (CALIBRATION_NAME, padded),
    "features unknown": (CALIBRATION_NAME, lambda c: c["scores"].append("luck")),
    "coverage of all": (CALIBRATION_NAME, put("coverage", value=1.0)),
    "coverage in per cent": (CALIBRATION_NAME, put("coverage", value=90)),
    "sizes negative": (CALIBRATION_NAME, put(*FIRST, "n_patients", value=-3)),
    "more patients than cases": (CALIBRATION_NAME, put(*FIRST, "n_patients", value=10**6)),
    "3 million entries": (CALIBRATION_NAME, put("scores", value=[1] * 3_000_000)),
    "a spread of nothing": (STATISTICS_NAME, put("likeness", "encoder", "rest", value=0.0)),
    "layers that are not there": (STATISTICS_NAME, put("layers", value=["nothing.of.the.kind"])),
    "statistics of another network": (STATISTICS_NAME, lambda c: c["likeness"].update(encoder=c["likeness"]["image"])),
    "limits negative": (STATISTICS_NAME, put("limits", "image", value=-1.0)),
    "divisor of nothing": (STATISTICS_NAME, put("divisor", value=0)),
    "classes twice": (FAULT_CLASSIFIER_NAME, lambda c: put("classes", value=[c["classes"][0]] * len(c["classes"]))(c)),
    "recall above one": (FAULT_CLASSIFIER_NAME, lambda c: put("recall", value=dict.fromkeys(c["recall"], 3.0))(c)),
}  # fmt: skip


def opened(bundle: Bundle) -> tuple[str, TrustModel | None]:
    """The state as a run tells it, and the model."""
    files = TrustFiles(bundle)
    if files.state.state != "ready":
        return files.state.state, None
    try:
        return "ready", TrustModel.open(files, bundle.load_network())
    except BundleError:
        return "damaged", None


def test_the_bundle_is_ready_before(judged: Bundle) -> None:
    assert opened(judged)[0] == "ready"


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_damage(judged: Bundle, lie: str) -> None:
    name, change = LIES[lie]
    if not (judged.path / name).is_file():
        pytest.skip(f"{name} was not fitted")
    edit(judged, name, change)
    assert opened(judged) == ("damaged", None)
    state = TrustFiles(judged).state
    assert state.state == "ready" or ("medseg trust fit" in state.message and len(state.message) < 600)


@pytest.mark.parametrize("nested", [990, 100_000])
def test_what_is_nested_deeply_is_damage(judged: Bundle, nested: int) -> None:
    (judged.path / STATISTICS_NAME).write_text("[" * nested + "]" * nested)
    assert TrustFiles(judged).state.state == "damaged"


def test_what_is_too_large_is_not_parsed(judged: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.trust.stored._LARGEST_BYTES", 1000)
    assert "1000 bytes" in TrustFiles(judged).state.message


@pytest.mark.parametrize(
    "change",
    [
        lambda state, _: {name: value[..., :1] for name, value in state.items()},
        lambda state, _: {**state, "trust": torch.full_like(state["trust"], torch.nan)},
        lambda state, _: {name: value.half() for name, value in state.items()},
        lambda state, _: {},
        lambda state, facts: facts.update(shape='{"label_channels": 2, "channels": 512, "layers": 8}') or state,
        lambda state, facts: facts.update(shape='{"label_channels": 2, "image_channels": 1, "layers": 10e9}') or state,
        lambda state, facts: facts.update(shape="[" * 990 + "]" * 990) or state,
        lambda state, facts: facts.pop("format") and state,
    ],
)
def test_another_error_net_is_damage(judged: Bundle, change: Callable[[Any, Any], Any]) -> None:
    from safetensors import safe_open

    path = judged.path / ERROR_NET_NAME
    with safe_open(path, "pt") as content:
        facts = dict(content.metadata())
    state = change(load_file(path), facts)
    save_file({name: value.contiguous() for name, value in state.items()}, path, facts)
    assert TrustFiles(judged).state.state == "damaged"


def test_other_weights_are_stale(judged: Bundle) -> None:
    edit(judged, STATISTICS_NAME, put("weights_sha256", value="0" * 64))
    assert TrustFiles(judged).state.state == "stale"


@pytest.mark.parametrize("part", [Calibration, TrainingStatistics, FaultClassifier])
def test_no_part_of_another_kind_crashes(judged: Bundle, part: type[StoredPart], tmp_path: Path) -> None:
    names = {Calibration: CALIBRATION_NAME, TrainingStatistics: STATISTICS_NAME, FaultClassifier: FAULT_CLASSIFIER_NAME}
    content = json.loads((judged.path / names[part]).read_text())
    for structure in content.get("structures", ()):
        structure["regressor"]["trees"] = structure["regressor"]["trees"][:1]
    file = tmp_path / "part.json"
    assert crashes(file, content, lambda: part.read(file), step=1 + sum(1 for _ in places(content)) // 12) == []


def loose(content: Any) -> None:
    content["thresholds"] = {"accept": 0.0, "reject": 0.0}


def sure(content: Any) -> None:
    content["structures"][0]["regressor"] = {"constant": 0.95, "learning_rate": 0.1, "trees": []}
    content["structures"][0]["quantile"] = 0.1


def narrow(content: Any) -> None:
    content["structures"][0]["quantile"] = 0.0


def wide(content: Any) -> None:
    content["structures"][0]["quantile"] = 1e6


@pytest.mark.parametrize(
    ("change", "severity", "told"),
    [
        (loose, "block", "accepts every result"),
        (loose, "warn", "nothing is rejected"),
        (sure, "block", "accepts every result"),
        (sure, "warn", "rejects none"),
        (narrow, "block", "bounds nothing"),
        (wide, "warn", "nothing is accepted"),
    ],
)
def test_a_calibration_that_says_the_same_of_all_is_named(
    judged: Bundle, change: Change, severity: str, told: str
) -> None:
    edit(judged, CALIBRATION_NAME, change)
    found = [one for one in verify(judged.path) if one.severity == severity and told in one.what]
    assert [one.file for one in found] == [CALIBRATION_NAME]


def test_a_sound_calibration_is_not_named(judged: Bundle) -> None:
    assert [one for one in verify(judged.path) if one.file.startswith("trust/") and one.severity == "block"] == []
    calibration = TrustFiles(judged).calibration
    assert calibration is not None
    assert [one for one in doubts_of_calibration(calibration) if one.severity == "block"] == []
