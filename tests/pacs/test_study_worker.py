"""What a route answers, with the shipped bundle's rules of what it accepts; nothing here needs its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medseg import inference
from medseg.errors import CaseFailed, Refusal
from medseg.inference import Prediction, Predictor
from medseg.pacs.settings import Route
from medseg.pacs.study_worker import routes_kept_open, run_route
from medseg.results import CaseResult, RunReport
from tests.inference.bundles import Design, write_bundle
from tests.ingest.synthetic import make_series
from tests.pacs.conftest import write_study

_BUNDLE = Path(__file__).parents[2] / "bundles" / "hippocampus_mri_segmentation"


def test_a_study_of_another_kind_is_refused_with_the_reason(tmp_path: Path) -> None:
    write_study(tmp_path / "study", "a")
    with pytest.raises(Refusal, match=r"geometry|slice|position"):
        run_route(Route("r", _BUNDLE, ("seg",), ()), tmp_path / "study", tmp_path / "out")


def test_rules_that_choose_nothing_are_a_refusal(tmp_path: Path) -> None:
    write_study(tmp_path / "study", "a")
    select = tmp_path / "select.json"
    select.write_text(json.dumps({"rules": [{"channel": "T1", "modality": "MR"}]}))
    with pytest.raises(Refusal, match=r"channel-mismatch.*T1"):
        run_route(Route("r", _BUNDLE, ("seg",), (), select), tmp_path / "study", tmp_path / "out")


@pytest.mark.parametrize(
    ("statuses", "error"),
    [(("done", "refused"), None), (("refused", "refused"), Refusal), (("done", "failed"), CaseFailed)],
)
def test_what_becomes_of_a_study_of_several_series(
    statuses: tuple[str, str], error: type[Exception] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = tuple(CaseResult("c", "s", status, "no-geometry", "why") for status in statuses)  # type: ignore[arg-type]
    monkeypatch.setattr(inference, "run_batch", lambda *_, **__: RunReport(tmp_path, cases))
    (tmp_path / "c_seg.dcm").touch()
    route = Route("r", _BUNDLE, ("seg",), ())
    if error is None:
        assert list(run_route(route, tmp_path, tmp_path)) == [tmp_path / "c_seg.dcm"]
    else:
        with pytest.raises(error, match="why"):
            run_route(route, tmp_path, tmp_path)


def test_the_networks_of_a_route_stay_open_and_follow_its_device_and_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_bundle(tmp_path / "bundle", Design())
    seen: list[Predictor] = []
    whole = Predictor.predict

    def predict(self: Predictor, *case: Any, **options: Any) -> Prediction:
        seen.append(self)
        return whole(self, *case, **options)

    monkeypatch.setattr(Predictor, "predict", predict)
    for name in "ab":
        make_series((0, 3, 6, 9)).write(tmp_path / name)
    compute = routes_kept_open()
    routes = [Route("r", bundle, ("nifti",), (), None, "cpu", precision) for precision in ("fp32", "bf16")]
    for route in routes:
        for name in "ab":
            compute(route, tmp_path / name, tmp_path / "out" / route.precision / name)
    first, again, other, other_again = seen
    assert first is again
    assert other is other_again
    assert (first.device, first.choice.precision, other.choice.precision) == ("cpu", "fp32", "bf16")
    changed = bundle / "configs" / "metadata.json"
    changed.write_text(changed.read_text() + " ")
    compute(routes[0], tmp_path / "a", tmp_path / "out" / "anew")
    assert seen[-1] is not first
