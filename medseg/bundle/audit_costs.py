"""Judge what evaluating a bundle's configs would cost, without evaluating anything.

A config of a few lines can ask for more than any machine has: by an expression, by references and macros that name
each other, by the size of an array, a window or a network. Everything is counted from the text with upper bounds, and
refused where they lie far beyond what any bundle needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from medseg.bundle.allowlist import is_function
from medseg.bundle.audit_expressions import is_import
from medseg.bundle.config import ABSENT, SEPARATOR, absolute_text, item_at, referred
from medseg.bundle.cost_bounds import FLAG, UNKNOWN, Bound, TooCostlyError, items, join, number, text
from medseg.bundle.expression_costs import MOST_OPERATIONS, ExpressionMeter, Function
from medseg.bundle.findings import Finding
from medseg.errors import BundleError

_EVALUATED = "configs/"
"""Where what MONAI's parser reads lies in a bundle."""
_MOST_PARTS = 10_000
"""Parts of a config with its macros written out: MONAI looks at all of them for each. The model zoo's largest has some
hundreds."""
_MOST_SHARED = 1e6
"""Parts that a part names, its references followed: whoever goes through it sees one that is named twice twice."""
_DEEPEST = 64
"""Levels of lists and objects in each other."""
_LONGEST_CHAIN = 40
"""Parts that name each other, one after the other."""
_WHY = "evaluating it could take all time or memory there is; write less, or smaller, values"

_SIZE = re.compile(r"(\w+_)?(size|shape)")
_LARGEST_ARRAY = 2.0**29
"""Voxels of a window, a patch or a volume that a transform makes: 800 in each direction, 2 GiB."""
_CAPS: dict[str, float] = {
    **dict.fromkeys(("num_workers", "num_init_workers", "num_threads", "prefetch_factor", "num_cpus"), 256.0),
    **dict.fromkeys(("sw_batch_size", "batch_size", "samples_per_image", "num_patches"), 4096.0),
    **dict.fromkeys(("zoom", "min_zoom", "max_zoom"), 16.0),
    **dict.fromkeys(("spatial_border", "k", "divisible"), 4096.0),
    **dict.fromkeys(("holes", "max_holes", "num_repeats", "repeats", "num_control_points"), 4096.0),
}
"""What an argument may be at most, by its name, whichever class has it."""
_RANDOM, _MOST_SAMPLES = re.compile(r"(^|\.)Rand[A-Z]"), 4096.0
"""Patches of one image; a sampler's ``num_samples`` is a length of an epoch."""
_LARGEST_LAYER = 1e8
"""Of two numbers in a network's definition, multiplied: channels in and out of one layer, 10,000 each."""
_MOST_LAYERS = 512
_NETWORKS = ("monai.networks.", "torch.nn.", "medseg.networks.")


def judge_costs(file: str, configs: Mapping[str, Any], imports: Mapping[str, str]) -> Iterator[Finding]:
    """Findings on what it would cost to evaluate a config.

    ``file``: Name of the config inside the bundle. ``configs``: The trees of all configs that are laid over each other,
    by name: what it refers to may stand in another. ``imports``: Names that imports bind, to dotted modules.
    """
    if not file.startswith(_EVALUATED) or _is_plain(configs[file]):
        return
    others = [config for name, config in configs.items() if name != file and name.startswith(_EVALUATED)]
    judge = _CostJudge([configs[file], *others], imports)
    for place, problem in judge.problems():
        yield Finding("block", file, place, problem, _WHY)


def check_parts(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The config, unless its references and macros name more parts than anybody can go through.

    ``where``: Which file of which bundle, for the message. Raises ``BundleError``.
    """
    try:
        _Parts(config).check()
    except TooCostlyError as error:
        raise BundleError(f"{where}: {error}; write it out, or shorten it") from error
    return config


def _is_plain(config: Any) -> bool:
    """Whether a file holds nothing to evaluate, such as a datalist, which may be as long as a study is large."""
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            if "_target_" in value:
                return False
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, str) and value[:1] in {"$", "@", "%"}:
            return False
    return True


class _Parts:
    """How many parts the parts of a config come to, macros written out and references followed."""

    def __init__(self, config: Any) -> None:
        self._config = config
        self._known: dict[tuple[bool, str], float] = {}

    def check(self) -> None:
        """Raise ``TooCostlyError`` if the config comes to more parts than the limits allow."""
        try:
            written = self._count("", macros_only=True)
            if not written <= _MOST_PARTS:
                raise TooCostlyError(
                    f"it has {_figure(written)} parts with its macros written out, expected at most {_MOST_PARTS}"
                )
            shared = self._count("", macros_only=False)
        except RecursionError as error:
            raise TooCostlyError("it is nested too deeply") from error
        if not shared <= _MOST_SHARED:
            raise TooCostlyError(
                f"it has {_figure(shared)} parts with its references followed, expected at most {_MOST_SHARED:.0f}"
            )

    def _count(self, place: str, *, macros_only: bool, depth: int = 0) -> float:
        """Parts at and below an id."""
        key = (macros_only, place)
        if key in self._known:
            return self._known[key]
        if depth > _LONGEST_CHAIN:
            raise TooCostlyError(f"more than {_LONGEST_CHAIN} parts name each other in a chain, the last {place!r}")
        self._known[key] = 0.0  # one that names itself is refused by whoever evaluates it
        value = item_at(self._config, place)
        found = self._below(place, value, macros_only=macros_only, depth=depth)
        self._known[key] = found
        return found

    def _below(self, place: str, value: Any, *, macros_only: bool, depth: int) -> float:
        if isinstance(value, Mapping | list):
            if place.count(SEPARATOR) >= _DEEPEST:
                raise TooCostlyError(f"it is nested more than {_DEEPEST} levels deep")
            parts = value.items() if isinstance(value, Mapping) else enumerate(value)
            return 1.0 + sum(
                self._below(_below(place, str(key)), part, macros_only=macros_only, depth=depth) for key, part in parts
            )
        if not isinstance(value, str):
            return 1.0
        plain = absolute_text(value, place.split(SEPARATOR))
        if not plain.startswith("%" if macros_only else ("%", "@")):
            return 1.0
        return 1.0 + sum(self._count(name, macros_only=macros_only, depth=depth + 1) for name in referred(plain))


class _CostJudge:
    """Goes through one config, part by part."""

    def __init__(self, configs: Sequence[Any], imports: Mapping[str, str]) -> None:
        self._configs = configs
        self._known: dict[tuple[str, int], Bound] = {}
        self._chain: list[str] = []
        self._meter = ExpressionMeter(self._look_up, imports, _check_call)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Ids, and what is wrong with what stands there; no more than the first part that breaks the whole budget."""
        try:
            _Parts(self._configs[0]).check()
        except TooCostlyError as error:
            yield "", str(error)
            return
        try:
            self._at("", self._configs[0])
        except TooCostlyError as error:
            yield self._chain[-1], str(error)
        except RecursionError:
            yield (
                SEPARATOR.join(self._chain[:1]),
                "it is nested too deeply, or its parts name each other in a long chain",
            )

    def _look_up(self, place: str) -> Bound:
        """What stands at an id, in whichever config counts in the end."""
        found = [(item_at(config, place), number) for number, config in enumerate(self._configs)]
        return join([self._at(place, value, number) for value, number in found if value is not ABSENT] or [UNKNOWN])

    def _at(self, place: str, value: Any, config: int = 0) -> Bound:
        """What a value comes to, judged once."""
        key = (place, config)
        if key in self._known:
            return self._known[key]
        self._known[key] = UNKNOWN  # for one that names itself, which MONAI refuses
        self._chain.append(place)
        if isinstance(value, str):
            found = self._of_text(place, value)
        elif isinstance(value, Mapping):
            found = self._of_mapping(place, value, config)
        elif isinstance(value, list):
            parts = [self._at(_below(place, str(index)), part, config) for index, part in enumerate(value)]
            found = items(float(len(parts)), join(parts), _product([part.number for part in parts]))
        else:
            found = _of_number(value)
        self._chain.pop()
        self._known[key] = found
        return found

    def _of_text(self, place: str, value: str) -> Bound:
        plain = absolute_text(value, place.split(SEPARATOR))
        if plain.startswith("$"):
            if is_import(value[1:]):
                return UNKNOWN
            found = self._meter.measure(plain[1:])
            if not found.weight <= MOST_OPERATIONS:
                what = f"{value[:80]!r} comes to {_figure(found.weight)} elements"
                raise TooCostlyError(f"{what}, expected at most {MOST_OPERATIONS:.0f}")
            return found
        names = referred(plain)
        return self._look_up(names[0]) if names else text(float(len(value)))

    def _of_mapping(self, place: str, value: Mapping[str, Any], config: int) -> Bound:
        parts = {str(key): self._at(_below(place, str(key)), part, config) for key, part in value.items()}
        target = value.get("_target_")
        if not isinstance(target, str):
            return items(float(len(parts)), join([*parts.values(), *(text(len(key)) for key in parts)]))
        given = {key: part for key, part in parts.items() if not key.startswith("_")}
        if value.get("_mode_", "default") != "default":
            _check_call(target, given)
            return replace(UNKNOWN, functions=(Function(target, names=given),))
        found = self._meter.call(target, [], given)
        return found if is_function(target) and "." in target else join([UNKNOWN, found])


def _below(place: str, key: str) -> str:
    return f"{place}{SEPARATOR}{key}" if place else key


def _of_number(value: Any) -> Bound:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return FLAG
    try:
        size = abs(float(value))
    except OverflowError:
        raise TooCostlyError("a number of more than 300 digits") from None
    kind = "number" if isinstance(value, int) else "real"
    return number(min(size, 1e300), kind, size)


def _product(sizes: Sequence[float]) -> float:
    product = 1.0
    for size in sizes:
        product *= max(1.0, size)
    return product


def _check_call(name: str, named: Mapping[str, Bound]) -> None:
    """Refuse a component, or a call, by what its arguments ask for."""
    for argument, bound in named.items():
        if bound.kind not in {"number", "real", "items"}:
            continue
        most = _CAPS.get(argument) if argument != "num_samples" else _MOST_SAMPLES if _RANDOM.search(name) else None
        if most is not None and bound.number > most:
            raise TooCostlyError(f"{argument} of {name} is {_figure(bound.number)}, expected at most {most:.0f}")
        if most is None and _SIZE.fullmatch(argument) and bound.extent > _LARGEST_ARRAY:
            found = f"{argument} of {name} comes to {_figure(bound.extent)} voxels"
            raise TooCostlyError(f"{found}, expected at most {_LARGEST_ARRAY:.0f}")
    if name.startswith(_NETWORKS) or _is_network(name):
        _check_network(name, named)


def _is_network(name: str) -> bool:
    return "." not in name and is_function(f"monai.networks.nets.{name}")


def _check_network(name: str, named: Mapping[str, Bound]) -> None:
    largest: list[float] = []
    for argument, bound in named.items():
        if bound.kind == "items" and bound.count > _MOST_LAYERS:
            found = f"{argument} of {name} has {_figure(bound.count)} entries"
            raise TooCostlyError(f"{found}, expected at most {_MOST_LAYERS}")
        if bound.kind in {"number", "items"}:
            largest += [bound.number] * (2 if bound.kind == "items" and bound.count > 1 else 1)
    layer = _product(sorted(largest)[-2:])
    if layer > _LARGEST_LAYER:
        found = f"{name} is given sizes of up to {_figure(max(largest))}, {_figure(layer)} weights in one layer"
        raise TooCostlyError(f"{found}, expected at most {_LARGEST_LAYER:.0f}")


def _figure(value: float) -> str:
    return f"{value:.0f}" if value < 1e12 else f"{value:.1e}" if value < float("inf") else "endlessly many"
