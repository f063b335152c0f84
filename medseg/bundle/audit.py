"""Audit a bundle without executing anything of it.

Every file is read as data and compared with allow-lists (:mod:`medseg.bundle.allowlist`): what is not known to be
harmless is refused. Neither torch nor MONAI is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medseg.bundle.configs import DuplicateKey, judge_config, parse_json, read_imports
from medseg.bundle.contents import judge_large_files, judge_names, list_files
from medseg.bundle.findings import Finding, blocks, sort_findings
from medseg.bundle.logging_conf import judge_logging_conf
from medseg.bundle.privacy import privacy_findings
from medseg.bundle.references import ModulePlaces
from medseg.bundle.weights import judge_safetensors, judge_torch_archive
from medseg.errors import UntrustedBundle, UsageError

__all__ = ["audit", "require_trusted"]

_SHOWN = 5


def audit(path: str | Path) -> list[Finding]:
    """Findings on the bundle in the folder ``path``, most serious first; empty if there is nothing to say.

    Raises
    ------
    UsageError
        If ``path`` is not a folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; give the folder of an unpacked bundle")
    names, findings = list_files(folder)
    findings.extend(judge_names(names))
    findings.extend(_configs(folder, names))
    for name in names:
        findings.extend(_file(folder / name, name))
    return sort_findings(findings)


def require_trusted(path: str | Path) -> None:
    """Pass if the audit of the bundle blocks nothing.

    Raises
    ------
    UntrustedBundle
        Names what would run, and where.
    """
    blocking = blocks(audit(path))
    if not blocking:
        return
    listed = "\n".join(f"  {finding}" for finding in blocking[:_SHOWN])
    more = f"\n  and {len(blocking) - _SHOWN} more" if len(blocking) > _SHOWN else ""
    raise UntrustedBundle(
        f"bundle {Path(path).name} does not pass the audit ({len(blocking)} findings that block):\n{listed}{more}\n"
        "see all with: medseg bundle audit, and ask whoever made the bundle; --network-only uses the clean parts alone"
    )


def _configs(folder: Path, names: list[str]) -> Iterator[Finding]:
    """Findings on every JSON config; imports are pooled, since configs are laid over each other."""
    parsed: dict[str, Any] = {}
    for name in names:
        if not name.lower().endswith(".json"):
            continue
        try:
            parsed[name] = parse_json((folder / name).read_bytes())
        except DuplicateKey as error:
            yield Finding("block", name, "", str(error), "readers disagree on which of the two counts")
        except (ValueError, OSError) as error:
            yield Finding("block", name, "", f"not readable as JSON: {error}", "repair or remove it")
    yield from privacy_findings(parsed)
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
    elif suffix == ".yml":
        if path.name != "large_files.yml":
            why = "medseg reads JSON configs; convert it to JSON"
            yield Finding("block", name, "", "a YAML file", why)
        else:
            yield from judge_large_files(path.read_text(encoding="utf-8", errors="replace"), name)
