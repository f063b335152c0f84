"""What a worker does, in this process: it checks what it is asked to work for, and opens it once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("distributed")
from medseg.bundle import Bundle
from medseg.errors import Interrupted
from medseg.inference import CaseResult, Options
from medseg.inference.cases import collect
from medseg.inference.run import options, pipeline
from medseg.inference.run.dask import Hidden, OpenBundlePlugin
from medseg.inference.run.options import LEASE_NAME, RunContext, RunSpec, leased
from tests.inference.bundles import ORIENTED, Design, write_bundle


@pytest.fixture
def spec(thresholds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunSpec]:
    monkeypatch.setattr(options, "_SEEN_WITHIN_S", 0.0)
    (tmp_path / "out").mkdir()
    bundle, asked = Bundle.open(thresholds), Options(precision="fp32", device="cpu")
    with leased(tmp_path / "out") as lease:
        yield RunSpec.of(RunContext(bundle, tmp_path / "out", asked, None, asked.key(bundle, None), lease))


@pytest.fixture
def plugin(spec: RunSpec) -> OpenBundlePlugin:
    opened = OpenBundlePlugin(spec)
    assert opened.open(1) == ""
    return opened


def _process(plugin: OpenBundlePlugin, image: Path) -> CaseResult:
    return plugin.process(Hidden(collect([image])[0])).value[0]


def test_opens_the_bundle_once_for_all_cases(
    plugin: OpenBundlePlugin, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "Predictor", None)  # nothing is opened from now on
    for number in range(3):
        assert _process(plugin, images / f"case{number}.nii.gz").status == "done"
    assert len(list(Path(plugin.spec.folder).glob("*_seg.nii.gz"))) == 3


def test_writes_nothing_for_a_run_that_another_has_replaced(plugin: OpenBundlePlugin, images: Path) -> None:
    with leased(Path(plugin.spec.folder)), pytest.raises(Interrupted, match="taken over"):
        _process(plugin, images / "case0.nii.gz")
    assert not list(Path(plugin.spec.folder).glob("*_seg.nii.gz"))


def test_gives_up_writing_if_the_run_is_replaced_meanwhile(
    plugin: OpenBundlePlugin, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pipeline.CaseTask.compute

    def replaced(self: pipeline.CaseTask, *given: object) -> object:
        computed = whole(self, *given)  # type: ignore[arg-type]
        (Path(plugin.spec.folder) / LEASE_NAME).write_text("another")
        return computed

    monkeypatch.setattr(pipeline.CaseTask, "compute", replaced)
    with pytest.raises(Interrupted, match="taken over"):
        _process(plugin, images / "case0.nii.gz")
    assert not list(Path(plugin.spec.folder).glob("*_seg.nii.gz"))


def test_refuses_what_is_not_the_run(spec: RunSpec, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other", Design(transforms=ORIENTED, roi_size=(8, 8, 8)))
    for wrong, message in (
        (replace(spec, bundle=str(other)), "another bundle"),
        (replace(spec, folder=str(tmp_path / "elsewhere")), "does not see"),
        (replace(spec, lease="0000"), "does not see"),
        (replace(spec, medseg="99.0"), "the run uses 99.0"),
        (replace(spec, run_key="0000"), "differ"),
        (replace(spec, bundle=str(tmp_path)), "not a bundle"),
    ):
        assert message in OpenBundlePlugin(wrong).open(1)


def test_paths_hold_in_another_working_directory(
    plugin: OpenBundlePlugin, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images)
    sent = Hidden(collect(["case0.nii.gz"])[0].absolute)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result, _ = plugin.process(sent).value
    assert (result.status, result.source) == ("done", "case0.nii.gz")


def test_shows_nothing_of_a_case(plugin: OpenBundlePlugin, images: Path) -> None:
    sent = Hidden(collect([images / "case0.nii.gz"])[0])
    for shown in (repr(sent), repr(plugin), repr(plugin.spec), repr(plugin.process(sent))):
        assert "case0" not in shown
        assert str(images) not in shown
