"""Whole bundles of the constructs that MONAI's model zoo uses; none may raise a false alarm.

One for each way in which an inference config of the zoo's segmentation bundles does without the bundle's scripts, with
training, evaluation and several GPUs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.bundle import constructs as c
from tests.bundle.sample import read_config, write_config

__all__ = ["STAND_INS", "StandIn"]


@dataclass(frozen=True)
class StandIn:
    """A bundle of the zoo's kind: its configs by name, and what its metadata say of the network."""

    configs: dict[str, c.Config]
    inputs: int = 1
    outputs: int = 2
    background: bool = True
    suffix: str = "json"
    # what its weights are filled from, whether medseg labels a volume with it, and which files of it are no configs
    weights: str = "models/model.pt"
    labels: bool = True
    files: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Put it in the place of the sample bundle's configs."""
        for name in ("inference", "train"):
            (folder / "configs" / f"{name}.json").unlink()
        for name, config in self.configs.items():
            text = json.dumps(config)
            if self.suffix == "yaml":  # through JSON, so that no part is written as an alias of another
                text = yaml.safe_dump(json.loads(text), sort_keys=False)
            (folder / "configs" / f"{name}.{self.suffix}").write_text(text)
        for name, text in self.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        metadata = read_config(folder, "metadata")
        described = metadata["network_data_format"]
        channels = {str(i): "background" if i == 0 and self.background else f"organ {i}" for i in range(self.outputs)}
        described["outputs"]["pred"].update(num_channels=self.outputs, channel_def=channels)
        described["outputs"]["pred"].pop("segment_codes")
        described["inputs"]["image"].update(num_channels=self.inputs)
        write_config(folder, "metadata", metadata)


STAND_INS: dict[str, StandIn] = {
    "one organ, weights loaded first": StandIn(
        {
            "inference": c.inference(c.UNET, initialize=[c.SEED, c.LOADED_FIRST]),
            "train": c.train(c.UNET),
            "evaluate": c.EVALUATION,
            "multi_gpu_train": c.SEVERAL_GPUS,
            "multi_gpu_evaluate": c.SEVERAL_GPUS_EVALUATE,
        }
    ),
    "regions of a tumour in four channels": StandIn(
        {
            "inference": c.inference(
                {**c.REGIONS, "in_channels": 4},
                c.compose(c.step("LoadImaged", image_only=False), c.step("NormalizeIntensityd", nonzero=True)),
                c.compose(c.SIGMOID, c.BACK, c.THRESHOLD, c.step("Lambdad", "pred", func=c.RENUMBERED), c.SAVED),
                datalist=c.decathlon("testing"),
                dataset={"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
                **c.LISTED,
            ),
            "train": c.train(c.REGIONS, loss={"_target_": "DiceLoss", "sigmoid": True}),
            "evaluate": {**c.EVALUATION, "initialize": [c.BENCHMARK]},
        },
        inputs=4,
        outputs=3,
        background=False,
        labels=False,  # its numbers are no channels' and have no names, which medseg says
    ),
    "whole body at two resolutions": StandIn(
        {
            "inference": c.inference(
                c.BODY,
                c.compose(*c.LOADED, {**c.SPACED, "pixdim": "@pixdim"}, c.step("NormalizeIntensityd", nonzero=True)),
                c.compose(c.SOFTMAX, c.ARGMAX, {**c.BACK, "nearest_interp": True}, c.SAVED),
                displayable_configs={"highres": False, "overlap": 0.25},
                pixdim="$[1.5, 1.5, 1.5] if @displayable_configs#highres else [3.0, 3.0, 3.0]",
                modelname="$'model.pt' if @displayable_configs#highres else 'model_lowres.pt'",
                inferer={**c.GAUSSIAN, "overlap": "@displayable_configs#overlap"},
                checkpointloader={**c.LOADER, "load_path": "$@bundle_root + '/models/' + @modelname"},
            )
        },
        outputs=5,
        weights="models/model_lowres.pt",
    ),
    "transformer for 14 labels": StandIn(
        {
            "inference": c.inference(
                c.TRANSFORMER,
                c.compose(c.step("LoadImaged", reader="ITKReader"), *c.LOADED[1:], c.SPACED, c.WINDOWED, c.TENSOR),
                checkpoint=c.WEIGHTS,
                checkpointloader={**c.LOADER, "load_path": "$@checkpoint", "map_location": "@device"},
            ),
            "train": c.train(c.TRANSFORMER),
        },
        outputs=14,
        labels=False,  # needs einops
    ),
    "foreground, strides and numbers of a file": StandIn(
        {
            "inference": c.inference(
                {**c.DYNAMIC, "norm_name": "instance", "out_channels": "@outputs", "res_block": True},
                c.compose(
                    *c.LOADED, c.SPACED, c.WINDOWED, c.step("CropForegroundd", source_key="image", mode=["minimum"])
                ),
                c.compose(c.SOFTMAX, c.BACK, c.ARGMAX, {**c.SAVED, "output_dtype": "$torch.int16"}),
                window=[32, 32, 32],
                outputs=4,
            )
        },
        outputs=4,
        suffix="yaml",
    ),
    "a searched network": StandIn(
        {
            "inference": c.inference(
                {**c.SEARCHED, "node_a": "$torch.from_numpy(@searched['node_a'])"},
                **c.ARCHITECTURE,
                **c.LISTED,
                datalist=c.decathlon("testing"),
            ),
            "train": c.train(
                c.SEARCHED,
                **c.ARCHITECTURE,
                **c.LISTED,
                listed_items=c.decathlon("training"),
                train_listed="@listed_items",
            ),
            "evaluate": c.EVALUATION,
            "multi_gpu_train": c.PARTITIONS,
        },
        outputs=3,
        suffix="yaml",
        labels=False,
    ),
    "constants of the library, paths and patterns": StandIn(
        {
            "inference": c.inference(
                c.UNET,
                {"_target_": "Compose", "transforms": "$@transforms"},
                c.compose(
                    {**c.SOFTMAX, "keys": "@pred"}, {**c.ARGMAX, "keys": "@pred"}, {**c.SAVED, "output_dtype": "$None"}
                ),
                image="$monai.utils.CommonKeys.IMAGE",
                pred="$monai.utils.CommonKeys.PRED",
                ckpt_path=c.WEIGHTS,
                output_dir="./outputs",
                pattern="*.nii*",
                datalist="$list(sorted(glob.glob(os.path.join(@dataset_dir, @pattern))))",
                items="$[{@image: i} for i in @datalist]",
                transforms=[c.step("LoadImaged", "@image", image_only=True), c.step("ScaleIntensityd", "@image")],
                inferer={"_target_": "SimpleInferer"},
                handlers=[
                    {**c.LOADER, "_disabled_": "$not os.path.exists(@ckpt_path)", "load_path": "@ckpt_path"},
                    {**c.STATS, "name": None, "output_transform": "$lambda x: None"},
                ],
                initialize=[],
            ),
            "train": c.train(c.UNET, **c.STAMPED),
            "test": c.inference(c.UNET, **c.SHOWN),
        },
        suffix="yaml",
        files={"docs/show.ipynb": "{}", "docs/run.sh": "true"},
    ),
    "a table of cases": StandIn(
        {
            "inference": c.inference(
                c.UNET,
                postprocessing=c.compose(
                    c.ARGMAX, c.step("KeepLargestConnectedComponentd", "pred", applied_labels=[1]), c.BACK, c.SAVED
                ),
                imports=["$import pandas as pd", c.OS],
                datalist=c.COLUMN,
                handlers=[{**c.LOADER, "map_location": {"_target_": "torch.device", "device": "@device"}}, c.STATS],
                initialize=[c.BENCHMARK],
            ),
            "train": c.train(
                c.UNET,
                imports=["$import pandas", *c.TRAINING_IMPORTS],
                images=c.COLUMN.replace("pd.", "pandas."),
                labels="@images",
            ),
        },
        labels=False,
    ),
    "slices, and another word for the run": StandIn(
        {
            "inference": {
                **{key: part for key, part in c.inference({**c.UNET, "spatial_dims": 2}).items() if key != "run"},
                "inferer": {"_target_": "SliceInferer", "roi_size": [64, 64], "spatial_dim": 2},
                "evaluating": ["$@evaluator.run()"],
            },
            "train": c.train(c.UNET, **c.ARRAYS),
        },
        labels=False,
    ),
    "frames of a film": StandIn(
        {
            "inference": c.inference(
                {**c.ENDOSCOPE, "spatial_dims": 2, "pretrained": False, "is_pad": False, "pre_conv": None},
                c.compose(
                    c.step("LoadImaged", image_only=False),
                    c.step("EnsureChannelFirstd", channel_dim=-1),
                    c.step("Resized", ["image"], spatial_size=[736, 480], mode=["bilinear"]),
                ),
                c.compose(
                    c.BACK, c.step("Lambdad", ["pred"], func="$lambda x : x[1:]"), {**c.SAVED, "output_ext": ".png"}
                ),
                datalist=c.PATTERN,
                inferer={"_target_": "SimpleInferer"},
            )
        },
        inputs=3,
        labels=False,
    ),
    "nuclei under a microscope": StandIn(
        {
            "inference": c.inference(
                c.NUCLEI,
                c.compose(
                    c.step("LoadImaged", reader="$monai.data.PILReader", converter="$lambda x: x.convert('RGB')"),
                    c.step("CastToTyped", dtype="float32"),
                ),
                c.compose(
                    c.step("FlattenSubKeysd", "pred", sub_keys="$@parts", delete_keys=True),
                    {"_target_": "HoVerNetInstanceMapPostProcessingd", "sobel_kernel_size": 21, "marker_radius": 2},
                    {"_target_": "HoVerNetNuclearTypePostProcessingd"},
                    c.step("FromMetaTensord", ["image"]),
                    c.step("SaveImaged", "type_map", output_dir="@output_dir", output_postfix="type_map"),
                ),
                mode="fast",
                patch=256,
                out=164,
                parts=["horizontal_vertical", "nucleus_prediction", "type_prediction"],
                output_dir="$os.path.join(@bundle_root, 'eval')",
                inferer={
                    "_target_": "SlidingWindowHoVerNetInferer",
                    "roi_size": "@patch",
                    "overlap": "$1.0 - float(@out) / float(@patch)",
                    "extra_input_padding": "$((@patch - @out) // 2,) * 4",
                },
            )
        },
        inputs=3,
        outputs=5,
        labels=False,
    ),
}
"""By what is special about each."""
