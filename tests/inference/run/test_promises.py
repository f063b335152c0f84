"""What a run promises about its own results: they are no input, they are checked, and what they are worth is said."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from medseg import files
from medseg.errors import OutputUnusable, Refusal, UsageError
from medseg.files import sha256_file
from medseg.inference import Options, run_batch
from medseg.inference.cases import expected_modalities
from medseg.inference.run.state import RunState
from medseg.ingest import scan
from medseg.manifests.layouts import path_checksum
from tests.inference.bundles import ORIENTED, Design, write_bundle
from tests.inference.volumes import blobs, grid, save
from tests.ingest.synthetic import make_series


@pytest.fixture
def coded(tmp_path: Path) -> Path:
    """The thresholding bundle with coded terms, so that DICOM objects can be written."""
    bundle = write_bundle(tmp_path / "coded", Design(transforms=ORIENTED))
    term = {"category": ["123037004", "SCT", "Anatomical Structure"], "type": ["4958002", "SCT", "Amygdala"]}
    _change(bundle, lambda metadata: metadata.update(segment_codes={"1": term, "2": term}))
    return bundle


def _change(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = bundle / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    change(metadata)
    path.write_text(json.dumps(metadata))


def _ids(report: Any) -> list[str]:
    return [case.case_id for case in report.cases]


# --- results are no input ---


@pytest.mark.parametrize("nested", [True, False])
def test_a_run_never_labels_its_own_results(nested: bool, coded: Path, tmp_path: Path) -> None:
    series = make_series((0, 3, 6, 9)).write(tmp_path / "in" / "series")
    save(blobs((12, 12, 12)), grid("plain"), tmp_path / "in" / "a.nii.gz")
    out = tmp_path / "in" / "results" if nested else tmp_path / "in"
    first = run_batch(coded, [tmp_path / "in"], out, Options(write=("nifti", "seg", "sr", "rtstruct", "sc")))
    again = run_batch(coded, [tmp_path / "in"], out, Options(write=("nifti", "seg", "sr", "rtstruct", "sc")))
    assert first.complete
    assert len(_ids(first)) == 2
    assert _ids(again) == _ids(first)
    assert again.content["summary"]["computed"] == 0
    assert {Path(one["source"]).name for one in again.content["skipped"]} == {
        name for case in first.cases for name in case.outputs
    }
    shutil.copy(out / "a_seg.nii.gz", tmp_path / "in" / "T1.nii.gz")  # under another name, without its run.json
    assert _ids(run_batch(coded, [tmp_path / "in"], tmp_path / "elsewhere")) == _ids(first)
    assert {record.case_id for record in scan(tmp_path / "in")} == set(_ids(first))
    with pytest.raises(UsageError, match="1 files that medseg wrote"):
        run_batch(coded, [tmp_path / "in" / "T1.nii.gz"], tmp_path / "elsewhere")
    assert series.is_dir()


# --- outputs that a source cannot have ---


def test_what_a_source_cannot_have_is_a_note_and_the_rest_is_written(
    coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = import_module("medseg.outputs.write")
    whole = outputs.write

    def without_contours(kind: str, *rest: Any, **options: Any) -> Path:
        if kind == "rtstruct":
            raise Refusal("geometry-mismatch", "contours cannot lie on oblique slices")
        return whole(kind, *rest, **options)

    monkeypatch.setattr(outputs, "write", without_contours)
    series = make_series((0, 3, 6, 9)).write(tmp_path / "series")
    report = run_batch(coded, [series], tmp_path / "out", Options(write=("nifti", "seg", "rtstruct")))
    (case,) = report.cases
    assert report.complete
    assert case.not_written["rtstruct"].reason == "geometry-mismatch"
    assert [name.partition("_")[2] for name in case.outputs] == ["seg.nii.gz", "seg.dcm"]
    assert report.content["summary"]["not_written"] == {"rtstruct": 1}
    assert "rtstruct(geometry-mismatch)" in (tmp_path / "out" / "results.csv").read_text()


# --- a finished output is looked at before it is believed ---


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: data[:-1] + bytes([data[-1] ^ 1]), None])
def test_an_output_that_is_not_what_was_written_is_computed_again(
    damage: Callable[[bytes], bytes] | None, thresholds: Path, images: Path, tmp_path: Path, caplog: Any
) -> None:
    run_batch(thresholds, [images], tmp_path / "out")
    output = tmp_path / "out" / "case1_seg.nii.gz"
    whole = output.read_bytes()
    if damage is None:
        output.unlink()
    else:
        output.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING, "medseg"):
        again = run_batch(thresholds, [images], tmp_path / "out")
    assert again.content["summary"]["computed"] == 1
    assert output.read_bytes() == whole
    kept = tmp_path / "out" / "case1_seg.nii.gz.changed"
    assert kept.exists() == (damage is not None)  # it may hold corrections made by hand
    assert ("is computed again" in caplog.text) == (damage is not None)
    recorded = again.content["cases"][1]["checksums"][output.name]
    assert recorded == {"bytes": len(whole), "sha256": sha256_file(output)}


# --- what the figures are worth ---


def test_cases_that_were_trained_on_are_marked(tmp_path: Path, images: Path) -> None:
    bundle = write_bundle(tmp_path / "b", Design(transforms=ORIENTED))
    series = make_series((0, 3, 6, 9)).write(tmp_path / "series")
    unknown = run_batch(bundle, [images], tmp_path / "before")
    assert {case.trained_on for case in unknown.cases} == {None}
    assert unknown.content["summary"]["trained_on"] is None
    learnt = [sha256_file(images / "case1.nii.gz"), path_checksum(series)]
    items = [{"sha256": {"image": one}} for one in learnt]
    (bundle / "configs" / "datalist.json").write_text(json.dumps({"training": items}))
    (images / "case1.nii.gz").rename(images / "renamed.nii.gz")
    report = run_batch(bundle, [images, shutil.copytree(series, tmp_path / "moved")], tmp_path / "out")
    marked = {case.case_id: case.trained_on for case in report.cases}
    assert [name for name, seen in marked.items() if seen] == [n for n in marked if n.startswith(("renamed", "series"))]
    assert report.content["summary"]["trained_on"] == 2
    assert run_batch(bundle, [images], tmp_path / "out").content["summary"]["trained_on"] == 1  # from the journal


def test_a_datalist_gives_the_part_that_is_asked_for(thresholds: Path, images: Path, tmp_path: Path) -> None:
    items = [{"image": f"images/case{n}.nii.gz", "fold": n} for n in range(2)]
    (tmp_path / "dl.json").write_text(json.dumps({"training": items, "testing": ["images/case2.nii.gz"]}))

    def chosen(**part: Any) -> list[str]:
        return _ids(run_batch(thresholds, [tmp_path / "dl.json"], tmp_path / "out", Options(**part)))

    assert chosen() == ["case0", "case1", "case2"]
    assert chosen(section="test") == ["case2"]
    assert chosen(section="training") == ["case0", "case1"]
    assert chosen(fold=1) == ["case1"]
    for part, told in (
        ({"fold": 7}, "fold 7"),
        ({"section": "validation"}, "no such items"),
        ({"section": "x"}, "--sec"),
    ):
        with pytest.raises(UsageError, match=told):
            chosen(**part)
    with pytest.raises(UsageError, match="give one"):
        run_batch(thresholds, [images], tmp_path / "out", Options(section="test"))


# --- the modality that a bundle was made for ---


@pytest.mark.parametrize(
    ("stated", "allowed"),
    [
        ({"modality": "CT"}, {"CT"}),
        ({"modality": "n/a"}, set()),
        ({"modality": "CT", "channel_def": {"0": "image"}}, {"CT"}),
        ({"modality": "MR", "channel_def": {"0": "T1w, or CT"}}, {"MR", "CT"}),
        ({"modality": ["MRI"]}, {"MR"}),
    ],
)
def test_a_series_of_another_modality_is_refused(stated: dict[str, Any], allowed: set[str], tmp_path: Path) -> None:
    from medseg.bundle import Bundle

    bundle = write_bundle(tmp_path / "b", Design(transforms=ORIENTED))
    _change(bundle, lambda m: m["network_data_format"]["inputs"]["image"].update(stated))
    assert expected_modalities(Bundle.open(bundle)) == (frozenset(allowed),)
    series = make_series((0, 3, 6, 9)).write(tmp_path / "series")
    (record,) = scan(series)
    image = save(blobs((12, 12, 12)), grid("plain"), tmp_path / "a.nii.gz")
    opened = Bundle.open(bundle, "network-only")
    by_kind = {case.source: case for case in run_batch(opened, [series, image], tmp_path / "out").cases}
    expected = "wrong-modality" if allowed and record.modality not in allowed else None
    assert by_kind[str(series)].reason == expected
    assert by_kind[str(image)].status == "done"  # a NIfTI file states no modality


# --- names and places ---


def test_a_name_that_is_not_text_costs_one_case_at_most(thresholds: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    whole = save(blobs((12, 12, 12)), grid("plain"), folder / "good.nii.gz").read_bytes()
    for name in (b"bad\xff.nii.gz", b"also\xfe.nii.gz"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(whole)
    (folder / f"{'long' * 60}.nii.gz").write_bytes(whole)
    report = run_batch(thresholds, [folder], tmp_path / "out")
    assert report.complete
    assert len(report.cases) == 4
    assert run_batch(thresholds, [folder], tmp_path / "out").content["summary"]["computed"] == 0
    sources = {case["source"] for case in json.loads((tmp_path / "out" / "run.json").read_text())["cases"]}
    assert all(Path(source).exists() for source in sources)  # the escapes in the JSON lead back to the files
    (tmp_path / "out" / "results.csv").read_bytes().decode()


def test_a_full_disk_fails_the_case_and_leaves_nothing_half_written(
    thresholds: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.fsync

    def full(handle: int) -> None:
        if "case1_seg" in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(handle)

    monkeypatch.setattr(os, "fsync", full)
    report = run_batch(thresholds, [images], tmp_path / "out")
    assert [case.reason for case in report.cases] == [None, "disk-full", None]
    assert "make room" in report.cases[1].message
    assert not list((tmp_path / "out").glob("*case1_seg*"))


@pytest.mark.parametrize("what", ["journal", "run.json"])
def test_a_run_that_can_note_nothing_more_ends_with_a_message(
    what: str, thresholds: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "journal":
        begin = RunState.__init__

        def small(self: RunState, *given: Any) -> None:
            begin(self, *given)
            self._connection.execute("PRAGMA query_only=1")  # SQLite then refuses to write, as on a full disk

        monkeypatch.setattr(RunState, "__init__", small)
    else:
        (tmp_path / "out" / "run.json").mkdir(parents=True)
    with pytest.raises(OutputUnusable, match="make room"):
        run_batch(thresholds, [images], tmp_path / "out", Options(trust=False))


def test_control_characters_of_names_are_not_shown() -> None:
    assert (
        files.shown("a\x1b[31m\u202eb\udcff\n")
        == "a\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}b?\N{REPLACEMENT CHARACTER}"
    )
