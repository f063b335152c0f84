"""What --cluster accepts, and what it says if the extra is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from medseg.errors import MissingDependency, UsageError
from medseg.inference import Options, run_batch
from medseg.inference.run.options import Place, parse_place


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("local:2", Place("local", "2")),
        ("slurm", Place("slurm", "")),
        ("slurm:jobs.json", Place("slurm", "jobs.json")),
        ("tcp://10.0.0.7:8786", Place("scheduler", "tcp://10.0.0.7:8786")),
        ("tls://scheduler.example:8786", Place("scheduler", "tls://scheduler.example:8786")),
        ("scheduler:8786", Place("scheduler", "scheduler:8786")),
    ],
)
def test_reads_every_form(text: str, place: Place) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize("text", ["", "local", "local:", "local:0", "local:-1", "local:two", "somewhere", "kubernetes"])
def test_refuses_the_rest(text: str) -> None:
    with pytest.raises(UsageError, match="--cluster"):
        Options(cluster=text)


def test_says_how_to_install_what_is_missing(
    thresholds: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("medseg.inference.run.cluster", "medseg.inference.run.dask"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingDependency, match=r"pip install 'medseg\[cluster\]'"):
        run_batch(thresholds, [images], tmp_path / "out", Options(cluster="local:2"))


def test_an_address_without_a_scheduler_is_refused(thresholds: Path, images: Path, tmp_path: Path) -> None:
    dask = pytest.importorskip("dask")
    pytest.importorskip("distributed")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(UsageError, match="no Dask scheduler answers there"),
    ):
        run_batch(thresholds, [images], tmp_path / "out", Options(cluster="tcp://127.0.0.1:1"))


@pytest.mark.parametrize("text", ["[]", "not json", '{"jobs": 0}', '{"jobs": "2"}', '{"jobs": 1, "colour": "red"}'])
def test_settings_of_slurm_that_make_no_sense_are_refused(
    text: str, thresholds: Path, images: Path, tmp_path: Path
) -> None:
    pytest.importorskip("dask_jobqueue")
    (tmp_path / "jobs.json").write_text(text)
    with pytest.raises(UsageError, match=r"jobs\.json"):
        run_batch(thresholds, [images], tmp_path / "out", Options(cluster=f"slurm:{tmp_path / 'jobs.json'}"))
