"""Audit a bundle without executing anything of it.

Every file is read as data and compared with allow-lists (:mod:`medseg.bundle.allowlist`): what is not known to be
harmless is refused. Neither torch nor MONAI is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg.bundle.audit_configs import DuplicateKey, judge_config, parse_json, read_imports
from medseg.bundle.audit_files import (
    AMBIGUOUS,
    judge_large_files,
    judge_logging_conf,
    judge_names,
    judge_safetensors,
    judge_torch_archive,
    list_files,
)
from medseg.bundle.checkpoints import weight_files
from medseg.bundle.config import ModulePlaces
from medseg.bundle.findings import COMMANDS, Command, Finding, blocks, read_by, seen_by, sort_findings
from medseg.bundle.privacy import privacy_findings
from medseg.errors import UntrustedBundle, UsageError

_SHOWN = 5


def audit(path: str | Path, command: Command | None = None) -> list[Finding]:
    """Findings on the bundle in the folder ``path``, most serious first; empty if there is nothing to say.

    Parameters
    ----------
    path
        The bundle's folder.
    command
        What is going to read it: only what that command reads can forbid its use, the rest warns. None judges for
        all of them; each finding says which it concerns.

    Raises
    ------
    UsageError
        If ``path`` is not a folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        remedy = f"medseg bundle unpack {folder} -o bundles" if folder.suffix == ".zip" else "see where it lies"
        raise UsageError(f"{folder} is not a folder; give the folder of an unpacked bundle ({remedy})")
    weights = weight_files(folder)
    names, found = list_files(folder)
    found.extend(judge_names(names))
    parsed, unreadable = _parsed(folder, names)
    found.extend(unreadable)
    found.extend(_configs(parsed))
    found.extend(privacy_findings(parsed))
    for name in names:
        found.extend(_file(folder / name, name))
    marked = [replace(finding, commands=_concerned(finding, weights)) for finding in found]
    if command is None:
        return sort_findings(marked)
    # imports of one config count in others only where both are read together
    own = {name: config for name, config in parsed.items() if command in read_by(name, weights)}
    others = [finding for finding in seen_by(marked, command) if finding.file not in own]
    return sort_findings([*_configs(own), *others])


def _concerned(finding: Finding, weights: Sequence[str]) -> tuple[Command, ...]:
    """Names that can pass for others concern all commands; what a file holds concerns those that read it."""
    return COMMANDS if finding.what.startswith(AMBIGUOUS) else read_by(finding.file, weights)


def require_trusted(path: str | Path, command: Command | None = None) -> None:
    """Pass if the audit of the bundle blocks nothing that ``command`` reads; None means every command.

    Raises
    ------
    UntrustedBundle
        Names what would run, and where.
    """
    blocking = blocks(audit(path, command))
    if not blocking:
        return
    listed = "\n".join(f"  {finding}" for finding in blocking[:_SHOWN])
    more = f"\n  and {len(blocking) - _SHOWN} more" if len(blocking) > _SHOWN else ""
    raise UntrustedBundle(
        f"bundle {Path(path).name} does not pass the audit ({len(blocking)} findings that block):\n{listed}{more}\n"
        "see all with: medseg bundle audit, and ask whoever made the bundle; --network-only uses the clean parts alone"
    )


def _parsed(folder: Path, names: Sequence[str]) -> tuple[dict[str, Any], list[Finding]]:
    """Every JSON config that can be read, and findings on the others."""
    parsed: dict[str, Any] = {}
    findings: list[Finding] = []
    for name in names:
        if not name.lower().endswith(".json"):
            continue
        try:
            parsed[name] = parse_json((folder / name).read_bytes())
        except DuplicateKey as error:
            why = "readers disagree on which of the two counts"
            findings.append(Finding("block", name, "", str(error), why))
        except (ValueError, OSError) as error:
            findings.append(Finding("block", name, "", f"not readable as JSON: {error}", "repair or remove it"))
    return parsed, findings


def _configs(parsed: Mapping[str, Any]) -> Iterator[Finding]:
    """Findings on configs that are laid over each other: their imports count together."""
    imports: dict[str, str] = {}
    for config in parsed.values():
        for bound, module in read_imports(config).items():
            if imports.setdefault(bound, module) != module:
                yield Finding(
                    "block", "configs", bound, f"imported as {imports[bound]} and as {module}", "use two names"
                )
    modules = ModulePlaces(parsed.values())
    for name, config in parsed.items():
        yield from judge_config(name, config, imports, modules)


def _file(path: Path, name: str) -> Iterator[Finding]:
    """Findings on one file that is not a config."""
    suffix = path.suffix.lower()
    if suffix == ".pt":
        yield from judge_torch_archive(path, name)
    elif suffix == ".safetensors":
        yield from judge_safetensors(path, name)
    elif suffix == ".conf":
        yield from judge_logging_conf(path.read_text(encoding="utf-8", errors="replace"), name)
    elif suffix in {".yml", ".yaml"}:
        if path.name != "large_files.yml":
            why = "medseg neither reads nor judges it; it reads JSON configs"
            yield Finding("block", name, "", "a YAML file", why)
        else:
            yield from judge_large_files(path.read_text(encoding="utf-8", errors="replace"), name)
