"""Training: a generator against a discriminator under a MONAI workflow, resumable to the bit."""

from medseg.training.adversary import Adversary
from medseg.training.averaging import WarmAverage, averaged
from medseg.training.checkpoints import Checkpoints, better, save_weights
from medseg.training.datalist import fold_items
from medseg.training.engine import AdversarialSegmentationTrainer
from medseg.training.journal import Journal
from medseg.training.losses import AdversarialLoss, feature_matching, gradient_penalty
from medseg.training.metrics import HausdorffMillimetres
from medseg.training.parallel import local_device, start_processes, stop_processes
from medseg.training.run import TrainingResult, train_bundle
from medseg.training.samples import Samples
from medseg.training.sampling import DrawSampler, TrainingDataset, training_loader
from medseg.training.schedule import AdversarialSchedule, OneCycle, Turn

__all__ = [
    "AdversarialLoss",
    "AdversarialSchedule",
    "AdversarialSegmentationTrainer",
    "Adversary",
    "Checkpoints",
    "DrawSampler",
    "HausdorffMillimetres",
    "Journal",
    "OneCycle",
    "Samples",
    "TrainingDataset",
    "TrainingResult",
    "Turn",
    "WarmAverage",
    "averaged",
    "better",
    "feature_matching",
    "fold_items",
    "gradient_penalty",
    "local_device",
    "save_weights",
    "start_processes",
    "stop_processes",
    "train_bundle",
    "training_loader",
]
