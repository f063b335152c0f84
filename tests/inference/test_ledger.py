"""Cases that were in hand when a process died are worked on last, one at a time: no neighbour is blamed for long."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from medseg.inference import CaseResult, Options, run_batch
from medseg.inference.run.state import Hand, Journal, Ledger, locked
from tests.inference.volumes import blobs, grid, save


def test_suspects_come_last_and_alone(thresholds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        save(blobs((12, 12, 10), number), grid("plain"), tmp_path / "images" / f"case{number}.nii.gz")
    options = Options(precision="fp32", workers=2)
    run_batch(thresholds, [tmp_path / "images"], tmp_path / "out", options)
    with locked(tmp_path / "out"):
        journal = Journal(tmp_path / "out")
        for name, entry in journal.entries().items():
            journal.write(replace(entry, result=None, deaths=int(name in {"case1", "case3"})))
        journal.close()
    seen: list[str] = []
    begin, settle = Ledger.begin, Ledger.settle

    def observed_begin(self: Ledger, hand: Hand, *, here: bool) -> None:
        seen.append(f"begin {hand.case.case_id}")
        begin(self, hand, here=here)

    def observed_settle(self: Ledger, hand: Hand, result: CaseResult) -> None:
        settle(self, hand, result)
        seen.append(f"settle {hand.case.case_id}")

    monkeypatch.setattr(Ledger, "begin", observed_begin)
    monkeypatch.setattr(Ledger, "settle", observed_settle)
    report = run_batch(thresholds, [tmp_path / "images"], tmp_path / "out", options)
    assert report.complete
    assert report.content["summary"]["computed"] == 6
    assert seen[-4:] == ["begin case1", "settle case1", "begin case3", "settle case3"]
    assert seen[:3] == ["begin case0", "begin case2", "begin case4"]  # the others are read ahead as usual
