"""Training: a generator against a discriminator under a MONAI workflow, resumable to the bit."""

from medseg.training.adversary import Adversary
from medseg.training.averaging import WarmAverage, averaged
from medseg.training.checkpoints import Checkpoints, better, save_weights
from medseg.training.compilation import compiled
from medseg.training.configuration import check_ids
from medseg.training.datalist import data_root, fold_items
from medseg.training.deep_supervision import DeepSupervision, parameters_of
from medseg.training.engine import AdversarialSegmentationTrainer
from medseg.training.grids import NoiseGrids, RestorationGrids
from medseg.training.images import ImageAdversary, NoSupervision, RestorationLoss
from medseg.training.initial import started
from medseg.training.journal import Journal
from medseg.training.losses import AdversarialLoss, feature_matching, gradient_penalty
from medseg.training.parallel import local_device, start_processes, stop_processes
from medseg.training.realism import FeatureEncoder, FrechetDistance, closer, frechet_distance, nearest
from medseg.training.run import TrainingResult, train_bundle
from medseg.training.samples import Samples
from medseg.training.sampling import DrawSampler, TrainingDataset, training_loader
from medseg.training.schedule import AdversarialSchedule, OneCycle, Turn
from medseg.training.unlabelled import Unlabelled, unlabelled_cases
from medseg.training.volumes import image_items

__all__ = [
    "AdversarialLoss",
    "AdversarialSchedule",
    "AdversarialSegmentationTrainer",
    "Adversary",
    "Checkpoints",
    "DeepSupervision",
    "DrawSampler",
    "FeatureEncoder",
    "FrechetDistance",
    "ImageAdversary",
    "Journal",
    "NoSupervision",
    "NoiseGrids",
    "OneCycle",
    "RestorationGrids",
    "RestorationLoss",
    "Samples",
    "TrainingDataset",
    "TrainingResult",
    "Turn",
    "Unlabelled",
    "WarmAverage",
    "averaged",
    "better",
    "check_ids",
    "closer",
    "compiled",
    "data_root",
    "feature_matching",
    "fold_items",
    "frechet_distance",
    "gradient_penalty",
    "image_items",
    "local_device",
    "nearest",
    "parameters_of",
    "save_weights",
    "start_processes",
    "started",
    "stop_processes",
    "train_bundle",
    "training_loader",
    "unlabelled_cases",
]
