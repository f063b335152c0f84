"""The name and the meaning of every metric, in one place.

Tables, summaries, reports and documentation take names, units and definitions from here; nothing else spells
them out. Sources: Maier-Hein et al., *Metrics reloaded*, Nature Methods 21 (2024); Nikolov et al., *Clinically
applicable segmentation of head and neck anatomy*, J Med Internet Res 23 (2021) for the normalised surface
distance; Shit et al., *clDice*, CVPR 2021; Taha and Hanbury, BMC Medical Imaging 15:29 (2015) for the rest.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, get_args

from medseg.errors import UsageError

PercentileRule = Literal["directed", "pooled"]
SurfaceRule = Literal["voxels", "elements"]


@dataclass(frozen=True)
class Metric:
    """One figure of merit."""

    name: str  # column name; carries the unit
    title: str  # short heading for people
    definition: str  # what is computed, in one or two sentences
    lower_is_better: bool = False  # whether a smaller value is better, as of a distance
    csv: bool = True  # whether ``metrics.csv`` has a column for it
    # value if exactly one of the two masks is empty; ``None`` where no value exists (distances)
    empty_score: float | None = None


_score = partial(Metric, empty_score=0.0)
_lesion_score = partial(Metric, csv=False, empty_score=0.0)
_distance = partial(Metric, lower_is_better=True)

METRICS: tuple[Metric, ...] = (
    _score("dice", "Dice", "2·|P∩R| / (|P|+|R|), voxels of prediction P and reference R"),
    _score("iou", "IoU", "|P∩R| / |P∪R|"),
    _score("precision", "Precision", "|P∩R| / |P|; 0 if only the reference has the structure"),
    _score("recall", "Recall", "|P∩R| / |R|; 0 if only the prediction has the structure"),
    _distance(
        "hd_mm",
        "HD [mm]",
        "Hausdorff distance: the largest distance from a point of either surface to the other surface",
    ),
    _distance("hd95_mm", "HD95 [mm]", "95th percentile of the surface distances, as stated under percentile_rule"),
    _distance(
        "assd_mm", "ASSD [mm]", "average symmetric surface distance: mean over the points of both surfaces together"
    ),
    _score(
        "nsd",
        "NSD",
        "normalised surface distance (surface Dice): share of both surfaces that lies within tolerance_mm of the other",
    ),
    Metric("volume_ml", "Volume [ml]", "volume of the prediction: voxels times the volume of a voxel"),
    Metric("reference_volume_ml", "Reference volume [ml]", "volume of the reference"),
    Metric("volume_difference_ml", "Volume difference [ml]", "volume of the prediction minus volume of the reference"),
    Metric(
        "specificity",
        "Specificity",
        "share of the voxels outside R that are outside P; depends on the field of view",
        csv=False,
    ),
    _distance("masd_mm", "MASD [mm]", "mean of the two directed average surface distances", csv=False),
    _lesion_score("lesion_precision", "Lesion precision", "share of the connected components of P that touch R"),
    _lesion_score("lesion_recall", "Lesion recall", "share of the connected components of R that P touches"),
    _lesion_score("lesion_f1", "Lesion F1", "harmonic mean of lesion precision and lesion recall"),
    Metric(
        "cldice",
        "clDice",
        "harmonic mean of the shares of P's centreline inside R and of R's centreline inside P; where asked for",
        csv=False,
    ),
    _distance(
        "ece",
        "ECE",
        "expected calibration error: |share that is right - mean probability| over 15 bins of equal width, weighted by "
        "voxels; of voxels with a probability above 0 or in R; where there are probabilities",
        csv=False,
    ),
    _distance("ace", "ACE", "the same as a plain mean over 15 bins of equally many voxels", csv=False),
)
"""Every metric, those of ``metrics.csv`` first and in the order of its columns."""

CSV_METRICS: tuple[str, ...] = tuple(metric.name for metric in METRICS if metric.csv)

CSV_COLUMNS: tuple[str, ...] = ("case_id", "label", "name", *CSV_METRICS, "missed", "invented")
"""Columns of ``metrics.csv``, in this order."""

EMPTY_POLICY: dict[str, str] = {
    "missed": "only the reference has the structure: overlap scores and NSD are 0, distances do not exist",
    "invented": "only the prediction has the structure: overlap scores and NSD are 0, distances do not exist",
    "absent": "neither has it: the case has no score for this structure and is counted as n_absent",
    "averages": "distances are averaged over the cases that have one; n of each metric, n_missed and n_invented "
    "stand beside every average",
}
"""What happens to empty masks; written into ``metrics.json``."""

_RULES = {
    "percentile_rule": {
        "directed": "the percentile (linear interpolation) of each direction's distances; the larger of both",
        "pooled": "the percentile (linear interpolation) of both directions' distances taken together",
    },
    "surface": {
        "voxels": "surface voxels have a 6-neighbour outside the structure; outside the image counts as outside; "
        "every surface voxel has the same weight",
        "elements": "the surface runs between voxels (marching cubes on the mask); every element is weighted by its "
        "area in mm²",
    },
}


@dataclass(frozen=True)
class Definitions:
    """The choices that the field makes differently; the defaults are the ones that ``metrics.csv`` documents.

    Raises ``UsageError`` if a value is none of those listed.
    """

    percentile_rule: PercentileRule = "directed"
    """``"directed"``: percentile per direction, the larger of both; ``"pooled"``: percentile of both together."""
    surface: SurfaceRule = "voxels"
    """``"voxels"``: centres of surface voxels, equal weights; ``"elements"``: surface elements weighted by area."""
    percentiles: tuple[float, ...] = ()  # further ones of the surface distance, each reported as ``hdNN_mm``
    lesion_connectivity: Literal[6, 18, 26] = 26  # so many neighbours join voxels into one lesion
    lesion_overlap: float = 0.0
    """A lesion counts as found if more than this share of its voxels is covered; 0 means any voxel."""
    lesion_iou: float | None = None
    """Also match lesions one to one, pairs of at least this intersection over union, for ``lesions.csv``; None: no."""
    lesion_strata_ml: tuple[float, ...] = (0.1, 1.0, 10.0)  # volumes between which they are counted apart there
    centreline: bool = False  # also compute ``cldice``, which takes a second for a large structure

    def __post_init__(self) -> None:
        allowed = {"percentile_rule": get_args(PercentileRule), "surface": get_args(SurfaceRule)}
        for name, values in {**allowed, "lesion_connectivity": (6, 18, 26)}.items():
            if getattr(self, name) not in values:
                raise UsageError(f"{name} is {getattr(self, name)!r}; give one of {', '.join(map(str, values))}")
        if not 0.0 <= self.lesion_overlap < 1.0:
            raise UsageError(f"lesion_overlap is {self.lesion_overlap}; give a share of at least 0 and below 1")
        if self.lesion_iou is not None and not 0.0 <= self.lesion_iou <= 1.0:
            raise UsageError(f"lesion_iou is {self.lesion_iou}; give a share from 0 to 1")
        if sorted({edge for edge in self.lesion_strata_ml if edge > 0}) != list(self.lesion_strata_ml):
            raise UsageError(f"lesion_strata_ml are {self.lesion_strata_ml}; give ascending volumes above 0")
        if any(not 0.0 < p <= 100.0 for p in self.percentiles):
            raise UsageError(f"percentiles are {self.percentiles}; give numbers above 0 and up to 100")


def metric_named(name: str) -> Metric:
    """The metric called ``name``; the further percentiles (``hd99_mm``) are known too."""
    for metric in METRICS:
        if metric.name == name:
            return metric
    if name.startswith("hd") and name.endswith("_mm"):
        return _distance(name, f"HD{name[2:-3]} [mm]", f"percentile {name[2:-3]} of the surface distances", csv=False)
    raise UsageError(f"no metric is called {name!r}; give one of {', '.join(m.name for m in METRICS)}")


def percentile_name(percentile: float) -> str:
    """Column name of a percentile of the surface distance: ``hd95_mm``, ``hd99.5_mm``."""
    return f"hd{percentile:g}_mm"


def describe(definitions: Definitions, tolerance_mm: object) -> dict[str, Any]:
    """All definitions as plain JSON values: the choices, what they mean, and one sentence per metric."""
    return {
        "tolerance_mm": tolerance_mm,
        "choices": {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(definitions).items()
        },
        "percentile_rule": _RULES["percentile_rule"][definitions.percentile_rule],
        "surface": _RULES["surface"][definitions.surface],
        "sheared_grids": "distances between the voxels' true positions in mm; the axes are not taken as orthogonal",
        "metrics": {metric.name: metric.definition for metric in METRICS},
    }
