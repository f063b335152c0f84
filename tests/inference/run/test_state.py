"""Cases that were in hand when a process died are worked on last, one at a time: no neighbour is blamed for long."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.inference import CaseResult, Options, run_batch
from medseg.inference.run.state import RunState
from tests.inference.run.states import unsettle
from tests.inference.volumes import blobs, grid, save


def test_what_may_kill_comes_last_and_alone(thresholds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        save(blobs((12, 12, 10), number), grid("plain"), tmp_path / "images" / f"case{number}.nii.gz")
    options = Options(precision="fp32", workers=2)
    run_batch(thresholds, [tmp_path / "images"], tmp_path / "out", options)
    unsettle(tmp_path / "out", **{f"case{number}": int(number in {1, 3}) for number in range(6)})
    seen: list[str] = []
    begin, settle = RunState.begin, RunState.settle

    def observed_begin(self: RunState, case_id: str) -> None:
        seen.append(f"begin {case_id}")
        begin(self, case_id)

    def observed_settle(self: RunState, result: CaseResult, content_key: str = "") -> None:
        settle(self, result, content_key)
        seen.append(f"settle {result.case_id}")

    monkeypatch.setattr(RunState, "begin", observed_begin)
    monkeypatch.setattr(RunState, "settle", observed_settle)
    report = run_batch(thresholds, [tmp_path / "images"], tmp_path / "out", options)
    assert report.complete
    assert report.content["summary"]["computed"] == 6
    assert seen[-4:] == ["begin case1", "settle case1", "begin case3", "settle case3"]
    assert seen[:3] == ["begin case0", "begin case2", "begin case4"]  # the others are read ahead as usual
