"""What MLflow finds: every epoch once, also after a stop, a server that was down, or a resumed training."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Events

from medseg.errors import Interrupted, MissingDependency, UsageError
from medseg.files import write_json
from medseg.training import metrics_log as tracking
from medseg.training import train_bundle
from medseg.training.metrics_log import Tracking
from medseg.training.trainer import AdversarialSegmentationTrainer
from tests.training.bundles import SMALL, copy_bundle, write_data

mlflow = pytest.importorskip("mlflow", reason="the extra tracking is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # MLflow leaves its connections to the collector
]
ROWS = [{"epoch": n, "iteration": 10 * n, "loss": 1 / n, "val_dice_left (inner)": 0.5 + n / 10} for n in (1, 2, 3)]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


def _runs(uri: str, name: str) -> list[Any]:
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("medseg")
    return [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == name]


def _losses(uri: str, run: Any) -> list[tuple[int, float]]:
    found = mlflow.MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, "loss")
    return [(metric.step, round(metric.value, 6)) for metric in found]


def test_every_epoch_is_there_once_though_the_server_was_down(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "interrupted"
    folder.mkdir()
    settings = {"epochs": 3, "mlflow": "http://someone:secret@host"}
    write_json(folder / "run.json", {"bundle": {"name": "b", "version": "1"}, "overrides": settings})
    said: list[str] = []
    # the logger's own method: which handlers and levels a whole suite leaves behind is nothing to this test
    monkeypatch.setattr(tracking._logger, "warning", lambda text, *values: said.append(text % values))
    first = Tracking(uri, folder)
    first.write(ROWS[:1])
    with monkeypatch.context() as down:
        down.setattr(first._client, "log_batch", lambda *_: (_ for _ in ()).throw(ConnectionError("no route")))
        first.write(ROWS[:2])
    [warning] = said
    assert "no route" in warning
    assert "the training goes on" in warning
    Tracking(uri, folder).write(ROWS[:2])  # resumed
    last = Tracking(uri, folder)
    last.write(ROWS)
    last.close("FINISHED")
    [run] = _runs(uri, "interrupted")
    assert _losses(uri, run) == [(1, 1.0), (2, 0.5), (3, 0.333333)]
    assert run.data.metrics["val_dice_left _inner_"] == pytest.approx(0.8)
    assert run.data.params == {"bundle": "b", "bundle version": "1", "epochs": "3"}
    assert run.info.status == "FINISHED"


def test_a_run_that_is_kept_somewhere_else_begins_again(uri: str, tmp_path: Path) -> None:
    write_json(tmp_path / "mlflow.json", {"run_id": "0" * 32})
    Tracking(uri, tmp_path).write(ROWS)
    [run] = _runs(uri, tmp_path.name)
    assert len(_losses(uri, run)) == 3


@pytest.mark.parametrize("where", ["file:///tmp/nowhere", "sqlite:////proc/nowhere/mlflow.db", "nonsense://host"])
def test_a_place_that_does_not_work_is_refused(where: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected http://host:port"):
        Tracking(where, tmp_path)


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(MissingDependency, match=r"medseg\[tracking\]"):
        Tracking("sqlite:///never.db", tmp_path)


class _StopAfterThree:
    """Watcher that asks this process to stop, as a batch system does."""

    def attach(self, engine: AdversarialSegmentationTrainer) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: os.kill(os.getpid(), signal.SIGTERM))


def test_a_training_that_is_stopped_and_resumed_shows_as_one_run(uri: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"dataset_dir": tmp_path, "device": "cpu", "output": tmp_path / "trained"}
    options |= {"datalist": write_data(tmp_path), "overrides": {**SMALL, "mlflow": uri}}
    bundle = copy_bundle(tmp_path)
    with pytest.raises(Interrupted):
        train_bundle(bundle, **options, watchers=[_StopAfterThree()])
    [run] = _runs(uri, "trained")
    assert run.info.status == "KILLED"
    assert [step for step, _ in _losses(uri, run)] == [1]
    result = train_bundle(bundle, **options, resume=True)
    [run] = _runs(uri, "trained")
    assert [step for step, _ in _losses(uri, run)] == [1, 2]
    assert run.data.metrics["epoch"] == result.epochs == 2
    assert {"loss", "val_dice", "val_dice_anterior_hippocampus"} <= set(run.data.metrics)
    assert run.data.params["bundle"] == "hippocampus_mri_segmentation"
    assert not {name for name, value in run.data.params.items() if "sqlite" in value}
    assert run.info.status == "FINISHED"
