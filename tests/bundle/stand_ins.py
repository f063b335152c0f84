"""Clean configs with the constructs that segmentation bundles in MONAI's model zoo use; none may raise an alarm."""

from __future__ import annotations

from typing import Any

__all__ = ["STAND_INS"]

_DEVICE = "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')"
_LOSS_OUTPUT = "$monai.handlers.from_engine(['loss'], first=True)"
_METRIC_OUTPUT = "$monai.handlers.from_engine(['pred', 'label'])"
_LOADER = {
    "_target_": "CheckpointLoader",
    "load_path": "$@bundle_root + '/models/model.pt'",
    "load_dict": {"model": "@network"},
}
_SAVE = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "resample": False}
_INVERT = {
    "_target_": "Invertd",
    "keys": "pred",
    "transform": "@preprocessing",
    "orig_keys": "image",
    "nearest_interp": False,
    "to_tensor": True,
}


def _inference(network: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "/workspace/data/Task",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/imagesTs/*.nii.gz')))",
        "device": _DEVICE,
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": [{"_target_": "LoadImaged", "keys": "image"}]},
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
        "postprocessing": {"_target_": "Compose", "transforms": [_INVERT, _SAVE]},
        "checkpointloader": _LOADER,
        "initialize": ["$monai.utils.set_determinism(seed=123)", "$@checkpointloader(@evaluator)"],
        "run": ["$@evaluator.run()"],
        **more,
    }


def _train(network: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "imports": ["$import glob", "$import os", "$import ignite"],
        "bundle_root": ".",
        "ckpt_dir": "$@bundle_root + '/models'",
        "images": "$list(sorted(glob.glob(@dataset_dir + '/imagesTr/*.nii.gz')))",
        "labels": "$list(sorted(glob.glob(@dataset_dir + '/labelsTr/*.nii.gz')))",
        "device": _DEVICE,
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "loss": {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True},
        "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 1e-4},
        "train": {
            "deterministic_transforms": [{"_target_": "LoadImaged", "keys": ["image", "label"]}],
            "random_transforms": [{"_target_": "RandCropByPosNegLabeld", "keys": ["image"], "label_key": "label"}],
            "preprocessing": {
                "_target_": "Compose",
                "transforms": "$@train#deterministic_transforms + @train#random_transforms",
            },
            "dataset": {
                "_target_": "CacheDataset",
                "data": "$[{'image': i, 'label': l} for i, l in zip(@images[:-9], @labels[:-9])]",
            },
            "handlers": [
                {"_target_": "ValidationHandler", "validator": "@validate#evaluator", "interval": 5},
                {"_target_": "StatsHandler", "tag_name": "train_loss", "output_transform": _LOSS_OUTPUT},
                {"_target_": "TensorBoardStatsHandler", "log_dir": "@output_dir", "output_transform": _LOSS_OUTPUT},
            ],
            "key_metric": {
                "train_accuracy": {"_target_": "ignite.metrics.Accuracy", "output_transform": _METRIC_OUTPUT}
            },
            "trainer": {"_target_": "SupervisedTrainer", "max_epochs": 300, "amp": True},
        },
        "validate": {
            "preprocessing": {"_target_": "Compose", "transforms": "%train#deterministic_transforms"},
            "postprocessing": "%train#postprocessing",
            "handlers": [
                {"_target_": "CheckpointSaver", "save_dir": "@ckpt_dir", "save_dict": {"model": "@network"}},
            ],
        },
        "initialize": [
            "$monai.utils.set_determinism(seed=123)",
            "$setattr(torch.backends.cudnn, 'benchmark', True)",
        ],
        "run": ["$@train#trainer.run()"],
        **more,
    }


_UNET = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [16, 32]}
_SEGRESNET = {"_target_": "SegResNet", "blocks_down": [1, 2, 2, 4], "in_channels": 4, "out_channels": 3}
_SWIN = {"_target_": "SwinUNETR", "spatial_dims": 3, "in_channels": 1, "out_channels": 14, "use_checkpoint": True}
_DYNUNET = {"_target_": "monai.networks.nets.DynUNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 4}

_MULTI_GPU = {
    "device": "$torch.device(f'cuda:{dist.get_rank()}')",
    "network": {
        "_target_": "torch.nn.parallel.DistributedDataParallel",
        "module": "$@network_def.to(@device)",
        "device_ids": ["@device"],
    },
    "train#sampler": {"_target_": "DistributedSampler", "dataset": "@train#dataset", "even_divisible": True},
    "train#dataloader#sampler": "@train#sampler",
    "train#trainer#train_handlers": "$@train#handlers[: -2 if dist.get_rank() > 0 else None]",
    "validate#evaluator#val_handlers": "$None if dist.get_rank() > 0 else @validate#handlers",
    "initialize": [
        "$import torch.distributed as dist",
        "$dist.is_initialized() or dist.init_process_group(backend='nccl')",
        "$torch.cuda.set_device(@device)",
        "$import logging",
        "$@train#trainer.logger.setLevel(logging.WARNING if dist.get_rank() > 0 else logging.INFO)",
    ],
    "run": ["$@train#trainer.run()"],
    "finalize": ["$dist.is_initialized() and dist.destroy_process_group()"],
}

_EVALUATE = {
    "validate#dataset#cache_rate": 0,
    "validate#postprocessing": {"_target_": "Compose", "transforms": [{**_SAVE, "_disabled_": True}]},
    "validate#handlers": [
        {**_LOADER, "load_path": "$@ckpt_dir + '/model.pt'"},
        {"_target_": "MetricsSaver", "save_dir": "@output_dir", "metrics": ["val_mean_dice"], "summary_ops": "*"},
    ],
    "run": ["$@validate#evaluator.run()"],
}

STAND_INS: dict[str, dict[str, dict[str, Any]]] = {
    "organ in CT, U-Net": {"inference": _inference(_UNET), "train": _train(_UNET)},
    "several processes": {"train": _train(_UNET), "multi_gpu_train": _MULTI_GPU},
    "evaluation overlay": {"train": _train(_UNET), "evaluate": _EVALUATE},
    "tumour in four MR channels": {
        "train": _train(
            _SEGRESNET,
            train_datalist="$monai.data.load_decathlon_datalist(@bundle_root + '/configs/datalist.json', "
            "data_list_key='training', base_dir=@dataset_dir)",
            lr_scheduler={"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "optimizer": "@optimizer"},
            labels_to_channels={"_target_": "ConvertToMultiChannelBasedOnBratsClassesd", "keys": "label"},
            training=["$monai.utils.set_determinism(seed=123)", "$@train#trainer.run()"],
        )
    },
    "whole body with two resolutions": {
        "inference": _inference(
            _SEGRESNET,
            imports=["$import glob", "$import numpy", "$import os"],
            displayable_configs={"highres": True, "sw_overlap": 0.25},
            pixdim="$[1.5, 1.5, 1.5] if @displayable_configs#highres else [3.0, 3.0, 3.0]",
            modelname="$'model.pt' if @displayable_configs#highres else 'model_lowres.pt'",
            output_dtype="$numpy.float32",
            checkpointloader={**_LOADER, "load_path": "$@bundle_root + '/models/' + @modelname"},
        )
    },
    "transformer with 14 labels": {"inference": _inference(_SWIN), "train": _train(_SWIN)},
    "callables in transforms": {
        "inference": _inference(
            _DYNUNET,
            crop={
                "_target_": "CropForegroundd",
                "keys": "image",
                "source_key": "image",
                "select_fn": "$lambda x: x > 0",
            },
            scale={"_target_": "Lambdad", "keys": "image", "func": "$lambda x: (x - x.min()) / (x.max() - x.min())"},
            collate={
                "_target_": "DataLoader",
                "dataset": "@dataset",
                "collate_fn": "$monai.data.pad_list_data_collate",
            },
            act={"_target_": "torch.nn.Softmax", "_mode_": "callable", "dim": 1},
        )
    },
    "folds and fine-tuning": {
        "train": _train(
            _DYNUNET,
            fold=0,
            training_cases="$[d for d in @datalist if d['fold'] != @fold]",
            names="$[os.path.basename(d['image']).replace('.nii.gz', '') for d in @datalist]",
            pretrained_state="$torch.load(@bundle_root + '/models/model.pt', weights_only=True)",
            optimizer={
                "_target_": "Novograd",
                "params": "$@network.parameters()",
                "_desc_": "an optimiser with little memory",
            },
            initialize=[
                "$monai.utils.set_determinism(seed=@seed)",
                "$os.makedirs(@output_dir, exist_ok=True)",
                "$@network.load_state_dict(@pretrained_state)",
                "$print('fine-tuning from', @ckpt_dir)",
            ],
        )
    },
    "early stop and schedule": {
        "train": _train(
            _UNET,
            stopper={
                "_target_": "EarlyStopHandler",
                "patience": 10,
                "score_function": "$monai.handlers.stopping_fn_from_metric('val_mean_dice')",
                "trainer": "@train#trainer",
            },
            schedule={
                "_target_": "torch.optim.lr_scheduler.LambdaLR",
                "optimizer": "@optimizer",
                "lr_lambda": "$lambda epoch: (1 - epoch / @epochs) ** 0.9",
            },
            key=f"$monai.utils.{'CommonKeys.PRED'}",
        )
    },
}
