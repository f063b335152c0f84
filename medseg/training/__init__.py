"""Training: a generator against a discriminator under a MONAI workflow, resumable to the bit."""

from medseg.devices import compiled
from medseg.training.adversary import AdversarialLoss, Adversary, feature_matching, gradient_penalty
from medseg.training.checkpoints import Checkpoints, higher_is_better, save_weights
from medseg.training.codes import Codes
from medseg.training.configuration import check_ids
from medseg.training.data import (
    DrawSampler,
    TrainingDataset,
    data_root,
    fold_items,
    image_items,
    training_loader,
)
from medseg.training.deep_supervision import DeepSupervision, parameters_of
from medseg.training.distillation import Distillation, distillation
from medseg.training.distributed import local_device, start_processes, stop_processes
from medseg.training.exact_epochs import ExactEpochs
from medseg.training.gradient_share import GradientShare
from medseg.training.initialise import started
from medseg.training.mean_teacher import MeanTeacher, unlabelled_cases
from medseg.training.metrics_log import MetricsLogger
from medseg.training.pictures import NoiseGrids, RestorationGrids, Samples
from medseg.training.run import TrainingResult, train_bundle
from medseg.training.schedule import AdversarialSchedule, FrozenFirst, OneCycle, StepPlan
from medseg.training.step import averaged
from medseg.training.supervised_loss import KnownDiceCELoss, SoftBorderLoss
from medseg.training.synthesis import (
    FeatureEncoder,
    FrechetDistance,
    ImageAdversary,
    NoSupervision,
    RestorationLoss,
    SpectrumDistance,
    Thumbnails,
    frechet_distance,
    lower_is_better,
    radial_spectrum,
    spectrum_distance,
)
from medseg.training.teachers import train_with_teachers
from medseg.training.trainer import AdversarialSegmentationTrainer
from medseg.transforms.load_pictures import picture_items

# The names of the first version, for bundles that say them; they go with the next one.
Journal, Turn, Unlabelled = MetricsLogger, StepPlan, MeanTeacher
better, closer = higher_is_better, lower_is_better

__all__ = [
    "AdversarialLoss", "AdversarialSchedule", "AdversarialSegmentationTrainer", "Adversary", "Checkpoints", "Codes",
    "DeepSupervision", "Distillation", "DrawSampler", "ExactEpochs", "FeatureEncoder", "FrechetDistance",
    "FrozenFirst", "GradientShare", "ImageAdversary", "Journal", "KnownDiceCELoss", "MeanTeacher", "MetricsLogger",
    "NoSupervision", "NoiseGrids", "OneCycle", "RestorationGrids", "RestorationLoss", "Samples", "SoftBorderLoss",
    "SpectrumDistance", "StepPlan", "Thumbnails", "TrainingDataset", "TrainingResult", "Turn", "Unlabelled",
    "averaged", "better", "check_ids", "closer", "compiled", "data_root", "distillation", "feature_matching",
    "fold_items", "frechet_distance", "gradient_penalty", "higher_is_better", "image_items", "local_device",
    "lower_is_better", "parameters_of", "picture_items", "radial_spectrum", "save_weights", "spectrum_distance",
    "start_processes", "started", "stop_processes", "train_bundle", "train_with_teachers", "training_loader",
    "unlabelled_cases",
]  # fmt: skip
