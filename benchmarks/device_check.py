"""Does medseg compute on this machine's accelerator what it computes on a processor, and how fast?

    python -m benchmarks.device_check [--device auto] [--minutes 8] [--only labels training resume times] [--out FILE]

For a machine that was never tried: torch, MONAI and medseg's other requirements, medseg installed or in the current
folder, no network, no data. It makes its own patients, prints each check as it ends, and stops when the time is over.
A check that fails or raises is a line with its message, and the next one goes on. Exit status 0: every check holds;
1: one does not, or was not reached.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import logging
import os
import platform
import sys
import tempfile
import textwrap
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.device_checks import LARGE, SMALL, LabelMaps, Outcome, Setting, Task, Windows
from benchmarks.device_trainings import Steps, Trainings

DOORS = ("medseg.bundle", "medseg.cli.doctor", "medseg.phantom", "medseg.inference", "medseg.training")
PARTS = ("labels", "training", "resume", "times")
_WIDTH = 80
_MARKS = {True: "ok", False: "FAIL", None: "note"}
_TRAINING = {"training": Trainings.losses, "resume": Trainings.resumed}
_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")


@dataclass(frozen=True)
class Row:
    """A check that was run."""

    group: str
    name: str
    outcome: Outcome
    seconds: float


class Report:
    """Prints rows as they come, and keeps all of them in a JSON file, also if the run is cut off."""

    def __init__(self, machine: Mapping[str, Any], file: Path | None = None) -> None:
        self.machine, self.file = machine, file
        self.rows: list[Row] = []
        self.messages: list[str] = []
        self.running: Task | None = None
        self.complete = False
        self._begun = time.monotonic()

    @property
    def holds(self) -> bool:
        """Whether the end was reached, and every check up to there holds."""
        return self.complete and bool(self.rows) and all(row.outcome.holds is not False for row in self.rows)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._begun

    def head(self) -> None:
        """Print what is tried."""
        for name, value in self.machine.items():
            print(textwrap.fill(f"{name:8}{value}", _WIDTH, subsequent_indent=" " * 8))
        sys.stdout.flush()

    def add(self, row: Row) -> None:
        """Print a row and write all of them."""
        if not self.rows or self.rows[-1].group != row.group:
            print(f"\n{row.group}")
        line = f"  {_MARKS[row.outcome.holds]:5}{row.name:24}{row.outcome.text}"
        first, *others = textwrap.wrap(line, _WIDTH - 8, subsequent_indent=" " * 31, drop_whitespace=False)
        print(f"{first:{_WIDTH - 8}}{row.seconds:6.1f} s")
        for other in others:
            print(other)
        for detail in row.outcome.details:
            print(textwrap.fill(detail, _WIDTH, initial_indent=" " * 7, subsequent_indent=" " * 9))
        sys.stdout.flush()
        if self.file is None and "traceback" in row.outcome.facts:
            print(row.outcome.facts["traceback"], file=sys.stderr, flush=True)
        self.rows.append(row)
        self.write()

    def write(self) -> None:
        """All of it as JSON, if a file was asked for."""
        if self.file is not None:
            rows = [asdict(row) for row in self.rows]
            found = {"machine": self.machine, "holds": self.holds, "seconds": self.seconds, "rows": rows}
            text = json.dumps({**found, "messages": self.messages}, default=str)
            plain = json.loads(text, parse_constant=lambda _: None)  # NaN is no JSON
            self.file.write_text(json.dumps(plain, indent=1))

    def end(self) -> None:
        """Print the sum."""
        self.complete = True
        marks = [row.outcome.holds for row in self.rows]
        failed = [f"{row.group}: {row.name}" for row in self.rows if row.outcome.holds is False]
        print(f"\n{marks.count(True)} hold, {marks.count(None)} to look at, {len(failed)} fail; {self.seconds:.0f} s")
        for name in failed:
            print(textwrap.fill(f"  FAIL {name}", _WIDTH, subsequent_indent=" " * 7))
        if self.messages:
            print(f"Libraries warned of {len(self.messages)} things{f', all in {self.file}' if self.file else ':'}")
            for message in () if self.file else self.messages:
                print(
                    textwrap.fill(textwrap.shorten(message, 300), _WIDTH, initial_indent="  ", subsequent_indent="  ")
                )
        sys.stdout.flush()


class _Listener(logging.Handler):
    """Keeps every warning once, so that none is lost and none breaks the table."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().strip()
        if text not in self.messages:
            self.messages.append(text)


def machine_of(device: str) -> dict[str, Any]:
    """What is tried, by what, on what."""
    kind = torch.device(device).type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else platform.processor() or platform.machine()
    if kind == "cuda":
        facts = torch.cuda.get_device_properties(device)
        name += f", {facts.total_memory / 2**30:.0f} GiB, compute capability {facts.major}.{facts.minor}"
    cuda = f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}" if torch.version.cuda else ""
    tf32 = "yes" if torch.backends.cudnn.allow_tf32 else "no"
    return {
        "device": f"{device} ({name})",
        "cpu": f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, {_cpu_flags()}",
        "torch": f"{torch.__version__}{cuda}" + (f"; TF32 in convolutions: {tf32}" if kind == "cuda" else ""),
        "MONAI": f"{_version('monai')}, medseg {_version('medseg')}, Python {platform.python_version()}",
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed" if package != "medseg" else "from the source tree"


def _cpu_flags() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    line = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return " ".join(flag for flag in _CPU_FLAGS if flag in line.split()) or "flags unknown"


def tasks_of(setting: Setting, parts: Sequence[str] = PARTS) -> list[Task]:
    """All checks in their order."""
    trainings = list(Trainings(setting).tasks())
    tasks = {name: [task for task in trainings if task.group == group] for name, group in _TRAINING.items()}
    tasks["labels"] = list(LabelMaps(setting).tasks())
    tasks["times"] = [*Windows(setting).tasks(), *Steps(setting).tasks()]
    doors = [Task("Imports", name, partial(_imported, name)) for name in DOORS]
    return [*doors, *(task for part in PARTS if part in parts for task in tasks[part])]


def _imported(name: str) -> Outcome:
    module = importlib.import_module(name)
    return Outcome(True, "", {"file": module.__file__})


def run_task(task: Task) -> Row:
    """Run one check; what it raises is its outcome. cuDNN's switches, which trainings set, are as before."""
    cudnn = torch.backends.cudnn
    before = (cudnn.benchmark, cudnn.deterministic)
    begun = time.perf_counter()
    try:
        outcome = task.run()
    except Exception as error:  # noqa: BLE001  it is told in its row, and the other checks go on
        message = f"{type(error).__name__}: {error}".strip()
        facts = {"traceback": traceback.format_exc()}
        outcome = Outcome(False, "raised", facts, (textwrap.shorten(message, 600),))
    cudnn.benchmark, cudnn.deterministic = before
    return Row(task.group, task.name, outcome, time.perf_counter() - begun)


def run_all(tasks: Iterable[Task], report: Report, seconds: float) -> None:
    """Run checks until the time is over; those that are left fail."""
    for task in tasks:
        report.running = task
        if report.seconds < seconds:
            report.add(run_task(task))
        else:
            report.add(Row(task.group, task.name, Outcome(False, "not reached in time"), 0.0))


@contextmanager
def listening(report: Report) -> Iterator[None]:
    """Collect warnings of all libraries instead of printing them between the rows."""
    if importlib.util.find_spec("monai") is not None:
        importlib.import_module("monai.bundle")  # its loggers print for themselves
    listener, root = _Listener(report.messages), logging.getLogger()
    names = [name for name in logging.root.manager.loggerDict if name.startswith("monai")]
    before = [(logger, logger.handlers[:], logger.propagate) for logger in map(logging.getLogger, names)]
    for logger, handlers, _ in before:
        logger.propagate = True
        for handler in handlers:
            logger.removeHandler(handler)
    root.addHandler(listener)
    logging.captureWarnings(capture=True)
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        root.removeHandler(listener)
        for logger, handlers, propagates in before:
            logger.handlers[:], logger.propagate = handlers, propagates


def _cut_off(report: Report, minutes: float) -> None:
    """End the process in the middle of a check that takes too long: the machine may be lent by the minute."""
    where = "" if report.running is None else f" in: {report.running.group}: {report.running.name}"
    message = f"cut off after {minutes:g} minutes{where}"
    print(textwrap.fill(f"FAIL {message}", _WIDTH, subsequent_indent=" " * 5), flush=True)
    report.messages.append(message)
    report.write()
    os._exit(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="the process ends then at the latest")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--size", choices=["auto", "small", "large"], default="auto", help="auto: small on a cpu")
    parser.add_argument("--out", type=Path, metavar="FILE", help="everything as JSON, written after each check")
    options = parser.parse_args(arguments)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    small = options.size == "small" or (options.size == "auto" and torch.device(device).type == "cpu")
    report = Report(machine_of(device), options.out)
    timer = threading.Timer(options.minutes * 60.0, _cut_off, (report, options.minutes))
    timer.daemon = True
    timer.start()
    report.head()
    with listening(report), tempfile.TemporaryDirectory() as folder:
        setting = Setting(device, SMALL if small else LARGE, Path(folder))
        run_all(tasks_of(setting, options.only), report, options.minutes * 60.0)
    timer.cancel()
    report.end()
    report.write()
    return 0 if report.holds else 1


if __name__ == "__main__":
    sys.exit(main())
