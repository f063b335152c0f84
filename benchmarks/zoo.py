"""All bundles of the MONAI Model Zoo under ``medseg infer``, voxel by voxel against ``python -m monai.bundle run``.

``python -m benchmarks.zoo ZOO_MODELS_FOLDER OUT [--only NAME…] [--data FOLDER] [--limit SECONDS] [--docs PAGE]
[--audit-only]``

``ZOO_MODELS_FOLDER`` is the folder ``models`` of the zoo's repository, which stays as it is. The weights of most
bundles are not in it: each network gets seeded ones that give every label (see zoo_networks). Images are small:
phantoms, and with ``--data`` (or ``MEDSEG_TEST_DATA``) real ones. Both programs run as processes of their own on the
CPU with the same weights, image, windows and cores; MONAI's is told device, image and output folder, and what else it
needs without a GPU. DICOM is read by medseg, and given to MONAI as a NIfTI file with the same voxels. Written:
``OUT/zoo.json``, ``OUT/zoo.md``, and what each program said, below ``OUT/NAME``. Rows of an earlier run into ``OUT``
stay where ``--only`` leaves their bundle out. With ``--docs`` the table replaces the one in that page.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import yaml
from numpy.typing import NDArray

from benchmarks.zoo_images import IMAGES
from medseg.files import write_json, write_text

Config = dict[str, Any]
_ENTRIES = ("run", "inference", "evaluating", "evaluate")
_MODALITIES = ("CT", "MR", "MRI", "none")


@dataclass(frozen=True)
class Special:
    """What one bundle needs beside the usual.

    ``image`` names a recipe of :data:`benchmarks.zoo_images.IMAGES`; ``dicom`` a second one, given as DICOM; ``keys``
    are those of its data set if it has others than ``image``; ``both`` are values that both programs get in place of
    the config's; ``monai`` what only MONAI needs on a CPU, and ``without`` the argument of the network that it no
    longer knows; ``asked`` goes into its case, and ``options`` to medseg, to ask both for the same structures.
    """

    image: str = "ct"
    dicom: str = ""
    keys: tuple[str, ...] = ("image",)
    both: Config = field(default_factory=dict)
    monai: Config = field(default_factory=dict)
    without: str = ""
    asked: Config = field(default_factory=dict)
    options: tuple[str, ...] = ()


_DINTS = {
    "arch_ckpt": "$torch.load(@arch_ckpt_path, map_location=torch.device('cpu'), weights_only=False)",
    "dints_space::device": "$torch.device('cpu')",
}
SPECIAL = {
    "brats_mri_segmentation": Special("brain4"),
    "multi_organ_segmentation": Special("ct-small", monai=_DINTS),
    "pancreas_ct_dints_segmentation": Special("ct-small", monai=_DINTS),
    "pediatric_abdominal_ct_segmentation": Special("ct-small"),
    "renalStructures_UNEST_segmentation": Special("ct-window"),
    "spleen_deepedit_annotation": Special("ct-small", both={"spatial_size": [64, 64, 64]}),
    "prostate_mri_anatomy": Special("hippocampus", "mr-dicom", monai={"imports": ["$import os"]}),
    "segmentation_template": Special("multiple-of-16"),
    "spleen_ct_segmentation": Special(dicom="ct-dicom"),
    "swin_unetr_btcv_segmentation": Special(without="img_size"),
    "ventricular_short_axis_3label": Special("slices", "slices-dicom"),
    "renalStructures_CECT_segmentation": Special("ct3", keys=("artery", "vein", "excret", "label")),
    "vista3d": Special(
        "ct-small",
        both={"patch_size": [64, 64, 64]},
        asked={"label_prompt": [1, 3]},
        options=("--structures", "liver,spleen"),
    ),
    "wholeBrainSeg_Large_UNEST_segmentation": Special("brain"),
}


@dataclass
class Side:
    """One run of one program: exit code, wall seconds, largest resident memory in MB, last words."""

    code: int
    seconds: float
    memory_mb: float
    said: str = ""


@dataclass
class Row:
    """One bundle, or one more input of it."""

    name: str
    segments_volumes: bool
    audit: str
    input: str = ""
    outcome: str = "not run"
    equal: float | None = None
    labels: int = 0
    note: str = ""
    medseg: Side | None = None
    monai: Side | None = None


def measured(command: Sequence[str], log: Path, limit: float, **extra: str) -> Side:
    """Run a program to its end, or until the time is over; its standard output and error go to a file."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore", **extra}
    log.parent.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid or time.perf_counter() - begin > limit:
                break
            time.sleep(0.05)
        if not pid:
            process.kill()
            _, status, usage = os.wait4(process.pid, 0)
    process.returncode = code = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begin
    said = f"over {limit:.0f} s" if not pid else _last_words(log.read_text(errors="replace"))
    return Side(code, seconds, usage.ru_maxrss / 1024, said)


def _last_words(text: str) -> str:
    """Why a program ended, as far as its output tells: medseg's message, or the last line that names an error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = next((n for n, line in enumerate(lines) if line.startswith("medseg: ")), None)
    if told is not None:
        return " ".join(lines[told:])
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or lines or [""])[-1]


def read_config(file: Path) -> Config:
    """A config, JSON or YAML, as plain data."""
    found: Config = yaml.safe_load(file.read_text())
    return found


class Bundle:
    """A working copy of one bundle."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.name, self.folder, self.path = source.name, folder, folder / source.name
        self.special = SPECIAL.get(self.name, Special())
        if folder.is_dir():
            shutil.rmtree(folder)
        shutil.copytree(source, self.path)
        self.metadata = read_config(self.path / "configs" / "metadata.json")
        configs = [self.path / "configs" / f"inference.{end}" for end in ("json", "yaml")]
        self.config = next((file for file in configs if file.is_file()), configs[0])
        if self.special.both:
            changed = read_config(self.config)
            for place, value in self.special.both.items():
                *path, last = place.split("::")
                part = changed
                for key in path:
                    part = part[key]
                part.pop(last) if value is None else part.update({last: value})
            write_text(
                self.config, json.dumps(changed, indent=1) if self.config.suffix == ".json" else yaml.dump(changed)
            )

    @property
    def segments_volumes(self) -> bool:
        """Whether it labels radiological volumes, by its metadata."""
        data = self.metadata.get("network_data_format", {})
        sides: list[Config] = [next(iter(data.get(side, {}).values()), {}) for side in ("inputs", "outputs")]
        image, pred = sides
        kind = pred.get("type") == "image" and pred.get("format") in ("segmentation", "labels")
        return kind and image.get("modality") in _MODALITIES

    def audit(self) -> str:
        """What the audit says of running it: ``allowed``, or the first thing that forbids it."""
        command = [sys.executable, "-m", "medseg", "bundle", "audit", str(self.path), "--json"]
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        verdict: Config = json.loads(found) if found else {"blocked": ["?"], "findings": []}
        if not any("infer" in command for command in verdict["blocked"]):
            return "allowed"
        blocks = [one for one in verdict["findings"] if one["severity"] == "block" and "infer" in one["commands"]]
        return f"forbidden: {blocks[0]['file']}: {blocks[0]['what']}" if blocks else "forbidden"

    def override(self, images: Sequence[Path], output: Path) -> Path:
        """What MONAI is told beside the bundle's config."""
        keys = self.special.keys
        item: Config = {"image": str(images[0]) if len(images) == 1 else [str(file) for file in images]}
        if keys != ("image",):
            item = {key: str(images[min(n, len(images) - 1)]) for n, key in enumerate(keys)}
        changes: Config = {
            "bundle_root": str(self.path),
            "dataset_dir": str(images[0].parent),
            "device": "$torch.device('cpu')",
            "dataset::data": [{**item, **self.special.asked}],
            "dataloader::num_workers": 0,
            "output_dir": str(output),
            **self.special.monai,
        }
        if self.special.without:
            network = read_config(self.config)["network_def"]
            changes["network_def"] = {key: value for key, value in network.items() if key != self.special.without}
        file = self.folder / "override.json"
        write_json(file, changes)
        return file


def run(bundle: Bundle, row: Row, recipe: str, options: argparse.Namespace) -> Row:
    """Both programs on one image, and how many voxels are equal."""
    place = bundle.folder / recipe
    images, given = IMAGES[recipe](place / "images", options.data)
    row.input = recipe
    override = bundle.override(images, place / "monai")
    entry = next((name for name in _ENTRIES if name in read_config(bundle.config)), "run")
    configs = f"{bundle.config},{override}"
    item = json.dumps(read_config(override)["dataset::data"][0])
    python = [sys.executable, "-P"]
    made = measured(
        [*python, "-m", "benchmarks.zoo_networks", str(bundle.path), configs, item],
        place / "weights.log", options.limit, PYTHONPATH=_path(str(Path(__file__).parents[1])),
    )  # fmt: skip
    if made.code:
        row.outcome, row.note = "MONAI cannot build it", made.said
        return row
    allowed = [*bundle.special.options, *([] if row.audit == "allowed" else ["--trust-bundle"])]
    command = ["-m", "medseg", "infer", str(bundle.path), str(given), "-o", str(place / "medseg"), "--device", "cpu"]
    row.medseg = measured([*python, *command, *allowed], place / "medseg.log", options.limit, PYTHONPATH=_path())
    row.monai = measured(
        [*python, "-m", "monai.bundle", "run", entry, "--config_file", f"['{bundle.config}','{override}']"],
        place / "monai.log", options.limit, PYTHONPATH=_path(str(bundle.path)),
    )  # fmt: skip
    _compare(row, place)
    return row


def _path(*first: str) -> str:
    return os.pathsep.join([*first, *filter(None, [os.environ.get("PYTHONPATH")])])


def _compare(row: Row, place: Path) -> None:
    found, expected = (_result(place / side) for side in ("medseg", "monai"))
    if found is None:
        row.outcome = "medseg fails" if row.medseg and row.medseg.code else "medseg refuses"
        row.note = row.medseg.said if row.medseg else ""
        report = place / "medseg" / "run.json"
        if report.is_file():
            cases = json.loads(report.read_text()).get("cases", [])
            row.note = "; ".join(str(case.get("message")) for case in cases if case.get("message")) or row.note
        return
    if expected is None:
        row.outcome, row.note = "runs; MONAI does not", row.monai.said if row.monai else ""
        return
    ours, theirs = (np.asarray(image.dataobj).squeeze().round() for image in (found, expected))
    if ours.shape != theirs.shape or not np.allclose(found.affine, expected.affine, atol=1e-3):
        row.note = f"MONAI writes {theirs.shape}, compared at the nearest voxel"
        theirs = _at_nearest(theirs, expected.affine, ours.shape, found.affine)
    row.labels = len(np.unique(theirs))
    row.equal = float((ours == theirs).mean())
    row.outcome = "runs"


def _at_nearest(values: NDArray[Any], affine: NDArray[Any], shape: tuple[int, ...], to: NDArray[Any]) -> NDArray[Any]:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).reshape(3, -1)
    matrix = np.linalg.solve(affine, to)
    where = np.rint(matrix[:3, :3] @ index + matrix[:3, 3:]).astype(int)
    where = np.clip(where, 0, np.asarray(values.shape)[:, None] - 1)
    return values[tuple(where)].reshape(shape)


def _result(folder: Path) -> Any:
    files = sorted(folder.rglob("*.nii*"))
    return nib.load(files[0]) if files else None  # a bundle may write its label, too, of a later channel's name


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| bundle | input | audit | outcome | equal voxels | labels | medseg s, MB | MONAI s, MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        equal = "" if row.equal is None else f"{np.floor(row.equal * 1e6) / 1e4:.4f} %"
        cost = [f"{s.seconds:.0f}, {s.memory_mb:.0f}" if s else "" for s in (row.medseg, row.monai)]
        said = row.outcome if not row.note else f"{row.outcome}: {row.note}"
        words = [row.name, row.input, row.audit, said, equal, str(row.labels or ""), *cost]
        lines.append("| " + " | ".join(word.replace("|", "/") for word in words) + " |")
    return "\n".join(lines) + "\n"


def _in_docs(page: Path, made: str) -> None:
    """Put the table between the marks of a page."""
    before, mark, rest = page.read_text().partition("<!-- zoo -->\n")
    _, end, after = rest.partition("<!-- /zoo -->")
    if not (mark and end):
        raise SystemExit(f"{page} has no <!-- zoo --> and <!-- /zoo -->")
    write_text(page, f"{before}{mark}{made}{end}{after}")


def _earlier(file: Path) -> dict[str, list[Row]]:
    """The rows of an earlier run, by bundle."""
    rows: dict[str, list[Row]] = {}
    for one in json.loads(file.read_text()) if file.is_file() else ():
        sides = {side: Side(**one[side]) if one[side] else None for side in ("medseg", "monai")}
        rows.setdefault(one["name"], []).append(Row(**{**one, **sides}))
    return rows


def rows_of(source: Path, options: argparse.Namespace) -> list[Row]:
    """All rows of one bundle."""
    bundle = Bundle(source.resolve(), options.out.resolve() / source.name)
    audit = bundle.audit()
    if not bundle.segments_volumes:
        return [Row(bundle.name, False, audit, outcome="another task: not run")]
    if options.audit_only:
        return [Row(bundle.name, True, audit)]
    recipes = [recipe for recipe in (bundle.special.image, bundle.special.dicom) if recipe]
    return [run(bundle, Row(bundle.name, True, audit), recipe, options) for recipe in recipes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MEDSEG_TEST_DATA", ".")))
    parser.add_argument("--limit", type=float, default=900, help="seconds for one run of one program")
    parser.add_argument("--audit-only", action="store_true", help="run nothing")
    parser.add_argument("--docs", type=Path, help="page whose table is replaced")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = _earlier(options.out / "zoo.json")
    for source in sorted(path for path in options.zoo.iterdir() if (path / "configs" / "metadata.json").is_file()):
        if not options.only or source.name in options.only:
            rows[source.name] = rows_of(source, options)
            print(table(rows[source.name]).split("\n", 2)[2], end="", flush=True)
        made = [row for name in sorted(rows) for row in rows[name]]
        made.sort(key=lambda row: not row.segments_volumes)
        write_json(options.out / "zoo.json", [asdict(row) for row in made])
        write_text(options.out / "zoo.md", table(made))
    if options.docs:
        _in_docs(options.docs, table(made))


if __name__ == "__main__":
    main()
