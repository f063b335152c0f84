"""The constructs of which configs in MONAI's model zoo consist, by what they are for; written by us."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

# imports
GLOB, OS, NUMPY = "$import glob", "$import os", "$import numpy"
TRAINING_IMPORTS = [GLOB, OS, "$import ignite", "$import numpy as np", "$from scipy import ndimage", "$import datetime"]
EVENTS = ["$from functools import partial", "$import torch", "$from ignite.engine import Events", "$import logging"]

# devices
DEVICE = "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')"
RANK = "$torch.device('cuda:' + os.environ['LOCAL_RANK'])"
BENCHMARK = "$setattr(torch.backends.cudnn, 'benchmark', True)"
SEED = "$monai.utils.set_determinism(seed=123)"

# data lists
FOUND = "$list(sorted(glob.glob(@dataset_dir + '/imagesTs/*.nii.gz')))"
PATTERN = "$list(sorted(glob.glob(os.path.join(@dataset_dir, 'test', '*', '*[!seg].jpg'))))"
ITEMS = "$[{'image': i} for i in @datalist]"
PAIRS = "$[{'image': i, 'label': l} for i, l in zip(@images[:-9], @labels[:-9])]"
HELD_OUT = "$[{'image': i, 'label': l} for i, l in zip(@images[-9:], @labels[-9:])]"
RENAMED = "$[x.replace('image', 'label') for x in @images]"
COLUMN = "$list(@dataset_dir + pd.read_csv(@dataset_dir + 'test.csv').t2)"


def decathlon(section: str) -> str:
    return f"$monai.data.load_decathlon_datalist(@listed, data_list_key='{section}', base_dir=@dataset_dir)"


# checkpoints
WEIGHTS = "$@bundle_root + '/models/model.pt'"
LOADER = {"_target_": "CheckpointLoader", "load_path": WEIGHTS, "load_dict": {"model": "@network"}}
LOADED_FIRST = "$@checkpointloader(@evaluator) if @load_pretrain else None"
SAVER = {"_target_": "CheckpointSaver", "save_dir": "@ckpt_dir", "save_dict": {"model": "@network"}}

# networks
UNET = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 4], "strides": [2]}
REGIONS = {"_target_": "SegResNet", "blocks_down": [1, 1], "blocks_up": [1], "init_filters": 8, "out_channels": 3}
BODY = {**REGIONS, "spatial_dims": 3, "in_channels": 1, "out_channels": 5, "dropout_prob": 0.2}
TRANSFORMER = {"_target_": "SwinUNETR", "in_channels": 1, "out_channels": 14, "feature_size": 12, "depths": [1] * 4}
STRIDES = {"kernel_size": [3] * 3, "strides": [1, 2, [2, 2, 1]], "upsample_kernel_size": [2, [2, 2, 1]]}
DYNAMIC = {
    "_target_": "monai.networks.nets.DynUNet",
    "spatial_dims": "$len(@window)",
    "in_channels": 1,
    "filters": [4, 4, 8],
    **STRIDES,
}
ENDOSCOPE = {"_target_": "FlexibleUNet", "in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b2"}
SPACE = {"_target_": "monai.networks.nets.TopologyInstance", "num_blocks": 12, "device": "$torch.device('cuda')"}
SEARCHED = {"_target_": "monai.networks.nets.DiNTS", "dints_space": "@space", "in_channels": 1, "num_classes": 3}
NUCLEI = {"_target_": "HoVerNet", "mode": "@mode", "adapt_standard_resnet": True, "in_channels": 3, "out_classes": 5}


# transforms
def compose(*transforms: Config) -> Config:
    return {"_target_": "Compose", "transforms": list(transforms)}


def step(target: str, keys: Any = "image", **arguments: Any) -> Config:
    return {"_target_": target, "keys": keys, **arguments}


LOADED = (step("LoadImaged"), step("EnsureChannelFirstd"), step("Orientationd", axcodes="RAS"))
SPACED = step("Spacingd", pixdim=[1.5, 1.5, 2.0], mode="bilinear")
WINDOWED = step("ScaleIntensityRanged", a_min=-57, a_max=164, b_min=0, b_max=1, clip=True)
TENSOR = step("EnsureTyped")
CT = compose(*LOADED, SPACED, WINDOWED, TENSOR)

# inferers
WINDOWS = {"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 32], "sw_batch_size": 4, "overlap": 0.5}
GAUSSIAN = {**WINDOWS, "padding_mode": "replicate", "mode": "gaussian", "device": DEVICE}

# post-processing
BACK = step("Invertd", "pred", transform="@preprocessing", orig_keys="image", nearest_interp=False, to_tensor=True)
NAMED_META = {"meta_keys": "pred_meta_dict", "output_dir": "@output_dir", "separate_folder": True}
SAVED = step("SaveImaged", "pred", output_ext=".nii.gz", output_dtype="$numpy.float32", **NAMED_META)
SOFTMAX, SIGMOID = step("Activationsd", "pred", softmax=True), step("Activationsd", "pred", sigmoid=True)
ARGMAX, THRESHOLD = step("AsDiscreted", "pred", argmax=True), step("AsDiscreted", "pred", threshold=0.5)
RENUMBERED = "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))"
USUAL = compose(SOFTMAX, BACK, ARGMAX, SAVED)
SCORED = compose(SOFTMAX, step("AsDiscreted", ["pred", "label"], argmax=[True, False], to_onehot=2))

# handlers
STATS = {"_target_": "StatsHandler", "iteration_log": False}
LOSS, BOTH = "$monai.handlers.from_engine(['loss'], first=True)", "$monai.handlers.from_engine(['pred', 'label'])"
HANDLERS = [
    {"_target_": "LrScheduleHandler", "lr_scheduler": "@lr_scheduler", "print_lr": True},
    {"_target_": "ValidationHandler", "validator": "@validate#evaluator", "epoch_level": True, "interval": 1},
    {"_target_": "StatsHandler", "name": None, "tag_name": "train_loss", "output_transform": LOSS},
    {"_target_": "TensorBoardStatsHandler", "log_dir": "@output_dir", "output_transform": LOSS},
]
DICE = {"_target_": "MeanDice", "include_background": False, "output_transform": BOTH}
ACCURACY = {"_target_": "ignite.metrics.Accuracy", "output_transform": BOTH}


def inference(network: Config, preprocessing: Config = CT, postprocessing: Config = USUAL, **more: Any) -> Config:
    """An inference config; ``more`` replaces its parts, or adds to them."""
    return {
        "imports": [GLOB, NUMPY, OS],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "sampledata",
        "load_pretrain": True,
        "datalist": FOUND,
        "device": DEVICE,
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "preprocessing": preprocessing,
        "dataset": {"_target_": "Dataset", "data": ITEMS, "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 4},
        "inferer": WINDOWS,
        "postprocessing": postprocessing,
        "handlers": [STATS],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
            "amp": True,
        },
        "checkpointloader": LOADER,
        "initialize": [SEED, LOADED_FIRST],
        "run": ["$@evaluator.run()"],
        **more,
    }


def train(network: Config, **more: Any) -> Config:
    """A training config; ``more`` replaces its parts, or adds to them."""
    both = ["image", "label"]
    dilated = (
        "$lambda x, s=@classes: np.concatenate(tuple([ndimage.binary_dilation((x == _k).astype(x.dtype),"
        " iterations=4).astype(float) for _k in range(s)]), axis=0)"
    )
    return {
        "imports": TRAINING_IMPORTS,
        "bundle_root": ".",
        "ckpt_dir": "$@bundle_root + '/models'",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "sampledata",
        "classes": 2,
        "images": "$list(sorted(glob.glob(@dataset_dir + '/imagesTr/*.nii.gz')))",
        "labels": RENAMED,
        "device": DEVICE,
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "loss": {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True, "batch": True},
        "optimizer": {"_target_": "Novograd", "params": "$filter(lambda p: p.requires_grad, @network.parameters())"},
        "lr_scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "optimizer": "@optimizer", "step_size": 5000},
        "train": {
            "deterministic_transforms": [
                step("LoadImaged", both),
                step("CastToTyped", both, dtype=["$np.float16", "$np.uint8"]),
                step("Lambdad", "label", func=dilated, overwrite=True),
            ],
            "random_transforms": [
                step("RandCropByLabelClassesd", both, label_key="label", ratios="$[1,] * @classes"),
                step("RandRotated", both, range_x="$np.pi", mode="$monai.utils.GridSampleMode.BILINEAR"),
            ],
            "preprocessing": compose() | {"transforms": "$@train#deterministic_transforms + @train#random_transforms"},
            "dataset": {"_target_": "CacheDataset", "data": PAIRS, "transform": "@train#preprocessing"},
            "dataloader": {"_target_": "DataLoader", "dataset": "@train#dataset", "batch_size": 2, "shuffle": True},
            "inferer": {"_target_": "SimpleInferer"},
            "postprocessing": SCORED,
            "handlers": HANDLERS,
            "key_metric": {"train_accuracy": ACCURACY},
            "trainer": {
                "_target_": "SupervisedTrainer",
                "max_epochs": 800,
                "device": "@device",
                "train_data_loader": "@train#dataloader",
                "network": "@network",
                "loss_function": "@loss",
                "optimizer": "@optimizer",
                "train_handlers": "@train#handlers",
            },
        },
        "validate": {
            "preprocessing": {"_target_": "Compose", "transforms": "%train#deterministic_transforms"},
            "dataset": {"_target_": "CacheDataset", "data": HELD_OUT, "transform": "@validate#preprocessing"},
            "dataloader": {"_target_": "DataLoader", "dataset": "@validate#dataset"},
            "postprocessing": "%train#postprocessing",
            "handlers": [STATS, {**SAVER, "save_key_metric": True, "key_metric_filename": "model.pt"}],
            "evaluator": {
                "_target_": "SupervisedEvaluator",
                "device": "@device",
                "val_data_loader": "@validate#dataloader",
                "network": "@network",
                "key_val_metric": {"val_mean_dice": DICE},
                "val_handlers": "@validate#handlers",
            },
        },
        "initialize": [SEED, BENCHMARK],
        "run": ["$@train#trainer.run()"],
        **more,
    }


# overlays of a training config
EVALUATION = {
    "validate#dataset#cache_rate": 0,
    "validate#postprocessing": compose(
        SOFTMAX,
        {**BACK, "keys": ["pred", "label"], "transform": "@validate#preprocessing", "nearest_interp": [False, True]},
        step("SplitDimd", ["pred", "label"], output_postfixes=["core", "whole"]),
        step("CopyItemsd", "pred", times=1, names="pred_save"),
        {**SAVED, "output_dtype": "uint8", "_disabled_": True, "resample": False, "squeeze_end_dims": True},
    ),
    "validate#handlers": [
        {**LOADER, "load_path": "$@ckpt_dir + '/model.pt'"},
        STATS,
        {
            "_target_": "MetricsSaver",
            "save_dir": "@output_dir",
            "metrics": ["val_mean_dice"],
            "metric_details": ["val_mean_dice"],
            "batch_transform": "$lambda x: [xx['image'].meta for xx in x]",
            "summary_ops": "*",
        },
    ],
    "run": ["$@validate#evaluator.run()"],
}
_SAMPLER = {"_target_": "DistributedSampler", "dataset": "@train#dataset", "even_divisible": True, "shuffle": True}
_JOIN = [
    "$import torch.distributed as dist",
    "$dist.is_initialized() or dist.init_process_group(backend='nccl')",
    "$torch.cuda.set_device(@device)",
]
_PARALLEL = {
    "device": RANK,
    "network": {
        "_target_": "torch.nn.parallel.DistributedDataParallel",
        "module": "$@network_def.to(@device)",
        "device_ids": ["@device"],
        "find_unused_parameters": True,
    },
    "finalize": ["$dist.is_initialized() and dist.destroy_process_group()"],
}
_QUIET = "$@{}.logger.setLevel(logging.WARNING if dist.get_rank() > 0 else logging.INFO)"
SEVERAL_GPUS = {
    **_PARALLEL,
    "train#sampler": _SAMPLER,
    "train#dataloader#sampler": "@train#sampler",
    "train#dataloader#shuffle": False,
    "train#trainer#max_epochs": "$400*dist.get_world_size()",
    "train#trainer#train_handlers": "$@train#handlers[: -2 if dist.get_rank() > 0 else None]",
    "validate#evaluator#val_handlers": "$None if dist.get_rank() > 0 else @validate#handlers",
    "initialize": [*_JOIN, SEED, "$import logging", _QUIET.format("train#trainer")],
    "run": ["$@train#trainer.run()"],
}
SEVERAL_GPUS_EVALUATE = {
    **_PARALLEL,
    "validate#handlers#1#_disabled_": "$dist.get_rank() > 0",
    "initialize": [*_JOIN, "$import logging", _QUIET.format("validate#evaluator")],
    "run": ["$@validate#evaluator.run()"],
}

# variants of training
PARTITIONS = {
    "partition": "$monai.data.partition_dataset(data=@listed_items, num_partitions=dist.get_world_size(), shuffle=True,"
    " even_divisible=True,)[dist.get_rank()]",
    **_PARALLEL,
    "device": "$torch.device('cuda:' + os.environ.get('LOCAL_RANK', '0') if torch.cuda.is_available() else 'cpu')",
    "run": [*_JOIN, "$@train#trainer.run()", "$dist.destroy_process_group()"],
}
ARRAYS = {
    "imports": [*TRAINING_IMPORTS, *EVENTS],
    "arrays": {"_target_": "NPZDictItemDataset", "npzfile": "data.npz", "keys": {"images": "image", "segs": "label"}},
    "parts": "$monai.data.partition_dataset(np.arange(len(@arrays)), (8, 2), shuffle=True)",
    "subset": "$torch.utils.data.Subset(@arrays, @parts[0])",
    "rate": "$partial(torch.clamp, min=0.0, max=1.0)",
    "stop": "$@train#trainer.add_event_handler(Events.ITERATION_COMPLETED(every=5), ignite.handlers.TerminateOnNan())",
    "told": "$logging.info('training on ' + str(len(@arrays)))",
}
STAMPED = {
    "results_dir": "$@bundle_root + '/results'",
    "output_dir": "$datetime.datetime.now().strftime(@results_dir + '/output_%y%m%d_%H%M%S')",
    "log": {"_target_": "LogfileHandler", "output_dir": "@output_dir"},
}
SHOWN: Config = {
    "run": ["$@evaluator.run()", "$print('Dice:\\n', @evaluator.state.metric_details['val_mean_dice'].cpu().numpy())"]
}
ARCHITECTURE: Config = {
    "searched_file": "$@bundle_root + '/models/search_code.pt'",
    "searched": "$torch.load(@searched_file, map_location=torch.device('cuda'))",
    "space": {**SPACE, "arch_code": ["$@searched['arch_code_a']", "$@searched['arch_code_c']"]},
}
LISTED: Config = {"listed": "$@bundle_root + '/configs/datalist.json'"}
