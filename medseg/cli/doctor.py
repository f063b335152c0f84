"""``medseg doctor``: versions, devices, memory, DICOM decoders, extras, and what to install for what is missing."""

from __future__ import annotations

import math
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from medseg.cli._app import Outcome, app, command, terminal

_CORE = ("medseg", "monai", "torch", "pytorch-ignite", "numpy", "nibabel", "pydicom", "highdicom", "SimpleITK", "itk")
_EXTRAS_FOR = {
    "openvino": "a faster CPU engine",
    "pacs": "DICOM network and DICOMweb",
    "cluster": "batch inference on many processes or machines",
    "tracking": "MLflow beside TensorBoard in training",
    "pull": "bundles from the Hugging Face hub and OCI registries",
}
_CGROUP = Path("/sys/fs/cgroup")
_CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
_LOW_MEMORY_GB = 4.0
_LOW_DISK_GB = 2.0


@dataclass(frozen=True)
class Diagnosis:
    """What was found."""

    versions: Mapping[str, str | None]  # package → version; None where it is missing
    system: str
    python: str
    """``system``, ``python``: operating system and interpreter."""
    cores: int
    memory_gb: float
    free_disk_gb: float
    """``cores``, ``memory_gb``, ``free_disk_gb``: what this process may use (limits of a container included), and the
    free space for temporary files."""
    cpu: Mapping[str, Any]
    """The instruction set that torch uses, further features, and whether bf16 is computed in hardware."""
    devices: Mapping[str, str]  # what ``--device`` accepts here, with its name
    decoders: Mapping[str, bool]  # DICOM transfer syntax → whether its pixel data can be decoded
    landlock: int
    denies_sockets: bool
    """``landlock``, ``denies_sockets``: version of the wall around a bundle's process (0: none), and whether that
    denies it sockets."""
    extras: Mapping[str, bool]  # extra → whether it is installed completely
    policies: Mapping[str, str]
    """Each file that says which bundles may run here → its mode and the number of its bundles, or its damage."""
    problems: tuple[str, ...]
    advice: tuple[str, ...]
    """``problems``, ``advice``: what keeps medseg from working, and what would help."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def diagnose() -> Diagnosis:
    """Look at the machine; imports torch and pydicom, and changes nothing."""
    from medseg.bundle.policy import policies
    from medseg.confinement import can_filter_sockets, lacking, landlock_version

    found = policies()
    damaged = [
        f"no bundle runs here: {policy.path} is in force, and {policy.damage}" for policy in found if policy.damage
    ]
    versions = {name: _version(name) for name in _CORE}
    extras = {name: _extra_is_complete(name) for name in _EXTRAS_FOR}
    decoders = _decoders()
    memory_gb = _memory_bytes() / 2**30
    free_gb = shutil.disk_usage(tempfile.gettempdir()).free / 2**30
    return Diagnosis(
        versions=versions,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        cores=_cores(),
        memory_gb=round(memory_gb, 1),
        free_disk_gb=round(free_gb, 1),
        cpu=_cpu(),
        devices=_devices(),
        decoders=decoders,
        landlock=landlock_version(),
        denies_sockets=can_filter_sockets(),
        extras=extras,
        policies={str(policy.path): policy.describe() for policy in found},
        problems=(*(f"{name} is not installed" for name, found in versions.items() if found is None), *damaged),
        advice=(*_advice(extras, decoders, memory_gb, free_gb), *lacking()),
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _extra_is_complete(extra: str) -> bool:
    """Whether every requirement of an extra is installed in a version it accepts."""
    for line in requires("medseg") or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or not marker.evaluate({"extra": extra}) or marker.evaluate({"extra": ""}):
            continue
        found = _version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            return False
    return True


def _cores() -> int:
    """Cores this process may use: its affinity, or the container's quota (in whole cores) if that is lower."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = _CGROUP / "cpu.max"
    quota, _, period = limit.read_text().strip().partition(" ") if limit.is_file() else ("max", "", "")
    if quota.isdigit() and period.isdigit() and int(period):
        allowed = min(allowed, math.ceil(int(quota) / int(period)))
    return max(1, allowed)


def _memory_bytes() -> int:
    """Memory of the machine, or the container's limit if that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    for limit in (_CGROUP / "memory.max", _CGROUP / "memory" / "memory.limit_in_bytes"):
        if limit.is_file() and (text := limit.read_text().strip()).isdigit():
            total = min(total, int(text))
    return total


def _cpu() -> dict[str, Any]:
    import torch

    flags = _cpu_flags()
    return {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "features": [name for name in _CPU_FEATURES if name in flags],
        # torch calls bf16 supported wherever it can be emulated; only these instructions make it fast.
        "bf16_in_hardware": not flags.isdisjoint({"amx_bf16", "avx512_bf16"}),
        "threads": torch.get_num_threads(),
    }


def _cpu_flags() -> set[str]:
    """Instruction sets that Linux lists for this processor; empty on other systems."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return set(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))


def _devices() -> dict[str, str]:
    import torch

    found = {"cpu": platform.processor() or platform.machine()}
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU"
    return found


def _decoders() -> dict[str, bool]:
    from pydicom.pixels import get_decoder
    from pydicom.uid import AllTransferSyntaxes

    found: dict[str, bool] = {}
    for syntax in AllTransferSyntaxes:
        try:
            found[str(syntax.name)] = bool(get_decoder(syntax).is_available)
        except NotImplementedError:
            continue  # not a syntax of still images
    return found


def _advice(extras: Mapping[str, bool], decoders: Mapping[str, bool], memory_gb: float, free_gb: float) -> list[str]:
    advice = [
        f"pip install 'medseg[{name}]' for {_EXTRAS_FOR[name]}" for name, complete in extras.items() if not complete
    ]
    if missing := [name for name, available in decoders.items() if not available]:
        advice.append(f"images in {', '.join(missing)} are refused; pip install -c constraints.txt medseg has decoders")
    if memory_gb < _LOW_MEMORY_GB:
        advice.append(f"{memory_gb:.1f} GiB of memory: run one case at a time (--workers 1)")
    if free_gb < _LOW_DISK_GB:
        advice.append(f"{free_gb:.1f} GiB free for temporary files: set TMPDIR to a larger disk")
    return advice


@app.command()
@command
def doctor() -> Outcome:
    """Show versions, devices, CPU features, memory, DICOM decoders and extras, and what to install for what is missing.

    Example: medseg doctor --json
    """
    found = diagnose()
    _show("Versions", {name: version or "[red]missing[/red]" for name, version in found.versions.items()})
    bf16 = "bf16 in hardware" if found.cpu["bf16_in_hardware"] else "no bf16 in hardware, fp32 is used"
    wall = f"Landlock {found.landlock}" if found.landlock else "none"
    machine = {
        "system": f"{found.system}, Python {found.python}",
        "cores": f"{found.cores} ({found.cpu['capability']}, {bf16})",
        "CPU features": ", ".join(found.cpu["features"]) or "not known on this system",
        "memory": f"{found.memory_gb} GiB",
        "wall around bundles": f"{wall}, {'no sockets' if found.denies_sockets else 'sockets not denied'}",
        "free for temporary files": f"{found.free_disk_gb} GiB",
    }
    _show("Machine", machine)
    _show("Devices", found.devices)
    _show("DICOM pixel data", {name: _mark(available) for name, available in found.decoders.items()})
    _show("Extras", {name: _mark(complete) for name, complete in found.extras.items()})
    _show("Policies of allowed bundles", found.policies or {"none": "every bundle that passes the audit runs"})
    for problem in found.problems:
        terminal().print(f"Problem: {problem}", style="red")
    for advice in found.advice:
        terminal().print(f"Could help: {advice}", style="yellow")
    if not found.problems:
        terminal().print("medseg can work here.", style="green")
    return Outcome(found.as_dict(), complete=not found.problems)


def _mark(good: bool) -> str:
    return "[green]yes[/green]" if good else "[yellow]no[/yellow]"


def _show(title: str, rows: Mapping[str, str]) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    for name, value in rows.items():
        table.add_row(f"  {name}", value)
    terminal().print(table, markup=True)
    terminal().print()
