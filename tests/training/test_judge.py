"""The judge that a run ends with: accepted where it can learn, silent where it has not, the same whenever it learns."""

import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.transforms import Compose
from rich.console import Console

from medseg.bundle import Bundle
from medseg.cli._progress import TrainingProgress
from medseg.errors import Interrupted
from medseg.training import TrainingDataset, TrainingResult, train_bundle
from medseg.training.data import Draw
from medseg.training.judge import JudgeRecipe, judge_definition, learn_judge
from medseg.training.trainer import JudgeEvents
from medseg.transforms import RandSpatiald
from medseg.trust.discriminator import DiscriminatorJudge, Judging, accept_discriminator, read_discriminator
from medseg.trust.discriminator_acceptance import DISCRIMINATOR_NAME, discriminator_state
from tests.training.bundles import SMALL, copy_bundle, write_data
from tests.training.conftest import SIZE, balls

pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # MONAI tries all its readers in LoadImaged

OPPONENT = {"_target_": "medseg.networks.ConditionalPatchDiscriminator", "label_channels": 2, "channels": 4}
State = dict[str, torch.Tensor]


def _dataset(cases: list[dict[str, torch.Tensor]]) -> TrainingDataset:
    crop = RandSpatiald(
        ["image", "label"], (SIZE,) * 3, mode=["bilinear", "nearest"], foreground_key="label", prob_foreground=0.0
    )
    return TrainingDataset(cases, Compose([crop]), seed=5)


def _same(one: State, other: State) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def _train(folder: Path, output: str, **options: Any) -> TrainingResult:
    data = folder / "data"
    if not data.exists():
        data.mkdir()
        write_data(data)
    settings = {**SMALL, "epochs": 1, "judge_steps": 2, **options.pop("overrides", {})}
    bundle = folder / "hippocampus_mri_segmentation"
    return train_bundle(
        bundle if bundle.exists() else copy_bundle(folder),
        datalist=data / "datalist.json",
        dataset_dir=data,
        output=folder / output,
        fold=1,
        overrides=settings,
        **options,
    )


def test_a_judge_learns_from_wrong_pairs_alone_and_depends_on_nothing_else() -> None:
    definition = judge_definition(OPPONENT)
    assert definition is not None
    assert (definition["channels"], definition["products"]) == (16, True)
    assert judge_definition({"_target_": "monai.networks.nets.PatchDiscriminator"}) is None
    dataset = _dataset(balls(8))
    before = dataset[Draw(0, 3)]["image"]
    judge = learn_judge(dataset, definition, JudgeRecipe(40))
    found = accept_discriminator(judge.network, balls(20, seed=9), Judging((SIZE,) * 3, 2), held_out=True)
    assert found.accepted, found.shortcomings
    assert torch.equal(dataset[Draw(0, 3)]["image"], before), "the run's own crops stay what they were"
    short = learn_judge(dataset, definition, JudgeRecipe(2)).network.state_dict()
    torch.rand(3)
    assert _same(short, learn_judge(_dataset(balls(8)), definition, JudgeRecipe(2)).network.state_dict())
    assert not _same(short, learn_judge(dataset, definition, JudgeRecipe(2, seed=1)).network.state_dict())


def test_cases_without_a_structure_teach_nothing() -> None:
    definition = judge_definition(OPPONENT)
    assert definition is not None
    empty = [{"image": case["image"], "label": torch.zeros_like(case["label"])} for case in balls(2)]
    fresh, learnt = (learn_judge(_dataset(empty), definition, JudgeRecipe(steps)).network for steps in (0, 3))
    assert _same(fresh.state_dict(), learnt.state_dict())


def test_a_published_run_has_an_accepted_judge(tmp_path: Path) -> None:
    result = _train(tmp_path, "out", publish="final", overrides={"judge_steps": 60})
    bundle = Bundle.open(tmp_path / "hippocampus_mri_segmentation")
    state = discriminator_state(bundle)
    assert state.state == "accepted", state.message
    assert DiscriminatorJudge.open(bundle) is not None
    record = json.loads((tmp_path / "out" / "run.json").read_text())["result"]
    assert record["discriminator"]["accepted"] is True
    assert (record["judge"]["steps"], record["judge"]["seed"]) == (60, 20)
    assert record["judge"]["core_seconds"] > 0.0
    assert result.judge is not None
    assert (bundle.path / DISCRIMINATOR_NAME).stat().st_mode & 0o044, "others may read it"
    published = read_discriminator(bundle).state_dict()
    kept = torch.load(tmp_path / "out" / "checkpoints" / "judge.pt", weights_only=True)["weights"]
    assert _same(kept, published)


def test_a_judge_that_has_not_learnt_is_said_and_gives_no_verdict(tmp_path: Path) -> None:
    _train(tmp_path, "out", publish="final", overrides={"judge_steps": 1})
    bundle = Bundle.open(tmp_path / "hippocampus_mri_segmentation")
    state = discriminator_state(bundle)
    assert state.state == "failed"
    assert "no verdict comes from the discriminator" in state.message
    assert DiscriminatorJudge.open(bundle) is None
    assert json.loads((tmp_path / "out" / "run.json").read_text())["result"]["discriminator"]["accepted"] is False


def test_without_a_judge_the_opponent_is_published(tmp_path: Path) -> None:
    result = _train(tmp_path, "out", publish="final", overrides={"judge_steps": 0})
    assert result.judge is None
    assert not (tmp_path / "out" / "checkpoints" / "judge.pt").exists()
    opponent = torch.load(tmp_path / "out" / "checkpoints" / "final_discriminator.pt", weights_only=True)
    published = read_discriminator(Bundle.open(tmp_path / "hippocampus_mri_segmentation")).state_dict()
    assert _same(opponent, published)


def test_a_judge_is_learnt_once_and_the_same_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _train(tmp_path, "whole")
    place = tmp_path / "parts" / "checkpoints" / "judge.pt"
    with monkeypatch.context() as patched:
        patched.setattr(
            "medseg.training.judge.learn_judge", lambda *_: os.kill(os.getpid(), signal.SIGTERM), raising=True
        )
        with pytest.raises(Interrupted, match=r"the training itself is done and saved.*--resume"):
            _train(tmp_path, "parts")
    assert not place.exists()
    assert json.loads((tmp_path / "parts" / "run.json").read_text())["status"] == "interrupted"
    _train(tmp_path, "parts", resume=True)
    whole, parts = (
        torch.load(tmp_path / run / "checkpoints" / "judge.pt", weights_only=True)["weights"]
        for run in ("whole", "parts")
    )
    assert _same(whole, parts)
    with monkeypatch.context() as patched:
        patched.setattr("medseg.training.judge.learn_judge", lambda *_: pytest.fail("it has learnt already"))
        _train(tmp_path, "parts", resume=True, publish="final")
    longer = _train(tmp_path, "parts", resume=True, overrides={"judge_steps": 3})
    assert longer.judge is not None
    assert longer.judge["steps"] == 3


def test_a_signal_in_a_transform_or_in_the_trial_interrupts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = r"the training itself is done and saved.*--resume"

    def wrapped(*_: Any) -> None:  # as MONAI wraps whatever happens inside of a transform
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Interrupted as error:
            raise RuntimeError("applying transform") from error

    with monkeypatch.context() as patched:
        patched.setattr("medseg.training.judge.learn_judge", wrapped)
        with pytest.raises(Interrupted, match=told):
            _train(tmp_path, "out")
    with monkeypatch.context() as patched:
        patched.setattr("medseg.training.publish.accept_discriminator", lambda *_, **__: wrapped())
        with pytest.raises(Interrupted, match=told):
            _train(tmp_path, "out", resume=True)
    assert (tmp_path / "out" / "checkpoints" / "judge.pt").exists()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "interrupted"


def test_the_judge_of_an_earlier_run_or_a_damaged_one_is_not_taken(tmp_path: Path) -> None:
    _train(tmp_path, "out")
    checkpoints = tmp_path / "out" / "checkpoints"
    place = checkpoints / "judge.pt"
    content = torch.load(place, weights_only=True)
    learnt = {name: value.clone() for name, value in content["weights"].items()}
    place.write_bytes(place.read_bytes()[:1000])
    _train(tmp_path, "out", resume=True)
    assert _same(torch.load(place, weights_only=True)["weights"], learnt)
    # as if it had learnt from other cases, among them those that are held out now
    content["weights"] = {name: value + 1.0 for name, value in learnt.items()}
    torch.save(content, place)
    for path in checkpoints.glob("checkpoint-*.pt"):
        path.unlink()
    _train(tmp_path, "out")
    assert _same(torch.load(place, weights_only=True)["weights"], learnt)


def test_the_steps_of_the_judge_are_told_and_its_trial_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bool] = []

    def accept(*given: Any, **how: Any) -> Any:
        tried.append(True)
        return accept_discriminator(*given, **how)

    monkeypatch.setattr("medseg.training.publish.accept_discriminator", accept)
    steps: list[tuple[int, int]] = []

    class Watching:
        def attach(self, engine: Any) -> None:
            engine.add_event_handler(JudgeEvents.PROGRESSED, lambda: steps.append(engine.state.judge_steps))

    told = io.StringIO()
    with TrainingProgress(Console(file=told)) as progress:
        _train(tmp_path, "out", publish="final", watchers=[Watching(), progress])
    assert "the judge learns from the training cases, in 2 steps" in told.getvalue()
    assert steps == [(0, 2), (1, 2), (2, 2)]
    assert len(tried) == 1
    bundle = Bundle.open(tmp_path / "hippocampus_mri_segmentation")
    assert discriminator_state(bundle).state == "failed", "its record belongs to the published weights"
