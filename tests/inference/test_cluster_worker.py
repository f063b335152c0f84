"""What a worker does, in this process: it checks what it is asked to work for, and opens it once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from medseg.bundle import Bundle
from medseg.errors import Interrupted
from medseg.inference import Options
from medseg.inference.cases import collect
from medseg.inference.run import dask_worker as worker
from medseg.inference.run.dask_worker import Order, RunCard, card_of, order_of, prepare, process
from medseg.inference.run.lease import claimed
from medseg.inference.run.options import run_key
from medseg.inference.run.work import Setting, Tools, open_tools
from tests.inference.bundles import ORIENTED, Design, write_bundle


@pytest.fixture
def card(thresholds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunCard]:
    monkeypatch.setattr(worker, "_stations", {})
    monkeypatch.setattr(worker, "_SEEN_WITHIN_S", 0.0)
    (tmp_path / "out").mkdir()
    with claimed(tmp_path / "out") as claim:
        yield _card(thresholds, tmp_path / "out", Options(precision="fp32"), claim)


def _card(bundle_folder: Path, out: Path, options: Options, claim: str) -> RunCard:
    bundle = Bundle.open(bundle_folder)
    return card_of(Setting(bundle, out, options, None, run_key(bundle, options, None), claim))


def _order(card: RunCard, images: Path) -> Order:
    return order_of(card, collect([images / "case0.nii.gz"])[0])


def test_opens_the_bundle_once_for_all_cases(card: RunCard, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def observed(setting: Setting) -> Tools:
        opened.append(setting.claim)
        return open_tools(setting)

    monkeypatch.setattr(worker, "open_tools", observed)
    assert prepare(card, 1).refusal == ""
    for case in collect([images]):
        assert process(order_of(card, case)).result.status == "done"
    assert opened == [card.claim]
    assert len(list(Path(card.folder).glob("*_seg.nii.gz"))) == 3


def test_writes_nothing_for_a_run_that_another_has_replaced(card: RunCard, images: Path) -> None:
    order = _order(card, images)
    assert prepare(card, 1).refusal == ""
    with claimed(Path(card.folder)), pytest.raises(Interrupted, match="taken over"):
        process(order)
    assert not list(Path(card.folder).glob("*_seg.nii.gz"))


def test_gives_up_writing_if_the_run_is_replaced_meanwhile(
    card: RunCard, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medseg.inference.run import work

    whole = work.compute

    def replaced(*given: object) -> None:
        whole(*given)  # type: ignore[arg-type]
        (Path(card.folder) / ".medseg-run").write_text("another")

    monkeypatch.setattr(work, "compute", replaced)
    with pytest.raises(Interrupted, match="taken over"):
        process(_order(card, images))
    assert not list(Path(card.folder).glob("*_seg.nii.gz"))


def test_refuses_what_is_not_the_run(card: RunCard, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other", Design(transforms=ORIENTED, roi_size=(8, 8, 8)))
    for wrong, told in (
        (replace(card, bundle=str(other)), "another bundle"),
        (replace(card, folder=str(tmp_path / "elsewhere")), "does not see"),
        (replace(card, claim="0000"), "does not see"),
        (replace(card, medseg="99.0"), "the run uses 99.0"),
        (replace(card, run_key="0000"), "differ"),
        (replace(card, bundle=str(tmp_path)), "not a bundle"),
    ):
        assert told in prepare(wrong, 1).refusal


def test_paths_hold_in_another_working_directory(
    card: RunCard, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images)
    order = order_of(card, collect(["case0.nii.gz"])[0])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = process(order).result
    assert (result.status, result.source) == ("done", "case0.nii.gz")


def test_shows_nothing_of_a_case(card: RunCard, images: Path) -> None:
    order = _order(card, images)
    reply = process(order)
    for shown in (repr(order), repr(card), repr(reply)):
        assert "case0" not in shown
        assert str(images) not in shown
