"""Each command judges what it reads of a bundle; what it leaves alone is a warning."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from medseg.bundle import Bundle, audit, require_trusted
from medseg.bundle.config import missing_package
from medseg.bundle.findings import blocks
from medseg.cli import bundle as bundle_command
from medseg.cli.main import app
from medseg.errors import BundleError, UntrustedBundle, UsageError
from medseg.sharing import pack, unpack, verify
from tests.bundle.sample import SAMPLE_NAME, read_config, write_config

assert bundle_command

UNREAD = {
    "scripts/__init__.py": "",
    "scripts/prepare.py": "raise SystemExit",
    "configs/inference_trt.json": '{"convert": "$torch.compile(@network_def)", "run": "$os.system(\'true\')"}',
    "configs/multi_gpu_train.json": '{"device": "$torch.device(f\'cuda:{os.environ[\\"LOCAL_RANK\\"]}\')"}',
    "configs/evaluate.yaml": "a: $open('x')\n",
    "configs/logging.conf": "[loggers]\nkeys=root\n[handler_x]\nclass=FileHandler\nargs=('x',)\n",
    "models/model.ts": "no code",
    "large_files.yml": "large_files:\n- path: models/model.pt\n  url: http://example.org/model.pt\n",
    "docs/notes.ipynb": "{}",
    "Dockerfile": "FROM scratch\n",
}


@pytest.fixture
def strange(bundle: Path) -> Path:
    """A bundle as the model zoo has them: clean in what labels, with much beside it."""
    for name, text in UNREAD.items():
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_text(text)
    metadata = read_config(bundle, "metadata")
    metadata["schema"] = metadata["schema"].replace("20240725", "20220324")
    metadata["optional_packages_version"] = metadata.pop("required_packages_version")
    metadata.pop("supported_apps")
    write_config(bundle, "metadata", metadata)
    return bundle


def test_what_labelling_does_not_read_does_not_forbid_it(strange: Path, tmp_path: Path) -> None:
    require_trusted(strange, "infer")
    assert Bundle.open(strange).load_network() is not None
    found = verify(strange)
    assert not blocks(found)
    told = {finding.file for finding in found if finding.severity == "warn"}
    assert told >= set(UNREAD) - {"configs/logging.conf", "scripts/__init__.py"}
    assert pack(strange, tmp_path / "strange.zip").path.is_file()


def test_what_training_reads_forbids_training(strange: Path) -> None:
    (strange / "glob.py").write_text("raise SystemExit")
    for role in ("train", "evaluate", "all"):
        with pytest.raises(UntrustedBundle, match="does not pass"):
            require_trusted(strange, role)
    concerned = {finding.file: finding.commands for finding in audit(strange)}
    assert concerned["glob.py"] == ("train", "evaluate", "monai")
    assert concerned["configs/evaluate.yaml"] == concerned["configs/logging.conf"] == ("evaluate", "monai")
    assert concerned["configs/inference_trt.json"] == concerned["scripts/prepare.py"] == ("monai",)
    assert concerned["docs/notes.ipynb"] == ()
    assert "medseg train" in str(next(found for found in audit(strange) if found.file == "glob.py"))


def test_a_script_forbids_the_commands_whose_config_names_it(strange: Path) -> None:
    require_trusted(strange, "train")
    for config, command in (("train", "train"), ("inference", "infer")):
        content = read_config(strange, config)
        write_config(
            strange,
            config,
            {**content, "imports": [*content["imports"], "$import scripts.prepare"], "own": "$scripts.prepare.Loss"},
        )
        with pytest.raises(UntrustedBundle, match=r"imports scripts\.prepare, code that comes with the bundle"):
            require_trusted(strange, command)  # type: ignore[arg-type]
        write_config(strange, config, {**content, "loss": {"_target_": "scripts.prepare.Loss"}})
        with pytest.raises(UntrustedBundle, match=r"'scripts\.prepare\.Loss' is code that comes with the bundle"):
            require_trusted(strange, command)  # type: ignore[arg-type]


@pytest.mark.parametrize(("config", "command", "other"), [("inference", "infer", "train"), ("train", "train", "infer")])
def test_an_attack_forbids_the_command_that_would_run_it(config: str, command: str, other: str, bundle: Path) -> None:
    content = read_config(bundle, config)
    content["output_dir"] = "$open('x', 'w')"
    write_config(bundle, config, content)
    with pytest.raises(UntrustedBundle, match="open"):
        require_trusted(bundle, command)  # type: ignore[arg-type]
    require_trusted(bundle, other)  # type: ignore[arg-type]


def test_weights_count_where_they_are_loaded(bundle: Path) -> None:
    (bundle / "models" / "old.pt").write_bytes(b"\x80\x04cos\nsystem\n.")
    require_trusted(bundle, "infer")
    config = read_config(bundle, "inference")
    config["handlers"][0]["load_path"] = "$@bundle_root + '/models/old.pt'"
    write_config(bundle, "inference", config)
    with pytest.raises(UntrustedBundle, match=r"models/old\.pt"):
        require_trusted(bundle, "infer")
    with pytest.raises(UntrustedBundle, match=r"models/old\.pt"):
        Bundle.open(bundle, "network-only").load_network()


@pytest.mark.parametrize("macro", ["%\nother.json", "%x.json#a", "%other.yaml", "%../a", "%a b", "%"])
def test_a_macro_that_is_no_plain_id_is_refused(macro: str, bundle: Path) -> None:
    config = read_config(bundle, "inference")
    config["extra"] = macro
    write_config(bundle, "inference", config)
    assert any("no plain id" in finding.what for finding in blocks(audit(bundle)))


@pytest.mark.parametrize("text", ["image_meta_dict", "pred_meta_dict", "my_target_mask"])
def test_reserved_words_are_whole_words(text: str, bundle: Path) -> None:
    config = read_config(bundle, "inference")
    config["extra"] = f"$monai.handlers.from_engine(['{text}'])"
    write_config(bundle, "inference", config)
    assert audit(bundle) == []


def test_a_zip_of_others_can_be_received(strange: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "zoo"), "zip", strange.parent, SAMPLE_NAME))
    for open_it in (Bundle.open, audit):
        with pytest.raises(UsageError, match="bundle unpack"):
            open_it(archive)
    with pytest.raises(UntrustedBundle, match="--as-is"):
        unpack(archive, tmp_path / "here")
    found = unpack(archive, tmp_path / "here", as_is=True)
    assert not found.authentic
    assert Bundle.open(found.path).load_network() is not None


def test_an_attack_in_what_labelling_reads_is_not_received(bundle: Path, tmp_path: Path) -> None:
    config = read_config(bundle, "inference")
    config["output_dir"] = "$open('x', 'w')"
    write_config(bundle, "inference", config)
    archive = Path(shutil.make_archive(str(tmp_path / "zoo"), "zip", bundle.parent, SAMPLE_NAME))
    with pytest.raises(UntrustedBundle, match="does not pass"):
        unpack(archive, tmp_path / "here", as_is=True)
    assert not list((tmp_path / "here").iterdir())


def test_the_command_line_says_which_command_is_forbidden(strange: Path) -> None:
    (strange / "glob.py").write_text("raise SystemExit")
    said = CliRunner().invoke(app, ["bundle", "audit", str(strange)])
    assert said.exit_code == 1
    assert "medseg infer: allowed\nmedseg train: forbidden by 1 finding\n  glob.py\n    Python code;" in said.stdout
    assert re.search(r"run evaluating: forbidden by \d findings, 1 of them above\n", said.stdout)
    assert "unusual or good to know:\n  docs/notes.ipynb\n    a notebook" in said.stdout
    assert max(map(len, said.stdout.splitlines())) <= 80
    told = json.loads(CliRunner().invoke(app, ["bundle", "audit", str(strange), "--json"]).stdout)
    assert told["blocked"] == ["medseg train", "python -m monai.bundle run evaluating", "python -m monai.bundle run"]


CHANNELS = {
    "background first": (3, {"0": "background", "1": "a", "2": "b"}, True, {1: "a", 2: "b"}),
    "in capitals": (2, {"0": "Background", "1": "a"}, True, {1: "a"}),
    "not named": (3, {"1": "a", "2": "b"}, True, {1: "a", 2: "b"}),
    "regions": (
        3,
        {"0": "tumor core", "1": "whole tumor", "2": "et"},
        False,
        {0: "tumor core", 1: "whole tumor", 2: "et"},
    ),
    "one channel": (1, {"0": "tumor"}, False, {1: "tumor"}),
    "one channel with a background": (1, {"0": "background", "1": "tumor"}, False, {1: "tumor"}),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_channel_0_is_background_where_it_is_called_so(name: str, bundle: Path) -> None:
    channels, definition, background, labels = CHANNELS[name]
    metadata = read_config(bundle, "metadata")
    metadata["network_data_format"]["outputs"]["pred"].update(num_channels=channels, channel_def=definition)
    write_config(bundle, "metadata", metadata)
    opened = Bundle.open(bundle)
    assert opened.has_background == background
    assert opened.labels == labels


def _train_with(bundle: Path, trainer: str) -> None:
    config = read_config(bundle, "train")
    config["train"]["trainer"]["_target_"] = trainer
    write_config(bundle, "train", config)


def test_a_trainer_of_others_is_named_at_once(bundle: Path) -> None:
    _train_with(bundle, "GanTrainer")
    with pytest.raises(BundleError, match=r"GanTrainer.*monai\.bundle run training"):
        Bundle.open(bundle).check_trainable()


_QUICK = """
import sys
from pathlib import Path
from typer.testing import CliRunner
from medseg.cli import infer, train, bundle
from medseg.cli.main import app
strange, image = sys.argv[1:]
for words in (
    ["infer", strange + "x", image, "-o", "out"],
    ["infer", strange, image, "-o", "out", "--write", "segg"],
    ["infer", strange, image + "x", "-o", "out"],
    ["bundle", "info", image],
    ["bundle", "pack", image, "-o", "x.zip"],
    ["bundle", "audit", strange + "x"],
    ["train", strange, "--datalist", "d.json"],
):
    done = CliRunner().invoke(app, words)
    print(done.exit_code, "torch" in sys.modules, done.output.replace("\\n", " "))
"""


def test_wrong_paths_and_words_are_told_before_torch_is_imported(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"")
    _train_with(bundle, "GanTrainer")
    done = subprocess.run(
        [sys.executable, "-c", _QUICK, str(bundle), str(tmp_path / "a.nii.gz")],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 7
    assert all(line.startswith("2 False") for line in lines), done.stdout
    assert "GanTrainer" in lines[-1]


def test_the_weights_that_are_used_are_those_that_trust_belongs_to(bundle: Path) -> None:
    from medseg.files import sha256_file
    from medseg.trust.trust_files import TrustFiles

    usual = bundle / "models" / "model.pt"
    assert TrustFiles(Bundle.open(bundle)).weights == {"models/model.pt": sha256_file(usual)}
    state = torch.load(usual, weights_only=True)
    torch.save({key: value * 2 for key, value in state.items()}, bundle / "models" / "model_lowres.pt")
    config = read_config(bundle, "inference")
    config["handlers"][0]["load_path"] = "$@bundle_root + '/models/model_lowres.pt'"
    write_config(bundle, "inference", config)
    assert TrustFiles(Bundle.open(bundle)).weights == {
        "models/model_lowres.pt": sha256_file(bundle / "models" / "model_lowres.pt")
    }


def test_without_a_background_nothing_is_judged_and_no_dicom_is_written(bundle: Path) -> None:
    from medseg.labels.codes import segment_codes
    from medseg.trust.trust_files import trust_state

    metadata = read_config(bundle, "metadata")
    metadata["network_data_format"]["outputs"]["pred"]["channel_def"] = {"0": "core", "1": "sphere"}
    write_config(bundle, "metadata", metadata)
    opened = Bundle.open(bundle)
    assert trust_state(opened).state == "none"
    with pytest.raises(BundleError, match="no background"):
        segment_codes(opened)


@pytest.mark.parametrize(
    ("error", "package"),
    [
        (RuntimeError("Skimage.measure required."), "scikit-image"),
        (ImportError("from einops import rearrange (No module named 'einops')."), "einops"),
        (ImportError("required package `itk` is not installed or the version doesn't match requirement."), "itk"),
        (RuntimeError("shapes differ"), None),
    ],
)
def test_the_package_that_is_missing_is_named(error: Exception, package: str | None) -> None:
    found = missing_package(error, "a transform")
    assert (found is None) == (package is None)
    assert package is None or f"pip install {package}" in str(found)
