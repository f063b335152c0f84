"""A MONAI Label server with a bundle, without HTTP: ``python monai_label_site.py FOLDER BUNDLE IMAGE RESULT``.

FOLDER holds the monaibundle app (``app``) with the bundle in ``app/model``, and the ``studies``. The model's
description and the file that inference left are written into RESULT (JSON); then follows one epoch of training.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import torch


def main(folder: Path, bundle: str, image: str, target: Path) -> None:
    """Start the app on the bundle, infer, train."""
    operators = torch.library.Library("torchvision", "DEF")  # its binary only loads beside a PyTorch with CUDA
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    sys.path.insert(0, str(folder / "app"))
    conf = {"models": bundle, "zoo_source": "local", "sam2": "false"}
    app = importlib.import_module("main").MyApp(str(folder / "app"), str(folder / "studies"), conf)
    result = app.infer({"model": bundle, "image": image, "device": "cpu"})
    target.write_text(json.dumps({"model": app.info()["models"][bundle], "file": result["file"]}, default=str))
    app.train({"model": bundle, "max_epochs": 1, "val_split": 0.5, "multi_gpu": False, "device": "cpu"})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]))
