"""What the GAN bundle has learned: distance to real patches over training, nearest neighbours, diversity, pictures.

    medseg train bundles/volume_gan_synthesis --dataset-dir DATA --output RUN --set train#handlers#2#keep=1000
    python -m benchmarks.synthesis RUN DATA OUTPUT

Reads the checkpoints of the run (and the untrained generator). It leaves ``synthesis.json``, ``frechet.png``,
``epochs.png`` (the same noise over training) and ``neighbours.png`` (created patches above the nearest training patch).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d

from medseg.bundle import Bundle
from medseg.files import atomic_path, write_json
from medseg.pictures import sheet
from medseg.training import frechet_distance, image_items, radial_spectrum, spectrum_distance
from medseg.training.pictures import pictures as planes
from medseg.training.pictures import save_picture

BUNDLE = Path(__file__).parents[1] / "bundles" / "volume_gan_synthesis"
SIDE = 32


def nearest(queries: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of each query to its nearest reference, and which that is: root mean square difference of the vectors.

    Parameters
    ----------
    queries, references
        ``(N, F)`` and ``(M, F)``.
    """
    found = torch.cdist(queries, references).min(dim=1)
    return found.values / queries.shape[1] ** 0.5, found.indices


def volumes(config: dict[str, Any], items: list[dict[str, Any]]) -> list[Tensor]:
    """Cases as the GAN sees them before it cuts patches out, ``(1, H, W, D)``."""
    definitions = {"spacing_mm": config["spacing_mm"], "transforms": config["train"]["preprocessing_transforms"]}
    chain = Compose(ConfigParser(definitions).get_parsed_content("transforms"))
    return [chain(item)["image"] for item in items]


def random_patches(cases: Sequence[Tensor], count: int, seed: int) -> Tensor:
    """Patches at random places, the cases in turn, ``(count, 1, 32, 32, 32)``."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        case = padded(cases[number % len(cases)])
        starts = [int(torch.randint(n - SIDE + 1, (1,), generator=generator)) for n in case.shape[1:]]
        found.append(cut(case, starts))
    return torch.stack(found)


def grid_patches(cases: Sequence[Tensor], step: int = 4) -> Tensor:
    """Patches at every ``step``-th place of every case."""
    found = []
    for volume in cases:
        case = padded(volume)
        places = [range(0, n - SIDE + 1, step) for n in case.shape[1:]]
        found += [cut(case, starts) for starts in product(*places)]
    return torch.stack(found)


def padded(case: Tensor) -> Tensor:
    missing = [max(0, SIDE - n) for n in case.shape[1:]]
    sides = [side for n in reversed(missing) for side in (n // 2, n - n // 2)]
    return nn.functional.pad(case, sides)


def cut(case: Tensor, starts: Sequence[int]) -> Tensor:
    x, y, z = starts
    return case[:, x : x + SIDE, y : y + SIDE, z : z + SIDE]


def create(generator: nn.Module, count: int, latent: int, seed: int = 0) -> Tensor:
    noise = torch.randn((count, latent, 1, 1, 1), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return torch.cat([generator(part) for part in noise.split(16)])


def features(encoder: nn.Module, patches: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([encoder(part) for part in patches.split(16)])


def shape_of(patches: Tensor) -> Tensor:
    """A coarse, standardised copy as a vector: what is compared when neighbours are looked for."""
    vectors = avg_pool3d(patches, 4).flatten(1)
    return (vectors - vectors.mean(1, keepdim=True)) / vectors.std(1, keepdim=True)


def spread(vectors: Tensor) -> float:
    """Mean distance between two of the vectors."""
    return float(nn.functional.pdist(vectors).mean()) / vectors.shape[1] ** 0.5


def epochs_of(run: Path, length: int, every: int) -> dict[int, Path]:
    found = {int(path.stem.split("-")[1]) // length: path for path in sorted(run.glob("checkpoints/checkpoint-*.pt"))}
    last = max(found)
    return {epoch: path for epoch, path in found.items() if epoch % every == 0 or epoch == last}


def over_training(
    parser: ConfigParser, checkpoints: dict[int, Path], real: Tensor, count: int
) -> tuple[dict[int, float], list[Any], nn.Module]:
    """Fréchet distance by epoch, pictures of the same noise by epoch, and the last generator."""
    torch.manual_seed(int(parser.config["seed"]))
    generator = parser.get_parsed_content("network_def").eval()
    encoder = parser.get_parsed_content("feature_encoder_def")
    latent, distances, pictures = int(parser.config["latent"]), {}, []
    for epoch, path in {0: None, **checkpoints}.items():
        if path is not None:
            averaged = torch.load(path, map_location="cpu", weights_only=True)["averaged"]
            names = {name.removeprefix("module."): value for name, value in averaged.items() if name != "n_averaged"}
            generator.load_state_dict(names)
        distances[epoch] = frechet_distance(features(encoder, create(generator, count, latent, seed=1)), real)
        pictures.append(("", [planes(patch)[-1] for patch in create(generator, 8, latent)]))
    return distances, pictures, generator


def neighbours(
    generator: nn.Module, latent: int, training: list[Tensor], held_out: Tensor, output: Path
) -> dict[str, float]:
    """Distances to the nearest training patch: of created patches, and of real ones that were held out."""
    references = grid_patches(training)
    known = shape_of(references)
    created = create(generator, len(held_out), latent, seed=2)
    distance, place = nearest(shape_of(created), known)
    real_distance, _ = nearest(shape_of(held_out), known)
    order = distance.argsort()[:8]
    rows = [("", [planes(patch)[-1] for patch in patches]) for patches in (created[order], references[place[order]])]
    save_picture(sheet(rows, []), output / "neighbours.png")
    return {
        "training_patches": len(references),
        "created_nearest_mean": float(distance.mean()),
        "created_nearest_least": float(distance.min()),
        "held_out_nearest_mean": float(real_distance.mean()),
        "held_out_nearest_least": float(real_distance.min()),
        "created_spread": spread(shape_of(created)),
        "held_out_spread": spread(shape_of(held_out)),
    }


def texture(created: Tensor, training: Sequence[Tensor], held_out: Sequence[Tensor], count: int) -> dict[str, float]:
    """Distance of the power spectra of created and of held-out patches in dB, and that of training patches."""
    real = radial_spectrum(random_patches(held_out, count, seed=0))
    others = {"spectrum_db": created, "spectrum_db_of_training_patches": random_patches(training, count, seed=0)}
    return {name: spectrum_distance(radial_spectrum(patches), real) for name, patches in others.items()}


def draw_curve(distances: dict[int, float], floor: float, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(list(distances), list(distances.values()), marker="o", label="created and held-out patches")
    axes.axhline(floor, linestyle="--", color="grey", label="training and held-out patches")
    axes.set(xlabel="epoch", ylabel="Fréchet distance", yscale="log")
    axes.legend()
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=100)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path)
    options.add_argument("data", type=Path)
    options.add_argument("output", type=Path)
    options.add_argument("--bundle", type=Path, default=BUNDLE)
    options.add_argument("--patches", type=int, default=200)
    options.add_argument("--every", type=int, default=5, help="epochs between the points of the curve")
    chosen = options.parse_args()
    bundle = Bundle.open(chosen.bundle)
    parser = ConfigParser({**bundle.config("train"), "bundle_root": str(bundle.path)})
    datalist = bundle.path / "configs" / "datalist.json"
    training, held_out = (
        volumes(parser.config, image_items(datalist, chosen.data, 0, part)) for part in ("training", "validation")
    )
    encoder = parser.get_parsed_content("feature_encoder_def")
    real = features(encoder, random_patches(held_out, chosen.patches, seed=0))
    floor = frechet_distance(features(encoder, random_patches(training, chosen.patches, seed=0)), real)
    checkpoints = epochs_of(chosen.run, int(parser.config["iterations"]), chosen.every)
    distances, pictures, generator = over_training(parser, checkpoints, real, chosen.patches)
    save_picture(sheet(pictures[::-1], []), chosen.output / "epochs.png")
    draw_curve(distances, floor, chosen.output / "frechet.png")
    figures = neighbours(
        generator, int(parser.config["latent"]), training, random_patches(held_out, 84, seed=3), chosen.output
    )
    result = {"patches": chosen.patches, "frechet": distances, "frechet_of_training_patches": floor, **figures}
    latent = int(parser.config["latent"])
    result |= texture(create(generator, chosen.patches, latent), training, held_out, chosen.patches)
    write_json(chosen.output / "synthesis.json", result)
    print(result)


if __name__ == "__main__":
    main()
