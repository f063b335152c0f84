"""Whatever fails in a training ends it: message, exit code, ``run.json``; and the run can go on afterwards."""

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.handlers import StatsHandler
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from medseg.cli import train as _command_file  # noqa: F401  it registers the command
from medseg.cli.main import app
from medseg.errors import Interrupted, TrainingDiverged, TrainingFailed, UsageError
from medseg.files import write_text
from medseg.training import AdversarialSegmentationTrainer, Checkpoints, TrainingDataset, train_bundle
from medseg.training.step import NetworkStep
from tests.training.bundles import SMALL, copy_bundle, write_data

Patch = pytest.MonkeyPatch
Make = Callable[..., AdversarialSegmentationTrainer]

pytestmark = [
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader"),  # MONAI tries all its readers in LoadImaged
    pytest.mark.filterwarnings("ignore:the (prediction|ground truth) of class"),  # networks of two steps miss things
]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    write_data(tmp_path / "data")
    return copy_bundle(tmp_path)


def _command(bundle: Path, *more: str, **settings: Any) -> tuple[int, str, dict[str, Any]]:
    """``medseg train``; returns the exit code, what was printed, and ``run.json``."""
    data, output = bundle.parent / "data", bundle.parent / "out"
    knobs = {**SMALL, **settings}
    chosen = [part for name, value in knobs.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    where = ["--datalist", str(data / "datalist.json"), "--dataset-dir", str(data), "--output", str(output)]
    done = CliRunner().invoke(app, ["train", str(bundle), *where, "--device", "cpu", *chosen, *more])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output, json.loads((output / "run.json").read_text())


def _raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def _late(error: BaseException, honest: Callable[..., Any], calls: int) -> Callable[..., Any]:
    """Fail from a later call on, so that a checkpoint lies there already."""
    left = [calls]

    def call(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise error
        return honest(*arguments, **named)

    return call


def _wrong_label(patch: Patch) -> None:
    patch.setattr("monai.losses.DiceCELoss.forward", _raising(IndexError("index 200 is out of bounds")))


def _loader(patch: Patch) -> None:
    patch.setattr("medseg.transforms.RandSpatiald.__call__", _raising(ValueError("no such patch")))


def _build(patch: Patch) -> None:
    patch.setattr("monai.transforms.NormalizeIntensityd.__call__", _raising(KeyError("image")))


def _forward(patch: Patch) -> None:
    patch.setattr("monai.networks.nets.BasicUNet.forward", _raising(torch.OutOfMemoryError("CUDA out of memory")))


def _backward(patch: Patch) -> None:
    memory = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory\nframe #0: somewhere")
    patch.setattr("torch.autograd.backward", _raising(memory))


def _disk(patch: Patch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    patch.setattr("medseg.training.checkpoints.torch.save", _late(full, torch.save, 3))


def _journal(patch: Patch) -> None:
    denied = PermissionError(errno.EACCES, "Permission denied", "metrics.csv")
    patch.setattr("medseg.training.metrics_log.write_text", _late(denied, write_text, 1))


def _validation(patch: Patch) -> None:
    patch.setattr(SupervisedEvaluator, "_iteration", _raising(ValueError("no validation")))


def _diverged(patch: Patch) -> None:
    patch.setattr(NetworkStep, "backward", _raising(TrainingDiverged("not finite in 10 batches in a row")))


def _nothing(patch: Patch) -> None:
    patch.setattr(Checkpoints, "save", lambda *_: None)


def _ends(patch: Patch) -> None:
    patch.setattr(AdversarialSegmentationTrainer, "run", lambda _: None)


_STAGES = [
    (_build, "unexpected", "KeyError"),
    (_loader, "unexpected", "ValueError"),
    (_forward, "out-of-memory", "OutOfMemoryError"),
    (_wrong_label, "unexpected", "IndexError"),
    (_backward, "out-of-memory", "RuntimeError"),
    (_diverged, "diverged", "TrainingDiverged"),
    (_validation, "unexpected", "ValueError"),
    (_journal, "unexpected", "PermissionError"),
    (_disk, "disk-full", "OSError"),
    (_nothing, "nothing-saved", "TrainingFailed"),
    (_ends, "stopped-early", "TrainingFailed"),
]
_RESUMED = (_build, _backward, _validation, _journal, _disk, _ends)
"""Stages before, in and after the first epoch, with a checkpoint and without; the others are resumed in slow runs."""


@pytest.mark.parametrize(("stage", "reason", "error"), _STAGES)
def test_each_stage_that_fails_ends_the_run_under_its_name(
    bundle: Path, stage: Callable[[Patch], None], reason: str, error: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stage(patch)
        code, text, record = _command(bundle)
    assert code == 2
    assert "Traceback" not in text
    assert "trained" not in text
    assert (record["status"], record["reason"], record["error"]) == ("failed", reason, error)
    assert record["message"] in text
    if stage in _RESUMED:
        _goes_on(bundle)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [stage for stage, _, _ in _STAGES if stage not in _RESUMED])
def test_the_other_stages_go_on_too(bundle: Path, stage: Callable[[Patch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stage(patch)
        code, _, record = _command(bundle)
    assert (code, record["status"]) == (2, "failed")
    _goes_on(bundle)


def _goes_on(bundle: Path) -> None:
    """From the last checkpoint, or anew."""
    code, _, record = _command(bundle, "--resume")
    assert (code, record["status"]) == (0, "done")
    assert "reason" not in record


@pytest.mark.slow
def test_a_worker_of_the_loader_that_raises_or_dies_is_named(bundle: Path, monkeypatch: Patch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(TrainingDataset, "__getitem__", _raising(ValueError("no such patch")))
        code, text, record = _command(bundle, num_workers=1)
    assert (code, record["reason"], record["error"]) == (2, "unexpected", "ValueError")
    assert "Traceback" not in text
    assert "ValueError: no such patch" in record["message"]
    monkeypatch.setattr(TrainingDataset, "__getitem__", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    code, _, record = _command(bundle, num_workers=1)
    assert (code, record["status"], record["reason"]) == (2, "failed", "worker-died")


class _Watcher:
    """Does something at an event, as a handler of the user's own."""

    def __init__(self, event: Any, action: Callable[[], Any]) -> None:
        self.event, self.action = event, action

    def attach(self, engine: AdversarialSegmentationTrainer) -> None:
        engine.add_event_handler(self.event, self.action)


def _train(bundle: Path, *watchers: _Watcher, **options: Any) -> dict[str, Any]:
    data, output = bundle.parent / "data", bundle.parent / "out"
    overrides = {**SMALL, **options.pop("overrides", {})}
    try:
        train_bundle(
            bundle,
            datalist=data / "datalist.json",
            dataset_dir=data,
            output=output,
            overrides=overrides,
            watchers=watchers,
            **options,
        )
    finally:
        record: dict[str, Any] = json.loads((output / "run.json").read_text())
    return record


def test_a_handler_that_swallows_exceptions_does_not(bundle: Path) -> None:
    swallowing = _Watcher(Events.EXCEPTION_RAISED, lambda *_: None)
    failing = _Watcher(Events.ITERATION_COMPLETED(once=2), _raising(ZeroDivisionError("in a handler")))
    with pytest.raises(TrainingFailed, match=r"iteration 2 of 4.*ZeroDivisionError: in a handler"):
        _train(bundle, swallowing, failing)
    assert _train(bundle, resume=True)["status"] == "done"


def test_a_model_that_cannot_be_published_is_no_success(bundle: Path) -> None:
    place = bundle / "models"
    blocked = _Watcher(Events.COMPLETED, lambda: place.write_text("a file where a folder should be"))
    with pytest.raises(TrainingFailed, match="models"):
        _train(bundle, blocked, publish=True)
    assert json.loads((bundle.parent / "out" / "run.json").read_text())["status"] == "failed"
    place.unlink()
    assert _train(bundle, publish=True, resume=True)["status"] == "done"
    assert (place / "model.pt").exists()


def test_a_signal_to_a_run_that_goes_on_after_a_failure_still_means_interrupted(bundle: Path) -> None:
    with pytest.raises(TrainingFailed):
        _train(bundle, _Watcher(Events.ITERATION_COMPLETED(once=3), _raising(ValueError())))
    terminate = _Watcher(Events.ITERATION_COMPLETED(once=3), lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted) as stopped:
        _train(bundle, terminate, resume=True)
    assert stopped.value.exit_code == 75
    record = json.loads((bundle.parent / "out" / "run.json").read_text())
    assert record["status"] == "interrupted"
    assert _train(bundle, resume=True)["status"] == "done"


def test_a_signal_to_the_whole_group_saves_and_interrupts_with_workers_too(bundle: Path) -> None:
    import multiprocessing

    def to_all() -> None:
        for process in multiprocessing.active_children():
            os.kill(process.pid or 0, signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="after iteration 1"):
        _train(bundle, _Watcher(Events.ITERATION_COMPLETED(once=1), to_all), overrides={"num_workers": 1})


def test_the_record_of_another_run_is_not_touched_by_a_refusal(bundle: Path) -> None:
    assert _train(bundle)["status"] == "done"
    with pytest.raises(UsageError, match="--resume"):
        _train(bundle)
    assert json.loads((bundle.parent / "out" / "run.json").read_text())["status"] == "done"


def test_an_unwritable_record_hides_nothing(bundle: Path, monkeypatch: Patch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    failing = _Watcher(Events.STARTED, lambda: monkeypatch.setattr("medseg.training.record.write_json", _raising(full)))
    with pytest.raises(TrainingFailed, match="ValueError: the first reason"):
        _train(bundle, failing, _Watcher(Events.STARTED, _raising(ValueError("the first reason"))))


@pytest.mark.parametrize("event", [Events.STARTED, Events.GET_BATCH_STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED])
def test_the_trainer_alone_raises_whatever_its_handlers_do(make_trainer: Make, event: Events) -> None:
    trainer = make_trainer()
    trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda *_: None)  # would swallow it
    trainer.add_event_handler(event, _raising(ZeroDivisionError("here")))
    with pytest.raises(ZeroDivisionError, match="here"):
        trainer.run()


def test_a_validation_that_would_swallow_its_exception_ends_the_training(make_trainer: Make) -> None:
    trainer = make_trainer()
    journal: Any = trainer.stateful["journal"]
    journal.evaluator.add_event_handler(Events.EXCEPTION_RAISED, lambda *_: None)
    StatsHandler(output_transform=lambda _: None).attach(trainer)
    journal.evaluator.add_event_handler(Events.ITERATION_COMPLETED, _raising(ValueError("in the validation")))
    with pytest.raises(ValueError, match="in the validation"):
        trainer.run()


@pytest.mark.filterwarnings("ignore:Data iterator can not provide data anymore")
def test_data_that_ends_before_the_last_iteration_is_no_success(make_trainer: Make) -> None:
    trainer = make_trainer(iterations=3)
    batches = list(DataLoader(trainer.data_loader.dataset, batch_size=2))[:2]
    trainer.data_loader = iter(batches)
    with pytest.raises(TrainingFailed, match="after iteration 2 of 6") as ended:
        trainer.run()
    assert ended.value.reason == "data-ended"
