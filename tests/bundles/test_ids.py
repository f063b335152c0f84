"""Ids that a bundle does not know are refused, whoever runs it; those that it knows count."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow, run

from medseg.errors import BundleError, UsageError
from medseg.planning import create_bundle
from medseg.training import check_ids, started, train_bundle
from tests.bundles.images import BUNDLES
from tests.planning.test_create import write_dataset
from tests.training.bundles import FLAGSHIP, SMALL, copy_bundle, write_data

PLANNED = "planned"
NAMES = [*sorted(path.name for path in BUNDLES.iterdir()), PLANNED]
OVERLAYS = [
    *((PLANNED, name) for name in ("evaluate.json", "multi_gpu_train.json")),
    *(
        (path.parents[1].name, path.name)
        for path in sorted(BUNDLES.glob("*/configs/*.json"))
        if path.name in {"evaluate.json", "multi_gpu_train.json", "adversarial_train.json", "slices_2d.json"}
    ),
]

pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # MONAI tries all its readers in LoadImaged


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of the configs of every shipped bundle, and of one that was planned."""
    folder = tmp_path_factory.mktemp(PLANNED)
    planned, _ = create_bundle("ball_mri_segmentation", write_dataset(folder / "data"), folder)
    return {name: (planned if name == PLANNED else BUNDLES / name) / "configs" for name in NAMES}


def _workflow(folder: Path, *files: str, **overrides: Any) -> ConfigWorkflow:
    return ConfigWorkflow(
        config_file=[str(folder / name) for name in files],
        logging_file=False,
        workflow_type="train",
        run_id="training",
        bundle_root=str(folder.parent),
        device="cpu",
        **overrides,
    )


def _refusal(workflow: ConfigWorkflow) -> str:
    with pytest.raises(RuntimeError, match="check_ids") as wrapped:
        workflow.initialize()
    assert isinstance(wrapped.value.__cause__, UsageError)
    return str(wrapped.value.__cause__)


@pytest.mark.parametrize("name", NAMES)
def test_the_list_is_what_stands_in_the_file(name: str, configs: dict[str, Path]) -> None:
    config = json.loads((configs[name] / "train.json").read_text())
    groups = [f"{group}#{child}" for group in ("train", "validate") for child in config[group]]
    assert sorted(config["known_ids"]) == sorted([*config, *groups])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rte": 5}, r"'learning_rte' \(did you mean learning_rate"),
        ({"train#handelrs": []}, r"'train#handelrs' \(did you mean train#handlers"),
        ({"resume": True, "epoch": 3}, r"'resume' .*; 'epoch' \(did you mean epochs"),
    ],
)
def test_a_typo_is_refused_with_a_suggestion(
    name: str, given: dict[str, Any], message: str, configs: dict[str, Path]
) -> None:
    assert re.search(message, _refusal(_workflow(configs[name], "train.json", **given)))


@pytest.mark.parametrize(("name", "overlay"), OVERLAYS)
def test_overlays_list_what_they_add(name: str, overlay: str, configs: dict[str, Path]) -> None:
    workflow = _workflow(configs[name], "train.json", overlay)
    workflow.initialize()
    workflow.finalize()
    assert "'weihgts' " in _refusal(_workflow(configs[name], "train.json", overlay, weihgts="x.pt"))


def test_ids_of_ones_own_file_are_listed_there(tmp_path: Path) -> None:
    own = {"temperature": 2.0, "learning_rate": "$@temperature / 10"}
    (tmp_path / "own.json").write_text(json.dumps(own))
    files = [str(FLAGSHIP / "configs" / "train.json"), str(tmp_path / "own.json")]
    assert "'temperature' " in _refusal(_workflow(FLAGSHIP / "configs", *files))
    (tmp_path / "own.json").write_text(json.dumps({**own, "+known_ids": ["temperature"]}))
    workflow = _workflow(FLAGSHIP / "configs", *files)
    workflow.initialize()
    assert workflow.parser.get_parsed_content("learning_rate") == 0.2


def test_what_monais_tracking_adds_is_known(tmp_path: Path) -> None:
    workflow = _workflow(FLAGSHIP / "configs", "train.json", tracking="mlflow", output_dir=str(tmp_path))
    workflow.initialize()
    assert "'run_name' " in _refusal(_workflow(FLAGSHIP / "configs", "train.json", run_name="x"))


def test_the_check_belongs_into_a_configuration() -> None:
    with pytest.raises(BundleError, match="initialize"):
        check_ids(["epochs"])


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("_pretraining")])
def test_who_learns_when_and_both_decays_are_ids(name: str, configs: dict[str, Path]) -> None:
    given: dict[str, Any] = {"alternate": "epoch", "weight_decay": 5.0, "discriminator_weight_decay": 3.0}
    workflow = _workflow(configs[name], "train.json", **given)
    workflow.initialize()
    parsed = workflow.parser.get_parsed_content
    assert parsed("adversary").schedule.alternate == "epoch"
    assert [parsed(k).param_groups[0]["weight_decay"] for k in ("optimizer", "discriminator_optimizer")] == [5.0, 3.0]


@pytest.mark.slow
def test_init_starts_the_same_run_whoever_runs_it(tmp_path: Path) -> None:
    bundle = copy_bundle(tmp_path)
    write_data(tmp_path)
    settings: dict[str, Any] = {
        **SMALL,
        "epochs": 1,
        "datalist": str(tmp_path / "datalist.json"),
        "dataset_dir": str(tmp_path),
    }
    train_bundle(bundle, output=tmp_path / "first", device="cpu", overrides=settings)
    start = tmp_path / "first" / "checkpoints" / "best.pt"
    train_bundle(bundle, output=tmp_path / "ours", device="cpu", overrides=settings, init=start, rescale=True)
    given = {**settings, "output_dir": str(tmp_path / "theirs"), "init": str(start), "rescale": True}
    workflow = _workflow(bundle / "configs", "train.json", **given)
    workflow.initialize()
    workflow.run()
    losses = {}
    for name in ("first", "ours", "theirs"):
        with (tmp_path / name / "metrics.csv").open() as handle:
            losses[name] = [row["loss"] for row in csv.DictReader(handle)]
    assert losses["ours"] == losses["theirs"] != losses["first"]
    again = train_bundle(
        bundle, output=tmp_path / "theirs", device="cpu", overrides={**settings, "epochs": 2}, resume=True
    )
    assert again.epochs == 2
    with pytest.raises(UsageError, match="starting weights"):
        train_bundle(bundle, output=tmp_path / "theirs", device="cpu", overrides={**settings, "epochs": 3}, resume=True,
                     init=tmp_path / "ours" / "checkpoints" / "best.pt")  # fmt: skip
    anew = _workflow(bundle / "configs", "train.json", **given)
    anew.initialize()
    with pytest.raises(RuntimeError, match="run") as wrapped:
        anew.run()
    assert "holds the checkpoints of another run" in str(wrapped.value.__cause__)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"init": "nowhere.pt"}, "there is nothing at nowhere.pt"),
        ({"init": 5}, "init is 5, expected the folder"),
        ({"rescale": True}, "give both or neither"),
        ({"init": "x.pt", "rescale": "false"}, "rescale is 'false', expected true or false"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        started(torch.nn.Linear(2, 2), given.get("init"), given.get("rescale", False))


@pytest.mark.filterwarnings("ignore:parsing config_file")  # it is this project's own bundle
def test_the_command_of_monai_ends_with_an_error() -> None:
    """What ``python -m monai.bundle run training … --weight_decya 5`` calls."""
    bundle = BUNDLES / "volume_gan_synthesis"
    given = {"bundle_root": str(bundle), "weight_decya": 5, "init": "x.pt"}
    with pytest.raises(RuntimeError, match="check_ids") as wrapped:
        run("training", config_file=str(bundle / "configs" / "train.json"), logging_file=False, **given)
    assert "no use for the id(s) 'weight_decya' (did you mean weight_decay" in str(wrapped.value.__cause__)
