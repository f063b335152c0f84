"""An application of MONAI Deploy that segments one volume: ``python monai_deploy_app.py BUNDLE IMAGE RESULT``.

BUNDLE is the bundle's folder, or a TorchScript file of MONAI's ``ckpt_export``. The volume goes in as the series
operator hands it on: slices first, with the spacing and the affine beside it. RESULT is a NumPy file.
"""

from __future__ import annotations

import sys
from typing import Any

import nibabel
import numpy as np
from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application, Image, IOType, Operator, OperatorSpec
from monai.deploy.operators import IOMapping, MonaiBundleInferenceOperator

BUNDLE, IMAGE, RESULT = sys.argv[1:4]


class Source(Operator):
    """Sends the volume once."""

    def setup(self, spec: OperatorSpec) -> None:
        spec.output("image")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        volume = nibabel.load(IMAGE)
        spacing = dict(zip(("row", "col", "depth"), volume.header.get_zooms(), strict=True))
        facts = {f"{name}_pixel_spacing": float(value) for name, value in spacing.items()}
        slices = np.swapaxes(np.asarray(volume.dataobj, dtype=np.float32), 0, 2)
        op_output.emit(Image(slices, {**facts, "nifti_affine_transform": volume.affine}), "image")


class Sink(Operator):
    """Keeps the segmentation."""

    def setup(self, spec: OperatorSpec) -> None:
        spec.input("pred")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        np.save(RESULT, np.swapaxes(op_input.receive("pred").asnumpy(), 0, 2))


class Segmentation(Application):
    """Source, the bundle, sink."""

    def compose(self) -> None:
        source = Source(self, CountCondition(self, 1), name="source")
        bundle = MonaiBundleInferenceOperator(
            self,
            app_context=AppContext({}),
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            bundle_path=BUNDLE,
            name="bundle",
        )
        self.add_flow(source, bundle, {("image", "image")})
        self.add_flow(bundle, Sink(self, name="sink"), {("pred", "pred")})


if __name__ == "__main__":
    Segmentation([sys.argv[0]]).run()
