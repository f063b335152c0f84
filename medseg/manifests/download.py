"""Download a task of the Medical Segmentation Decathlon, checked, with MONAI's own downloader.

Addresses and MD5 sums are those of :class:`monai.apps.DecathlonDataset`. The data are licensed CC BY-SA 4.0
(Antonelli et al., Nature Communications 13, 4128, 2022).
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from medseg.errors import UsageError
from medseg.files import atomic_path


def task_name(task: str) -> str:
    """The full name of a task, from ``Task04_Hippocampus``, ``4`` or ``hippocampus``; a UsageError if there is none."""
    names = list(_sources())
    plain = re.sub(r"[^a-z0-9]", "", task.lower())
    for name in names:
        number, organ = name.removeprefix("Task").split("_")
        if plain in (re.sub("_", "", name.lower()), organ.lower(), number, str(int(number)), f"task{number}"):
            return name
    raise UsageError(f"there is no task {task!r}; expected one of {', '.join(names)}")


def download_task(task: str, output: str | os.PathLike[str], *, progress: bool = True) -> Path:
    """Download and unpack a task (see :func:`task_name`) into ``output``; what is there already and sound is used.

    Returns the dataset's folder, with its ``dataset.json``. A UsageError if the archive cannot be fetched (the message
    says which file to put where) or is not the right one.
    """
    name = task_name(task)
    url, md5 = _sources()[name]
    folder, archive = Path(output) / name, Path(output) / f"{name}.tar"
    if (folder / "dataset.json").is_file():
        return folder
    if folder.exists():
        raise UsageError(f"{folder} exists but holds no dataset.json; move it away and run this again")
    _fetch(url, archive, md5, progress=progress)
    _unpack(archive, folder)
    return folder


def _sources() -> dict[str, tuple[str, str]]:
    from monai.apps import DecathlonDataset

    return {name: (url, DecathlonDataset.md5[name]) for name, url in DecathlonDataset.resource.items()}


def _fetch(url: str, archive: Path, md5: str, *, progress: bool) -> None:
    from monai.apps.utils import HashCheckError, check_hash, download_url

    if archive.exists():
        if not check_hash(archive, md5, "md5"):
            raise UsageError(f"{archive} has another MD5 sum than {md5}; delete it and run this again")
        return
    try:
        with atomic_path(archive) as partial:
            download_url(url, partial, md5, "md5", progress=progress)
    except HashCheckError as error:
        raise UsageError(f"what came from {url} has another MD5 sum than {md5}; try again later") from error
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"cannot download {url} ({error}). Fetch this file on a machine with internet access, put it at {archive} "
            f"(MD5 {md5}) and run this again"
        ) from error


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack beside the target and rename, so that a folder of that name is always whole."""
    from monai.apps.utils import extractall

    with tempfile.TemporaryDirectory(prefix=".medseg-partial-", dir=folder.parent) as partial:
        extractall(archive, partial, file_type="tar", has_base=False)
        found = next(Path(partial).glob("*/dataset.json"), None)
        if found is None:
            raise UsageError(f"{archive} holds no dataset.json; delete it and run this again")
        found.parent.replace(folder)
