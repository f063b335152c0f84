"""A bundle without a calibration: every result is said not to be calibrated, and only the implausible is flagged."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from typer.testing import CliRunner, Result

from medseg.cli import infer as infer_command
from medseg.cli.main import app
from medseg.errors import CaseFailed, ExitCode, Interrupted
from medseg.evaluation.accepted import JUDGES
from medseg.inference import Options, predictor, run_batch
from medseg.inference.config import InferenceConfig
from medseg.inference.invert import Inverter
from medseg.inference.postprocessing import Postprocessing
from medseg.inference.second_look import second_look
from medseg.inference.sliding_window import Chunk, WindowSettings
from medseg.labels.decoding import LabelDecoding
from medseg.report import write_report
from medseg.results import CaseResult, RunReport
from medseg.results.verdict import NOT_CALIBRATED, Verdict
from medseg.trust import default_judge
from medseg.trust.default_judge import ScoreTally, plausibility
from tests.inference.bundles import ORIENTED, UNET, Design, write_bundle
from tests.inference.heads import LEFT, RIGHT, save_head, two_bundles
from tests.inference.volumes import grid, save

assert infer_command

_SIDE = 24
_SOFTMAX = LabelDecoding("softmax")
_REGIONS = LabelDecoding("sigmoid", 0.5, (0, 1, 2, 2))
_OWN = {1: (1,), 2: (2,)}


def _balls(*centres: tuple[float, float, float], radius: float = 5.0) -> np.ndarray:
    """Intensity 0, and 20 in balls of which the inner ones have 60: labels 1 and 2 of the thresholding network."""
    index = np.indices((_SIDE,) * 3)
    image = np.zeros((_SIDE,) * 3, np.float32)
    for centre in centres:
        far = np.sqrt(sum((g - c) ** 2 for g, c in zip(index, centre, strict=True)))
        image[far < radius] = 20.0
        image[far < radius / 2] = 60.0
    return image


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", Design(transforms=ORIENTED))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A sound case, and one for each thing that the label map alone tells."""
    folder = tmp_path / "images"
    grains = np.random.default_rng(0).choice([0.0, 20.0], (_SIDE,) * 3, p=[0.97, 0.03]).astype(np.float32)
    grains[[0, -1]], grains[:, [0, -1]], grains[..., [0, -1]] = 0.0, 0.0, 0.0
    for name, image in {
        "sound": _balls((12, 12, 12)),
        "empty": _balls(),
        "grains": grains,
        "cut": _balls((0, 12, 12), radius=7),
    }.items():
        save(image, grid("plain"), folder / f"{name}.nii.gz")
    return folder


def _infer(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["infer", *map(str, arguments)])


def _run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    content = json.loads((folder / "run.json").read_text())
    return content, {case["case_id"]: case["trust"] for case in content["cases"]}


def test_every_result_is_not_calibrated_and_the_implausible_is_flagged(
    bundle: Path, images: Path, tmp_path: Path
) -> None:
    told = _infer(bundle, images, "-o", tmp_path / "out")
    assert told.exit_code == ExitCode.DONE, told.output
    content, trust = _run(tmp_path / "out")
    assert content["trust"]["state"] == "none"
    assert content["trust"]["message"].startswith("not calibrated: ")
    assert {name: (one["verdict"], one["flags"]) for name, one in trust.items()} == {
        "sound": (NOT_CALIBRATED, []),
        "empty": ("review", ["nothing-found", NOT_CALIBRATED]),
        "grains": ("review", ["scattered", NOT_CALIBRATED]),
        "cut": ("review", ["cut-off", NOT_CALIBRATED]),
    }
    for one in trust.values():
        assert (one["predicted_dice"], one["lower_bound"], one["structures"]) == (None, None, [])
    assert content["summary"]["verdicts"] == {NOT_CALIBRATED: 1, "accept": 0, "review": 3, "reject": 0, "flagged": 3}
    assert "Trust: not calibrated, so nothing is accepted; 3 to be reviewed" in told.stdout.replace("\n", " ")
    assert "sound: done in" in told.stdout
    assert "s, not calibrated" in told.stdout
    rows = {r["case_id"]: r for r in csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines())}
    assert (rows["sound"]["verdict"], rows["sound"]["flags"]) == (NOT_CALIBRATED, "")
    assert (rows["cut"]["verdict"], rows["cut"]["flags"]) == ("review", "cut-off not calibrated")
    todo = list(csv.DictReader((tmp_path / "out" / "worklist.csv").read_text().splitlines()))
    assert [row["case_id"] for row in todo] == ["cut", "empty", "grains", "sound"]
    assert todo[1]["why"] == "nothing was found; not calibrated"
    page = write_report(tmp_path / "out").read_text()
    assert "nothing is known of how good results of this bundle are" in page
    assert f">{NOT_CALIBRATED}<" in page


def test_a_second_run_keeps_what_was_said_and_no_trust_says_nothing(bundle: Path, images: Path, tmp_path: Path) -> None:
    first = run_batch(bundle, [images], tmp_path / "out")
    again = run_batch(bundle, [images], tmp_path / "out")
    assert again.computed == 0
    assert [case.trust for case in again.cases] == [case.trust for case in first.cases]
    assert [case.trust for case in RunReport.read(tmp_path / "out").cases] == [case.trust for case in first.cases]
    alone = run_batch(bundle, [images / "cut.nii.gz"], tmp_path / "alone")
    assert alone.cases[0].trust == first.case("cut").trust  # type: ignore[union-attr]
    mirrored = run_batch(bundle, [images / "cut.nii.gz"], tmp_path / "mirrored", Options(mirror=("ap",)))
    assert mirrored.cases[0].trust is None
    why = "switched off by --mirror or --ensemble: only results of the plain network are judged"
    assert (mirrored.trust["state"], mirrored.trust["message"]) == ("off", why)
    off = run_batch(bundle, [images], tmp_path / "out", Options(trust=False))
    assert off.computed == 4
    assert not any(case.trust for case in off.cases)
    assert not (tmp_path / "out" / "worklist.csv").exists()
    assert "trust" not in off.stages


def test_a_run_from_before_there_was_a_default_judge_is_read_and_goes_on(
    bundle: Path, images: Path, tmp_path: Path
) -> None:
    run_batch(bundle, [images], tmp_path / "out")
    place = tmp_path / "out" / "run.json"
    content = json.loads(place.read_text())
    for case in content["cases"]:
        case["trust"] = None
    content["summary"]["verdicts"] = None
    place.write_text(json.dumps(content))
    assert "not calibrated:" not in write_report(tmp_path / "out").read_text()
    assert run_batch(bundle, [images], tmp_path / "out").computed == 0


def test_a_network_that_is_unsure_or_changes_its_mind_is_flagged(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = save(np.minimum(_balls((12, 12, 12)), 10.1), grid("plain"), tmp_path / "unsure.nii.gz")  # 10 is the limit
    assert run_batch(bundle, [flat], tmp_path / "unsure").cases[0].flags == ("unsure", NOT_CALIBRATED)
    sound = save(_balls((12, 12, 12)), grid("plain"), tmp_path / "sound.nii.gz")
    monkeypatch.setattr(predictor, "second_look", lambda *_: 0.1)
    assert run_batch(bundle, [sound], tmp_path / "changes").cases[0].flags == ("second-look-differs", NOT_CALIBRATED)

    def broken(*_: object) -> float:
        raise RuntimeError("no")

    monkeypatch.setattr(predictor, "second_look", broken)
    (case,) = run_batch(bundle, [sound], tmp_path / "broken").cases
    assert (case.status, case.flags) == ("done", ("not-judged", NOT_CALIBRATED))


@pytest.mark.parametrize("kind", ["slices", "whole volumes", "one size"])
def test_every_kind_of_network_has_its_results_looked_at(kind: str, tmp_path: Path, images: Path) -> None:
    flat = kind == "slices"
    bundle = write_bundle(
        tmp_path / "any", Design(network={**UNET, "spatial_dims": 2 if flat else 3}, roi_size=(16,) * 3)
    )
    config = bundle / "configs" / "inference.json"
    content = json.loads(config.read_text())
    if kind == "slices":
        content["inferer"] = {"_target_": "SliceInferer", "roi_size": [16, 16], "spatial_dim": 2}
    elif kind == "whole volumes":
        content["inferer"] = {"_target_": "SimpleInferer"}
    config.write_text(json.dumps(content))
    found = run_batch(bundle, [images / "sound.nii.gz"], tmp_path / "out").cases[0]
    assert found.status == "done"
    assert found.trust is not None
    assert not found.trust.calibrated
    assert "not-judged" not in found.flags


def test_a_structure_that_was_located_first_is_not_calibrated_either(tmp_path: Path) -> None:
    first, second = two_bundles(tmp_path / "bundles")
    image, _ = save_head(tmp_path / "in", "RAS", ((LEFT, 3.2), (RIGHT, 4.2)))
    run_batch(second, [image], tmp_path / "out", Options(locate=f"{first}:large"))
    (case,) = _run(tmp_path / "out")[0]["cases"]
    assert [part["trust"]["verdict"] for part in case["parts"]] == [NOT_CALIBRATED] * 2
    assert case["trust"]["verdict"] == NOT_CALIBRATED


def test_what_is_not_calibrated_counts_for_no_judge() -> None:
    plain, flagged = Verdict(NOT_CALIBRATED), Verdict(NOT_CALIBRATED, flags=("cut-off",))
    for verdict in (plain, flagged, Verdict.worst([plain, flagged])):
        assert not verdict.calibrated
        assert Verdict.from_json(verdict.to_json()) == verdict
    assert Verdict.worst([plain, flagged]).decision == "review"
    assert Verdict.worst([plain], ("structure-missing",)).flags == ("structure-missing", NOT_CALIBRATED)
    assert Verdict("review").calibrated
    assert [JUDGES["calibrated"](CaseResult("a", trust=one)) for one in (plain, flagged)] == [None, None]


@pytest.mark.parametrize(
    ("channels", "decoding"),
    [
        (3, _SOFTMAX),
        (3, LabelDecoding("none")),
        (300, LabelDecoding("none")),
        (1, LabelDecoding("sigmoid", 0.7)),
        (2, _REGIONS),
    ],
    ids=["softmax", "scores", "many classes", "one channel", "regions"],
)
def test_the_labels_that_a_tally_keeps_are_those_that_are_written(
    channels: int, decoding: LabelDecoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = torch.randn(channels, 8, 6, 5, generator=torch.Generator().manual_seed(1)) * 3
    image = MetaTensor(torch.zeros(1, 8, 6, 5))
    inverter = Inverter(InferenceConfig(Compose([]), WindowSettings((0, 0, 0)), Postprocessing(decoding)), image, image)
    looked_at: list[int] = []
    decoded = default_judge.decoded

    def counted(part: torch.Tensor, how: LabelDecoding) -> object:
        looked_at.append(part.numel())
        return decoded(part, how)

    monkeypatch.setattr(default_judge, "_ELEMENTS", channels * 60)
    monkeypatch.setattr(default_judge, "decoded", counted)
    tally = ScoreTally(decoding)
    for part in scores.split(4, 1):
        tally.add(part)
    np.testing.assert_array_equal(tally.labels, inverter.labels([Chunk(0, scores)]))
    assert max(looked_at) <= channels * 60  # two planes of all classes, not the volume
    if decoding == _SOFTMAX:
        both, labels, each = scores.softmax(0), scores.argmax(0), []
        for label in (1, 2):
            p, mask = both[label], labels == label
            each.append(float(2 * p[mask].sum() / (p[p >= 0.02].sum() + mask.sum())))
        assert tally.confidence == pytest.approx(min(each), rel=1e-5)


def test_the_smallest_of_many_structures_do_not_decide_and_one_that_is_only_likely_does() -> None:
    likely = torch.tensor([[4.0, 3.9, 0.0], [0.0, 0.0, 9.0]])[:, :, None].repeat(1, 1, 10)

    def sure_of(*columns: int) -> float | None:
        tally = ScoreTally(_SOFTMAX)
        planes = [likely[one - 1, :, :1] for one in columns]
        tally.add(torch.cat(planes, 1)[:, None, None, :])
        return tally.confidence

    certain = sure_of(*[2] * 40)
    assert certain is not None
    assert certain > 0.99
    assert sure_of(*[2] * 60, 1) == pytest.approx(certain, abs=0.01), "a sixtieth"
    assert sure_of(*[2] * 4, *[1] * 4) == 0.0, "half of it might be the other structure"


def test_a_tally_without_a_label_is_neither_sure_nor_unsure() -> None:
    tally = ScoreTally(_SOFTMAX)
    tally.add(torch.tensor([5.0, 0.0])[:, None, None, None].expand(2, 4, 4, 4))
    assert tally.confidence is None
    assert second_look(torch.zeros(1, 4, 4, 4), tally, _never, WindowSettings((4, 4, 4))) is None


def _never(*_: object, **__: object) -> list[Chunk]:
    raise AssertionError("there is nothing to look at")


def _first(image: torch.Tensor) -> ScoreTally:
    tally = ScoreTally(_SOFTMAX)
    tally.add(_scores(image))
    return tally


def _scores(image: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.full_like(image, 10.0), image, 2 * image - 30.0])


@pytest.mark.parametrize(
    ("shape", "roi", "axis", "box", "window"),
    [
        ((96, 96, 96), (32, 32, 32), None, (32, 32, 32), (32, 32, 32)),  # one of many windows
        ((64, 24, 24), (64, 24, 24), None, (32, 24, 24), (32, 24, 24)),  # as small as the structures allow
        ((128, 24, 24), (0, 0, 0), None, (32, 24, 24), (32, 32, 32)),  # whole volumes
        ((40, 24, 24), (40, 24, 1), 2, (24, 24, 6), (24, 24, 1)),  # a quarter of the slices
    ],
)
def test_a_second_look_is_a_window_round_the_structures(
    shape: tuple[int, int, int],
    roi: tuple[int, int, int],
    axis: int | None,
    box: tuple[int, ...],
    window: tuple[int, ...],
) -> None:
    image = torch.zeros(1, *shape)
    image[0, 8:22, 4:18, 5:19] = 20.0
    seen = []

    def look(part: torch.Tensor, windows: WindowSettings) -> list[Chunk]:
        seen.append((tuple(part.shape[1:]), windows.roi_size, float((part > 0).sum())))
        return [Chunk(0, _scores(part))]

    assert second_look(image, _first(image), look, WindowSettings(roi), axis) == 1.0
    assert [one[:2] for one in seen] == [(box, window)]
    assert seen[0][2] > 0


def test_a_second_look_that_says_something_else_or_cannot_be_had() -> None:
    image = torch.from_numpy(_balls((12, 12, 12)))[None]
    windows = WindowSettings((16,) * 3)
    other = second_look(image, _first(image), lambda part, windows: [Chunk(0, _scores(60 - part))], windows)
    assert other is not None
    assert other < 0.1

    for error in (
        CaseFailed("the network returned a window of another size"),
        AssertionError("img_size"),
        IndexError(),
    ):

        def refuses(part: torch.Tensor, windows: WindowSettings, error: Exception = error) -> list[Chunk]:
            raise error

        assert second_look(image, _first(image), refuses, windows) is None
    all_of_it = WindowSettings((_SIDE,) * 3)
    assert second_look(torch.full_like(image, 20.0), _first(image + 20), _never, all_of_it) is None


@pytest.mark.parametrize(
    "error",
    [
        Interrupted("stopped by SIGINT"),
        MemoryError(),
        torch.OutOfMemoryError(),
        RuntimeError("DefaultCPUAllocator: not enough memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_signal_or_no_memory_is_not_taken_for_a_network_that_refuses(error: Exception) -> None:
    def ends(part: torch.Tensor, windows: WindowSettings) -> list[Chunk]:
        raise error

    image = torch.from_numpy(_balls((12, 12, 12)))[None]
    with pytest.raises(type(error)):
        second_look(image, _first(image), ends, WindowSettings((16,) * 3))


def test_why_there_is_no_second_look_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    image = torch.from_numpy(_balls((12, 12, 12)))[None]

    def refuses(part: torch.Tensor, windows: WindowSettings) -> list[Chunk]:
        raise AssertionError("img_size")

    with caplog.at_level("INFO", "medseg.inference.second_look"):
        assert second_look(image, _first(image), refuses, WindowSettings((16,) * 3)) is None
        assert second_look(image, _first(image), _never, WindowSettings((_SIDE,) * 3)) is None
    assert caplog.messages == [
        "no second look: the network raised AssertionError",
        "no second look: the first had little more in view",
    ]


def test_a_signal_in_a_second_look_stops_the_run_and_the_case_is_left(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = save(_balls((12, 12, 12)), grid("plain"), tmp_path / "sound.nii.gz")

    def stopped(*_: object) -> float:
        raise Interrupted("stopped by SIGINT")

    with monkeypatch.context() as patch:
        patch.setattr(predictor, "second_look", stopped)
        with pytest.raises(Interrupted, match="1 cases are left"):
            run_batch(bundle, [sound], tmp_path / "out")
    again = run_batch(bundle, [sound], tmp_path / "out")
    assert (again.computed, again.cases[0].flags) == (1, ())


def test_regions_are_judged_as_a_whole() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[4:16, 4:16, 4:16] = 1
    labels[6:14, 6:14, 6:14] = 2
    labels[8:12, 8:12, 8:12] = 1  # of label 1 alone there are two pieces
    apart, together = plausibility(labels, _OWN), plausibility(labels, {1: (1, 2), 2: (2,)})
    assert apart.largest is not None
    assert apart.largest < 1.0
    assert together.largest == 1.0
    assert plausibility(labels, {}) == apart, "a bundle that names no structures"


def test_a_structure_that_only_touches_the_border_is_not_cut_off() -> None:
    ball = (_balls((5, 12, 12)) > 0).astype(np.uint8)
    assert ball[1].any()
    assert plausibility(ball[1:], _OWN).uncut == 1.0
    assert plausibility(ball[5:], _OWN).uncut == 0.0
    flat = np.ones((1, 8, 8), np.uint8)
    flat[0, 0], flat[0, -1], flat[0, :, 0], flat[0, :, -1] = 0, 0, 0, 0
    assert plausibility(flat, _OWN).uncut == 1.0, "a single slice"
