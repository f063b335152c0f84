"""Audit a bundle without executing anything of it.

Every file is read as data and compared with allow-lists (:mod:`medseg.bundle.allowlist`): what is not known to be
harmless is refused. Neither torch nor MONAI is imported.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from medseg.bundle.allowlist import SHIPPED
from medseg.bundle.audit_configs import METADATA, Together, judge_config, read_imports
from medseg.bundle.audit_costs import judge_costs
from medseg.bundle.audit_expressions import is_import, judge_import
from medseg.bundle.audit_files import (
    AMBIGUOUS,
    LARGE_FILES,
    judge_large_files,
    judge_logging_conf,
    judge_names,
    list_files,
)
from medseg.bundle.audit_weights import judge_safetensors, judge_torch_archive
from medseg.bundle.checkpoints import weight_files
from medseg.bundle.config import META_ID, SUFFIXES, DuplicateKey, laid_out, parse_config, parts_of, strings_in
from medseg.bundle.findings import COMMANDS, Finding, blocks, read_by, sort_findings
from medseg.bundle.packages import missing_packages
from medseg.bundle.pipeline import trains_by_medseg
from medseg.bundle.privacy import privacy_findings
from medseg.bundle.promptable import without_clicks
from medseg.bundle.resolve import without_needless_imports
from medseg.bundle.text_limits import read_config_bytes
from medseg.errors import BundleError, UntrustedBundle, UsageError

Role = Literal["infer", "train", "evaluate", "all"]
"""What a bundle is opened for: labelling (and all that runs its network), training, evaluating, or any run of MONAI."""

_SHOWN = 5
_SHIPPED_NAME = re.compile(r"scripts(\.\w+)*")
_TRAINS = re.compile(r"(multi_gpu_)?(train|evaluate)|.*_train")
_OVERLAYS = frozenset({"evaluate", "multi_gpu_train", "multi_gpu_evaluate"})
_INFERS = re.compile(r"inference")
"""Configs that are of a training and for inference: one is not laid over the other."""


def audit(
    path: str | Path, role: Role = "all", *, read: Mapping[str, Any] | None = None, given: Collection[str] = ()
) -> list[Finding]:
    """Findings on the bundle in the folder ``path``, most serious first; empty if there is nothing to say.

    Parameters
    ----------
    role
        Only what that role reads can forbid the use of the bundle, the rest warns. ``"all"`` judges for every command;
        each finding says which it concerns.
    read
        Configs by path inside the bundle, as they are going to be evaluated, overrides included: they are judged
        instead of what lies on disk by now.
    given
        Ids in them whose values the user gave: these are not judged.

    Raises
    ------
    UsageError
        If ``path`` is not a folder.
    """
    return _audit(Path(path), role, read or {}, given, whole=True)


def _audit(folder: Path, role: Role, read: Mapping[str, Any], given: Collection[str], *, whole: bool) -> list[Finding]:
    """The findings; those on configs that the role does not read, and which only warn, if ``whole``."""
    if not folder.is_dir():
        remedy = f"medseg bundle unpack {folder} -o bundles" if folder.suffix == ".zip" else "see where it lies"
        raise UsageError(f"{folder} is not a folder; give the folder of an unpacked bundle ({remedy})")
    weights = weight_files(folder)
    names, found = list_files(folder)
    found.extend(judge_names(names))
    configs, unreadable = _read(folder, names)
    configs.update(read)
    found += [*unreadable, *privacy_findings(configs)]
    for name in names:
        found.extend(_judge_file(folder / name, name, configs.get(name)))
    # imports of one config count in others only where both are read together
    together = configs if role == "all" else {n: c for n, c in configs.items() if role in read_by(n, weights, names)}
    strict = role == "train" and trains_by_medseg(configs)
    judged = list(_judge_together(together, given, strict=strict))
    found += _less_what_medseg_leaves_out(judged, together, given)
    found += _judge_packages(together)
    rest = configs.keys() - together.keys() if whole else set()
    if rest:
        others = _judge_together(configs, given, strict=strict, only=rest)
        found += [finding for finding in others if finding.file in rest]
    if role == "all":
        known = {(finding.place, finding.what) for finding in found}
        found += [finding for finding in _judge_overlays(configs) if (finding.place, finding.what) not in known]
    marked = []
    for finding in found:
        # names that can pass for others concern all commands; what a file holds concerns those that read it
        concerned = COMMANDS if finding.what.startswith(AMBIGUOUS) else read_by(finding.file, weights, names)
        concerned = tuple(command for command in concerned if command in finding.commands)
        forbids = (role in concerned or (role == "all" and concerned)) or finding.severity != "block"
        marked.append(replace(finding, commands=concerned, severity=finding.severity if forbids else "warn"))
    return sort_findings(dict.fromkeys(marked))


def require_trusted(
    path: str | Path, role: Role = "all", *, read: Mapping[str, Any] | None = None, given: Collection[str] = ()
) -> None:
    """Pass if the audit of the bundle blocks nothing that ``role`` reads; parameters as :func:`audit`.

    Raises an ``UntrustedBundle`` that names what would run, and where.
    """
    blocking = blocks(_audit(Path(path), role, read or {}, given, whole=False))
    if not blocking:
        return
    listed = "\n".join(f"  {finding}" for finding in blocking[:_SHOWN])
    more = f"\n  and {len(blocking) - _SHOWN} more" if len(blocking) > _SHOWN else ""
    raise UntrustedBundle(
        f"bundle {Path(path).name} does not pass the audit ({len(blocking)} findings that block):\n{listed}{more}\n"
        f"{_own_code(Path(path), blocking)}see all with: medseg bundle audit, and ask whoever made the bundle;"
        " --network-only uses the clean parts alone"
    )


def _own_code(folder: Path, blocking: Sequence[Finding]) -> str:
    """Where the bundle's own code is named and where it stands, and that it may be run once it has been read."""
    told = dict[str, None]()
    for finding in blocking:
        if SHIPPED not in finding.what or (found := _SHIPPED_NAME.search(finding.what)) is None:
            continue
        name, text = found[0], read_config_bytes(folder / finding.file).decode(errors="replace")
        line = next((number for number, line in enumerate(text.splitlines(), 1) if name in line), 0)
        parts = name.split(".")
        modules = (folder.joinpath(*parts[:end]) for end in range(len(parts), 0, -1))
        sources = (file for module in modules for file in (module.with_suffix(".py"), module / "__init__.py"))
        source = next((file.relative_to(folder).as_posix() for file in sources if file.is_file()), "no file")
        told[f"  {finding.file}, line {line}, names {name}: {source} of the bundle"] = None
    if not told:
        return ""
    lines = "\n".join(list(told)[:_SHOWN])
    return (
        f"the bundle brings code of its own:\n{lines}\nread it; if you trust it, medseg infer --trust-bundle runs it,"
        " without network and writing below the output folder only; "
    )


def trusted_parts(folder: Path, file: str, config: Mapping[str, Any], places: Sequence[str]) -> dict[str, Any]:
    """Named parts of a stranger's config and what they refer to, once the audit of these alone is clean.

    Many bundles ship Python code, yet their network is a class of MONAI. Scripts, other imports and other configs are
    neither judged nor evaluated. ``folder``: The bundle's folder, whose weights are judged, too. ``file`` and
    ``config``: Name and content of its config for inference, laid out. ``places``: Ids of the parts; those that the
    config lacks are left out. Raises ``UntrustedBundle`` if one of the parts needs an import, a class or an expression
    that is not allowed; ``BundleError`` if none of them is there.
    """
    reduced = parts_of(config, places)
    if not reduced:
        raise BundleError(f"{file} of {folder.name} states no {' and '.join(places)}; it cannot be used for this")
    texts = [text for _, text in strings_in(config.get("imports", [])) if text.startswith("$")]
    reduced["imports"] = [text for text in texts if is_import(text[1:]) and not judge_import(text[1:])]
    found = [*_judge_together({f"configs/{file}": reduced})]
    for name in weight_files(folder):
        found += _judge_file(folder / name, name, None)
    if blocking := [finding for finding in blocks(found) if "infer" in finding.commands]:
        raise UntrustedBundle(f"this part of {folder.resolve().name} cannot be taken over alone: {blocking[0]}")
    return reduced


def _read(folder: Path, names: Sequence[str]) -> tuple[dict[str, Any], list[Finding]]:
    """Every JSON and YAML file that can be read, and findings on the others."""
    configs: dict[str, Any] = {}
    findings: list[Finding] = []
    for name in names:
        if not name.lower().endswith(SUFFIXES):
            continue
        try:
            configs[name] = parse_config(read_config_bytes(folder / name), name)
        except DuplicateKey as error:
            findings.append(Finding("block", name, "", str(error), "readers disagree on which of the two counts"))
        except (ValueError, OSError) as error:
            kind = "JSON" if name.lower().endswith(".json") else "YAML"
            findings.append(Finding("block", name, "", f"not readable as {kind}: {error}", "repair or remove it"))
    return configs, findings


def _judge_together(
    configs: Mapping[str, Any],
    given: Collection[str] = (),
    *,
    strict: bool = False,
    only: Set[str] | None = None,
) -> Iterator[Finding]:
    """Findings on configs that are laid over each other, or on some of them: their imports count together."""
    configs = {name: _as_evaluated(name, config) for name, config in configs.items()}
    imports: dict[str, str] = {}
    for config in configs.values():
        for bound, module in read_imports(config).items():
            if imports.setdefault(bound, module) != module:
                what = f"imported as {imports[bound]} and as {module}"
                yield Finding("block", "configs", bound, what, "use two names")
    for other in (_TRAINS, _INFERS):  # configs for inference are not laid over those of a training
        laid = {name: config for name, config in configs.items() if not other.match(Path(name).stem)}
        together = Together.of(list(laid.values()), imports, given, strict)
        for name in laid if only is None else only & laid.keys():
            if other is _TRAINS or _TRAINS.match(Path(name).stem):
                yield from judge_config(name, laid[name], together)
                yield from judge_costs(name, laid, imports)


def _judge_packages(configs: Mapping[str, Any]) -> Iterator[Finding]:
    for file, config in configs.items():
        if Path(file).stem == "inference" and isinstance(config, Mapping):
            for package, place, name in missing_packages(config):
                what = f"{name} needs {package}, which is not installed"
                yield Finding("warn", file, place, what, f"install it with: pip install {package}")


def _less_what_medseg_leaves_out(
    found: list[Finding], configs: Mapping[str, Any], given: Collection[str]
) -> list[Finding]:
    """The same, where what only MONAI would run of a config for inference concerns medseg no more."""
    read = {
        name: without_needless_imports(without_clicks(config))
        for name, config in configs.items()
        if _INFERS.match(Path(name).stem) and isinstance(config, Mapping)
    }
    read = {name: config for name, config in read.items() if config != configs[name]}
    if not read:
        return found
    left = {(finding.file, finding.what) for finding in _judge_together({**configs, **read}, given)}
    why = "medseg leaves it out: it labels without it"
    return [
        replace(finding, commands=("monai",), why=f"{finding.why}; {why}")
        if finding.file in read and (finding.file, finding.what) not in left
        else finding
        for finding in found
    ]


def _judge_overlays(configs: Mapping[str, Any]) -> list[Finding]:
    """What configs hold only once they are laid over those that they change."""
    found: list[Finding] = []
    names = {name: Path(name).stem for name in configs if name.startswith("configs/") and name != METADATA}
    middle = [name for name, stem in names.items() if stem == "evaluate"]
    for base, stem in ((base, stem) for base, stem in names.items() if stem in ("inference", "train")):
        for over in names.keys() - {base}:
            if (_INFERS if stem == "train" else _TRAINS).match(names[over]):
                continue
            laid = [base, *(middle if stem == "train" and names[over].startswith("multi_gpu") else ()), over]
            if not all(isinstance(configs[name], Mapping) for name in laid):
                continue
            if names[over] not in _OVERLAYS and {"network_def", "run"} <= configs[over].keys():
                continue  # it stands alone
            if _is_plain_data(configs[over]):
                continue  # such as a datalist: what it covers is judged without it
            try:
                whole = laid_out(*(configs[name] for name in laid))
            except BundleError:
                continue  # nor does MONAI lay it over this one
            # a config of its own brings its imports, and would leave those of the other without theirs
            lists = [configs[name].get("imports", []) for name in laid]
            whole["imports"] = [text for texts in lists if isinstance(texts, list) for text in texts]
            metadata = {METADATA: configs[METADATA]} if METADATA in configs else {}
            found += [f for f in _judge_together({**metadata, over: whole}) if f.file == over]
    return found


def _is_plain_data(config: Mapping[str, Any]) -> bool:
    """Whether a config changes no part of another one, and holds neither components nor expressions."""
    plain = all(key.isidentifier() for key in config) and not any(
        text[:1] in "$@%" for _, text in strings_in(config) if text
    )
    return plain and not any("_target_" in path for path, _ in strings_in(config))


def _as_evaluated(name: str, config: Any) -> Any:
    """A config with its overlaying keys in their places, and metadata where MONAI mounts them.

    What lies over another config stays as it is: its keys are judged as the ids that they name.
    """
    if name == METADATA:
        return {META_ID: config}
    try:
        return laid_out(config) if isinstance(config, Mapping) else config
    except BundleError:
        return config


def _judge_file(path: Path, name: str, content: Any) -> Iterator[Finding]:
    """Findings on one file that is not a config."""
    suffix = path.suffix.lower()
    if suffix == ".pt":
        yield from judge_torch_archive(path, name)
    elif suffix == ".safetensors":
        yield from judge_safetensors(path, name)
    elif suffix == ".conf":
        yield from judge_logging_conf(path, name)
    elif name in LARGE_FILES and content is not None:
        yield from judge_large_files(content, name)
