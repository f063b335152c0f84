"""How good the flags are that results get without a calibration: held-out cases, own results and with faults.

The bundle's own trust is not looked at, so any bundle will do whose datalist has a fold that its weights have not seen.
Every case comes as it is, with each fault of its image, in a wrong crop, and with each fault of its result. The numbers
behind the flags go to RESULTS, one line of JSON for each result; what is there is not made again.

python -m benchmarks.default_trust BUNDLE DATASET RESULTS --fold 0
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage
from numpy.typing import NDArray

from medseg.inference import Predictor
from medseg.inference.interpolation import nearest_labels
from medseg.inference.second_look import second_look
from medseg.inference.sliding_window import Chunk, WindowSettings, sliding_window
from medseg.labels.decoding import LabelDecoding
from medseg.results.verdict import NOT_CALIBRATED
from medseg.training import fold_items
from medseg.trust.default_judge import Plausibility, ScoreTally, plausibility
from medseg.trust.fit_cases import Overlap
from medseg.trust.synthetic_faults import IMAGE_FAULTS, MASK_FAULTS, displaced, with_image_faults

Row = dict[str, Any]
_POOR = 0.5


def judged(predictor: Predictor, image: torch.Tensor, scores: torch.Tensor, decoding: LabelDecoding) -> Plausibility:
    """What the default judge says of scores ``(K, H, W, D)`` of a prepared image ``(C, H, W, D)``."""
    tally = ScoreTally(decoding)
    tally.add(scores)

    def scores_of(box: torch.Tensor, windows: WindowSettings) -> Iterator[Chunk]:
        with torch.inference_mode():
            yield from sliding_window(box, windows, predictor.network)

    again = second_look(image, tally, scores_of, predictor.config.windows)
    return plausibility(tally.labels, predictor.bundle.scheme.members, tally.confidence, again)


def rows_of(predictor: Predictor, item: Row) -> Iterator[Row]:
    """All results of one case."""
    load = LoadImage(image_only=True, ensure_channel_first=True)
    image, truth = load(item["image"]), load(item["label"])
    name = Path(item["image"]).name
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    reference = truth[0].numpy().astype(np.uint8)
    moved, moved_reference = displaced(image[0].numpy(), reference, rng)
    results = [("own", image, reference), ("crop", MetaTensor(moved[None], affine=image.affine), moved_reference)]
    results += [(kind, changed, reference) for kind, changed in with_image_faults(image, rng, len(IMAGE_FAULTS))]
    config = predictor.config.post.decoding
    own: tuple[torch.Tensor, NDArray[np.float32], NDArray[np.uint8]] | None = None
    for kind, seen, labels in results:
        chunks: list[torch.Tensor] = []
        found = predictor.predict(seen, watch=partial(_keep, chunks))
        assert found.prepared is not None
        prepared, expected = found.prepared.as_tensor().float(), nearest_labels(labels, seen, found.prepared)
        scores = torch.cat(chunks, 1)
        own = own or (prepared, scores.softmax(0).numpy(), expected)
        yield _row(predictor, name, kind, (prepared, scores, expected), config)
    assert own is not None, "it is the first"
    prepared, probabilities, expected = own
    for kind, fault in MASK_FAULTS.items():
        changed = torch.from_numpy(np.asarray(fault(probabilities, rng), dtype=np.float32)).clamp_min(1e-7).log()
        yield _row(predictor, name, kind, (prepared, changed, expected), LabelDecoding("softmax"))


def _keep(chunks: list[torch.Tensor], chunk: Chunk) -> None:
    chunks.append(chunk.scores.clone())


def _row(predictor: Predictor, name: str, kind: str, result: tuple[Any, Any, Any], decoding: LabelDecoding) -> Row:
    image, scores, expected = result
    labels = scores.argmax(0).numpy()
    dice = {label: Overlap.of(labels == label, expected == label).dice for label in predictor.bundle.labels}
    return {"case": name, "kind": kind, "dice": dice, **asdict(judged(predictor, image, scores, decoding))}


def table(rows: list[Row]) -> str:
    """Flags by kind: how many results, how many have a structure below 0.5, flags on these and on the others."""
    head = "| results | number | flagged | with a Dice below 0.5 | of these flagged | of the others flagged |"
    lines = [head, "| --- | ---: | ---: | ---: | ---: | ---: |"]
    groups = {"own": ["own"], "faults of the image": ["crop", *IMAGE_FAULTS], "faults of the result": [*MASK_FAULTS]}
    groups |= {kind: [kind] for kind in ("crop", *IMAGE_FAULTS, *MASK_FAULTS)}
    for name, kinds in groups.items():
        some = [
            (min(d for d in row["dice"].values() if d is not None), flags(row)) for row in rows if row["kind"] in kinds
        ]
        poor = [bool(found) for dice, found in some if dice < _POOR]
        fair = [bool(found) for dice, found in some if dice >= _POOR]
        lines.append(
            f"| {name} | {len(some)} | {sum(poor) + sum(fair)} | {len(poor)} | {_share(poor)} | {_share(fair)} |"
        )
    return "\n".join(lines)


def flags(row: Row) -> list[str]:
    """The flags of a stored row."""
    numbers = Plausibility(*(row[name] for name in Plausibility.__dataclass_fields__))
    return [flag for flag in numbers.flags if flag != NOT_CALIBRATED]


def _share(flagged: list[bool]) -> str:
    return f"{sum(flagged)} ({np.mean(flagged):.0%})" if flagged else "–"


def main() -> None:
    """Make what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="the first case of the fold that is looked at")
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    predictor = Predictor(options.bundle, "cpu", "fp32", trust=False)
    items = fold_items(options.bundle / "configs" / "datalist.json", options.dataset, options.fold, "validation")
    options.results.touch()
    rows = [json.loads(line) for line in options.results.read_text().splitlines()]
    known = {row["case"] for row in rows}
    with options.results.open("a") as kept:
        for item in items[options.start :][: options.limit]:
            if Path(item["image"]).name not in known:
                new = list(rows_of(predictor, item))
                kept.write("".join(json.dumps(row) + "\n" for row in new))
                kept.flush()
                rows += new
    print(table(rows))


if __name__ == "__main__":
    main()
