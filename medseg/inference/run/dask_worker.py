"""What runs in a worker process: open the bundle once, then one case after another.

Nothing here is shown in a log of Dask: tasks have numbers for names, and what they are given and give back shows only
its type.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from medseg._version import medseg_version
from medseg.bundle import Bundle, trained_on
from medseg.errors import MedsegError
from medseg.inference.cases import InputCase
from medseg.inference.roi import Region
from medseg.inference.run import lease as claim
from medseg.inference.run.options import RunOptions, run_key
from medseg.inference.run.results import CaseResult
from medseg.inference.run.work import Setting, Tools, Watchdog, Work, open_tools, work_on
from medseg.ingest import walk as archives

if TYPE_CHECKING:
    from medseg.bundle import Permission

_SEEN_WITHIN_S = 60.0
"""How long a network file system may take to show a new file on another machine."""

_MAX_RUNS = 2
"""For how many runs a worker keeps open what it has opened: one that ends, and one that begins or goes on beside it."""


@dataclass(frozen=True, repr=False)
class RunCard:
    """What a worker needs to know of a run."""

    bundle: str
    bundle_sha256: str
    permission: Permission
    folder: str
    options: RunOptions
    region: Region | None
    run_key: str
    claim: str
    medseg: str


@dataclass(frozen=True, repr=False)
class Ready:
    """A worker's answer to :func:`prepare`: why it cannot be used; empty if it can."""

    refusal: str = ""


@dataclass(frozen=True, repr=False)
class Order:
    """One case to work on: the run and the case, with absolute paths."""

    card: RunCard
    case: InputCase


@dataclass(frozen=True, repr=False)
class Reply:
    """What became of an order."""

    result: CaseResult
    content_key: str


@dataclass(frozen=True)
class _Station:
    """What this process has opened for a run."""

    card: RunCard
    setting: Setting
    tools: Tools
    watchdog: Watchdog


_opening = threading.Lock()
_stations: dict[str, _Station] = {}


def card_of(setting: Setting) -> RunCard:
    """The card of a run, with absolute paths, since a worker has another working directory."""
    bundle, folder = setting.bundle, setting.folder
    ensemble = tuple(str(Path(place).absolute()) for place in setting.options.ensemble)
    return RunCard(
        str(bundle.path.absolute()),
        bundle.sha256,
        bundle.permission,
        str(folder.absolute()),
        replace(setting.options, ensemble=ensemble),
        setting.region,
        setting.run_key,
        setting.claim,
        medseg_version(),
    )


def order_of(card: RunCard, case: InputCase) -> Order:
    """The order to work on a case."""
    channels = tuple(replace(record, files=tuple(map(_absolute, record.files))) for record in case.channels)
    return Order(card, replace(case, channels=channels))


def _absolute(file: str) -> str:
    path, mark, member = file.partition(archives.MARK)
    return str(Path(path).absolute()) + mark + member


def prepare(card: RunCard, threads: int) -> Ready:
    """Open what computing needs, if this process can work for the run.

    Parameters
    ----------
    card
        The run.
    threads
        Number of threads that the network uses here.
    """
    torch.set_num_threads(threads)
    try:
        _station(card)
        return Ready()
    except MedsegError as error:
        return Ready(refusal=str(error))
    except Exception as error:  # noqa: BLE001  no GPU, no memory: told to the driver, which goes on without this worker
        return Ready(refusal=f"opening the bundle raised {type(error).__name__} there: {str(error)[:200]}")


def process(order: Order) -> Reply:
    """Read, compute and write one case; whatever goes wrong with it becomes its result."""
    station = _station(order.card)
    claim.require(station.setting.folder, order.card.claim)
    work = Work(order.case)
    result = work_on(work, station.setting, station.tools, station.watchdog)
    return Reply(result, work.content_key)


def _station(card: RunCard) -> _Station:
    with _opening:
        station = _stations.get(card.claim)
        if station is None:
            while len(_stations) >= _MAX_RUNS:
                _stations.pop(next(iter(_stations)))
            station = _stations[card.claim] = _open(card)
    return station


def _open(card: RunCard) -> _Station:
    if medseg_version() != card.medseg:
        raise MedsegError(f"found medseg {medseg_version()} there, the run uses {card.medseg}; install the same one")
    folder = Path(card.folder)
    if not _sees(folder, card.claim):
        raise MedsegError(f"it does not see {folder}; the output folder must be on a file system that all share")
    bundle = Bundle.open(card.bundle, card.permission)
    if bundle.sha256 != card.bundle_sha256:
        raise MedsegError(f"its {card.bundle} is another bundle than the run's; give all workers the same files")
    if run_key(bundle, card.options, card.region) != card.run_key:
        raise MedsegError("the networks of --ensemble differ from the run's there; give all workers the same files")
    setting = Setting(bundle, folder, card.options, card.region, card.run_key, card.claim, trained_on(bundle))
    return _Station(card, setting, open_tools(setting), Watchdog(card.options.stall_s))


def _sees(folder: Path, mine: str) -> bool:
    deadline = time.monotonic() + _SEEN_WITHIN_S
    while not claim.holds(folder, mine):
        if not folder.is_dir() or time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True
