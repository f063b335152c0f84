"""Every reader of files that others wrote, on sound files each part of which is in turn something else.

It reads them, or raises one of medseg's errors in one line, with the file and the place; never anything else.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medseg.bundle import Bundle
from medseg.errors import MedsegError, UsageError
from medseg.evaluation.pairing import collect as collect_label_maps
from medseg.evaluation.structures import read_scheme
from medseg.evaluation.tables import measured_dice
from medseg.geometry import Geometry
from medseg.inference.cases import collect, expected_modalities
from medseg.inference.run.state import RunState
from medseg.ingest import SeriesRecord, save_nifti, scan
from medseg.ingest.left_out import is_own_output
from medseg.ingest.selection import read_rules, select
from medseg.json_shape import read_json
from medseg.labels.codes import segment_codes
from medseg.manifests import Manifest, audit
from medseg.pacs.queue import Queue
from medseg.pacs.settings import read_settings
from medseg.report import write_report
from medseg.results import RunReport, write_worklist
from medseg.results.state_file import STATE_NAME
from medseg.training.record import settings_of
from tests.bundle.sample import write_bundle
from tests.odd_values import ODD, crashes, variants
from tests.report.report_folders import EVALUATION, make_folders

Sound = tuple[str, Any, Callable[[], object]]
"""A file's name, what stands in it, and what reads it."""


def each(*readers: Callable[[], object]) -> Callable[[], None]:
    """Call all of them, whichever raises first."""

    def read() -> None:
        errors = []
        for reader in readers:
            try:
                reader()
            except MedsegError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    return read


def run_over_cases(folder: Path) -> Sound:
    results = make_folders(folder / "study", ("a", "b"), refused=1).results
    content = json.loads((results / "run.json").read_text())
    content |= {"versions": {"torch": "2"}, "skipped": [{"source": "a", "reason": "b", "message": "c"}]}
    content["cases"] = content["cases"][:1]
    content["cases"][0]["not_written"] = {"seg": {"reason": "a", "message": "b"}}
    content["cases"][0]["checksums"] = {"a_seg.nii.gz": {"bytes": 1, "sha256": "0"}}

    def look() -> None:
        report = RunReport.read(folder)
        report.write()
        assert report.label_maps is not None
        assert report.others is not None
        write_worklist(report, folder / "worklist.csv", {})

    page = each(look, lambda: RunReport.find(folder), lambda: write_report(folder, viewer="never"))
    return "run.json", content, each(page, lambda: is_own_output(folder / "a_seg.nii.gz"))


def evaluation(folder: Path) -> Sound:
    results = make_folders(folder / "study", ("a", "b")).results
    (results / "metrics.csv").rename(folder / "metrics.csv")
    return (
        "metrics.json",
        EVALUATION,
        each(lambda: measured_dice(folder), lambda: write_report(folder, viewer="never")),
    )


def training(folder: Path) -> Sound:
    (folder / "metrics.csv").write_text("epoch,loss\n1,0.5\n2,nan\n")
    result = {"best_metric": 0.5, "best_epoch": 1, "seconds": 3.0}
    content = {"status": "done", "bundle": {"name": "a", "version": "1"}, "seed": 1, "overrides": {"a": 1}, "parts": []}
    page = each(lambda: write_report(folder, viewer="never"), lambda: settings_of(folder))
    return "run.json", {**content, "precision": {"used": "fp32"}, "result": result}, page


def datalist(folder: Path) -> Sound:
    for name in "ab":
        save_nifti(np.zeros((4, 4, 4), np.int16), np.eye(4), folder / f"{name}.nii.gz")
        save_nifti(np.ones((4, 4, 4), np.uint8), np.eye(4), folder / f"{name}_l.nii.gz")
    item = {"image": "a.nii.gz", "label": "a_l.nii.gz", "case_id": "a", "patient_id": "p", "sha256": {"image": "0"}}
    content = {
        "labels": {"0": "background", "1": "liver"},
        "label_mapping": {"1": 1},
        "licence": "CC0",
        "modality": {"0": "MR"},
        "numTraining": 2,
        "dataset_dir": ".",
        "training": [{**item, "fold": 0}, {"image": ["b.nii.gz"], "label": "b_l.nii.gz", "fold": 1}],
        "test": ["a.nii.gz"],
    }
    path = folder / "list.json"

    def look() -> None:
        manifest = Manifest.read(path)
        each(
            lambda: manifest.fold(0),
            lambda: manifest.split(2, 0, stratify=False),
            lambda: manifest.write(folder / "out.json"),
            lambda: manifest.labels,
            lambda: manifest.licence,
            lambda: audit(manifest),
        )()

    maps = each(lambda: collect_label_maps(path, "references"), lambda: read_scheme(path))
    return "list.json", content, each(look, maps, lambda: collect([path]))


def nnunet(folder: Path) -> Sound:
    for name in "ab":
        save_nifti(np.zeros((4, 4, 4), np.uint8), np.eye(4), folder / "imagesTr" / f"{name}_0000.nii.gz")
        save_nifti(np.zeros((4, 4, 4), np.uint8), np.eye(4), folder / "labelsTr" / f"{name}.nii.gz")
    content = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": ["b"]}]))
    return "dataset.json", {**content, "numTraining": 2}, lambda: Manifest.read(folder).labels


def nnunet_splits(folder: Path) -> Sound:
    name, content, read = nnunet(folder)
    (folder / name).write_text(json.dumps(content))
    return "splits_final.json", [{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}], read


def selection_rules(folder: Path) -> Sound:
    affine = tuple(map(tuple, np.eye(4).tolist()))
    grid: dict[str, Any] = {"shape": (4, 4, 4), "spacing_mm": (1.0, 1.0, 1.0), "affine": affine, "orientation": "RAS"}
    record = SeriesRecord("a", "a", "dicom", ("a",), modality="MR", description="x", usable=True, **grid)
    rule = {
        "channel": "t1",
        "modality": "MR",
        "orientation": ["axial"],
        "slices": {"min": 1, "max": 9},
        "take": "latest",
    }
    more = {"spacing_mm": {"max": [1, 1, 1]}, "description": "x", "exclude_description": "y", "contrast": False}
    return "rules.json", {"rules": [{**rule, **more}]}, lambda: select([record], read_rules(folder / "rules.json"))


def label_names(folder: Path) -> Sound:
    pred = {"channel_def": {"0": "background", "1": "liver"}}
    content = {"network_data_format": {"outputs": {"pred": pred}}, "labels": {"1": "liver"}}
    return "labels.json", content, lambda: read_scheme(folder / "labels.json")


def bundle_metadata(folder: Path) -> Sound:
    bundle = write_bundle(folder)
    content = json.loads((bundle / "configs" / "metadata.json").read_text())
    content["training_range"] = {"spacing_mm": {"low": [1, 1, 1], "high": [2, 2, 2]}, "modality": ["MR"]}

    def look() -> None:
        opened = Bundle.open(bundle)
        each(
            lambda: opened.version,
            lambda: (opened.input_channels, opened.dimensions, opened.output_channels),
            lambda: (opened.has_background, opened.labels, opened.training_range),
            lambda: segment_codes(opened),
            lambda: opened.check_range(Geometry((40, 40, 40), np.eye(4)), "MR"),
            lambda: expected_modalities(opened),
        )()

    return f"{bundle.name}/configs/metadata.json", content, look


SLOW = (run_over_cases, evaluation, training, datalist, bundle_metadata)
FILES = (*SLOW, nnunet, nnunet_splits, selection_rules, label_names)


@pytest.mark.parametrize("kind", FILES, ids=lambda kind: kind.__name__)
def test_json_of_wrong_kinds(kind: Callable[[Path], Sound], tmp_path: Path) -> None:
    name, content, read = kind(tmp_path)
    assert crashes(tmp_path / name, content, read, step=10 if kind in SLOW else 1, allowed=(OSError,)) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES, ids=lambda kind: kind.__name__)
def test_all_json_of_wrong_kinds(kind: Callable[[Path], Sound], tmp_path: Path) -> None:
    name, content, read = kind(tmp_path)
    assert crashes(tmp_path / name, content, read, allowed=(OSError,)) == []


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if value is None:
        raise ValueError("TOML has no null")
    return repr(value) if isinstance(value, float) else json.dumps(value)


def test_settings_of_wrong_kinds(tmp_path: Path) -> None:
    node = {"ae_title": "A", "host": "h", "port": 1, "retrieve": "move", "move_port": 2, "timeout_seconds": 3.0}
    listener = {"folder": "in", "ae_title": "B", "port": 3, "allowed_callers": ["A"], "quiet_seconds": 3}
    route = {
        "name": "r",
        "bundle": "bundles/x",
        "write": ["seg"],
        "send_to": ["a"],
        "select": "s.json",
        "device": "cpu",
    }
    content = {
        "nodes": {"a": {**node, "tls": {"ca": "c"}, "limits": {"studies": 5, "megabytes": 1.5}}, "w": {"url": "http://x"}},
        "listener": listener,
        "run": {"source": "a", "folder": "run", "where": {"StudyDate": "2"}, "modalities": ["MR"], "keep_images": True},
        "routes": [route],
    }  # fmt: skip
    path, wrong = tmp_path / "pacs.toml", 0
    for at, odd, value in [((), "sound", content), *variants(content)]:
        with suppress(ValueError, AttributeError):
            path.write_text("\n".join(f"{json.dumps(key)} = {toml(part)}" for key, part in value.items()))
            try:
                list(map(str, read_settings(path).nodes.values()))
            except UsageError as error:
                assert odd != "sound", error  # noqa: PT017
                assert "\n" not in str(error), (at, odd)  # noqa: PT017
                wrong += 1
            except OSError:
                assert len(str(odd)) > 255, (at, odd)
    assert wrong > 500
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"pacs\.toml"):
        read_settings(path)


def journal(folder: Path, row: list[Any]) -> None:
    path = folder / STATE_NAME
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("CREATE TABLE cases (case_id, source, run_key, stat_key, content_key, deaths, result)")
        connection.execute("INSERT INTO cases VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        connection.commit()


def journals(case: dict[str, Any]) -> Iterator[list[Any]]:
    sound = ["a", b"a", "k", "s", "c", 0, json.dumps(case)]
    plain = [odd for odd in ODD if isinstance(odd, str | float | None) or (isinstance(odd, int) and abs(odd) < 10)]
    for column in range(len(sound)):
        yield from ([*sound[:column], odd, *sound[column + 1 :]] for odd in plain if odd != "\ud800")
    yield from ([*sound[:-1], json.dumps(odd)] for _, _, odd in variants(case, 3))


def test_the_state_of_an_interrupted_run(tmp_path: Path) -> None:
    results = make_folders(tmp_path / "study", ("a",)).results
    case = json.loads((results / "run.json").read_text())["cases"][0]
    context: Any = SimpleNamespace(folder=tmp_path, options=SimpleNamespace(fresh=False, write=("nifti",)), run_key="k")
    wrong = 0
    for row in journals(case):
        journal(tmp_path, row)
        for read in (lambda: RunReport.find(tmp_path), lambda: RunState(context, []).close()):
            try:
                read()
            except UsageError as error:
                assert STATE_NAME in str(error)  # noqa: PT017
                wrong += 1
    assert wrong > 200


def test_outputs_of_a_state_lie_in_its_folder(tmp_path: Path) -> None:
    journal(tmp_path, ["a", b"a", "k", "s", "c", 0, json.dumps({"case_id": "a", "outputs": ["../elsewhere.nii.gz"]})])
    with pytest.raises(UsageError, match="a file's name without a folder"):
        RunReport.find(tmp_path)


@pytest.mark.parametrize(
    "spoil",
    [
        "UPDATE records SET payload = '[1]'",
        """UPDATE records SET payload = replace(payload, '"usable":true', '"usable":"yes"')""",
        "UPDATE records SET payload = replace(payload, '[\"', '[5, \"')",
        "UPDATE files SET name = 5",
        "UPDATE files SET token = 1.5",
        "DROP TABLE headers",
        "ALTER TABLE files RENAME TO other",
    ],
)
def test_an_index_that_somebody_else_has_written(tmp_path: Path, spoil: str) -> None:
    save_nifti(np.zeros((4, 4, 4), np.uint8), np.eye(4), tmp_path / "in" / "a.nii.gz")
    database = tmp_path / "index.sqlite"
    sound = scan([tmp_path / "in"], database=database)
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(spoil)
        connection.commit()
    try:
        assert scan([tmp_path / "in"], database=database) == sound
    except UsageError as error:
        assert "index.sqlite" in str(error)  # noqa: PT017


def test_a_database_of_something_else_keeps_its_tables(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE meta (key, value); CREATE TABLE patients (name)")
    with pytest.raises(UsageError, match="something else"):
        scan([tmp_path], database=path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM patients").fetchone() == (0,)


@pytest.mark.parametrize("content", [b"", b"no database, but some text that is long enough for a header" * 9, None])
def test_a_queue_that_is_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "queue.sqlite"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    if content == b"":
        Queue(path).close()
        return
    with pytest.raises(UsageError, match=r"queue\.sqlite"):
        Queue(path)


@pytest.mark.parametrize("column", ["state", "revision", "attempts", "not_before", "last_arrival"])
def test_a_queue_of_wrong_kinds(tmp_path: Path, column: str) -> None:
    path = tmp_path / "queue.sqlite"
    Queue(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO study (study, state, last_arrival) VALUES ('a', 'waiting', 1.0)")
        connection.execute(f"UPDATE study SET {column} = 'x'")
        connection.commit()
    with pytest.raises(UsageError, match="has not written"):
        Queue(path)


def test_a_device_is_no_endless_file() -> None:
    with pytest.raises(UsageError, match="more than 1000 bytes"):
        read_json("/dev/zero", {}, "give a file", most_bytes=1000)
