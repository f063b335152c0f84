"""Build a stranger's network without taking memory for more weights than the bundle's files hold.

A definition of a few lines can ask for any number of weights. So the network is built with weights that have a shape
and no memory (torch's meta device), the shapes are compared with those in the files, and only then is memory taken.
What a network computes while it is built, such as tables of positions, is really computed; each step is tried on the
meta device first and refused if its result is larger than the weights could be.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.errors import BundleError

if TYPE_CHECKING:
    import torch
    from torch.overrides import TorchFunctionMode

_MOST_LAYERS = 50_000
"""Layers and weights of one network: each takes some 20 microseconds. The deepest in use have a few thousand."""
_ALWAYS = 1 << 24
"""Elements that any network may take beside its weights, 64 MiB."""


class NetworkTooLarge(BundleError):
    """A network asks for more than its weights could fill."""


def elements_in(files: list[Path]) -> int:
    """How many elements files of weights can hold at most: one per byte."""
    return sum(file.stat().st_size for file in files)


@contextmanager
def frugal(elements: int, name: str, *, without_memory: bool) -> Iterator[None]:
    """Build networks in the body whose weights have no more than ``elements``.

    ``name``: Of the bundle, for messages. ``without_memory``: Whether weights stay on the meta device, until
    :func:`take_memory`. Raises ``NetworkTooLarge``.
    """
    from torch.nn.modules import module as hooks

    counter = _Counter(elements, name)
    handles = [
        hooks.register_module_parameter_registration_hook(counter.weight),
        hooks.register_module_module_registration_hook(counter.layer),
    ]
    try:
        with _building_mode(counter, without_memory=without_memory):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Counter:
    """Counts what a network registers; other threads build theirs unseen."""

    def __init__(self, elements: int, name: str) -> None:
        self._most, self._name, self._thread = elements, name, threading.get_ident()
        self._layers, self._elements = 0, 0

    def weight(self, _module: object, _name: str, weight: Any) -> None:
        if threading.get_ident() != self._thread or weight is None:
            return
        self._elements += weight.numel()
        if self._elements > self._most:
            self._refuse(f"{self._elements} weights and more")
        self.layer()

    def layer(self, *_: object) -> None:
        if threading.get_ident() == self._thread:
            self._layers += 1
        if self._layers > _MOST_LAYERS:
            raise NetworkTooLarge(
                f"the network_def of {self._name} has more than {_MOST_LAYERS} layers and weights; medseg builds no"
                " larger network"
            )

    def made(self, elements: int) -> None:
        """Refuse one array that is larger than all weights together."""
        if elements > self._most + _ALWAYS:
            self._refuse(f"an array of {elements} elements")

    def _refuse(self, found: str) -> None:
        raise NetworkTooLarge(
            f"the weights of {self._name} do not fit its network_def: it asks for {found}, its files of weights hold"
            f" {self._most} bytes; correct the network_def, or ship its weights"
        )


def _building_mode(counter: _Counter, *, without_memory: bool) -> TorchFunctionMode:
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils._device import _device_constructors
    from torch.utils._pytree import tree_iter, tree_map

    makers = _device_constructors()
    fillers = {torch.Tensor.normal_, torch.Tensor.uniform_}

    def on_meta(value: Any) -> Any:
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    def result_elements(function: Callable[..., Any], args: Any, options: dict[str, Any]) -> int:
        """Elements of what a call would give; 0 where only its values would tell."""
        try:
            found = function(*tree_map(on_meta, args), **tree_map(on_meta, options))
        except (RuntimeError, NotImplementedError, TypeError, ValueError):
            return 0
        return sum(part.numel() for part in tree_iter(found) if isinstance(part, torch.Tensor))

    class Building(TorchFunctionMode):
        """Weights (made by ``torch.empty``) on the meta device, everything else counted before it is made."""

        def __torch_function__(
            self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            weight = args[0] if args else (kwargs or {}).get("tensor")  # by name in torch.nn.init
            if isinstance(weight, torch.Tensor) and weight.is_meta:  # which stays without memory
                is_filled = getattr(func, "__module__", "") == "torch.nn.init" or func in fillers
                # for random numbers on that device torch imports its compiler, which takes seconds
                return weight if is_filled else func(*args, **(kwargs or {}))
            options = dict(kwargs or {})
            if func in makers and options.get("device") is None:
                if func is torch.empty and without_memory:
                    return func(*args, **{**options, "device": "meta"})
                counter.made(result_elements(func, args, {**options, "device": "meta"}))
            elif not any(isinstance(part, torch.Tensor) and part.is_meta for part in tree_iter((args, options))):
                counter.made(result_elements(func, args, options))
            return func(*args, **options)

    return Building()


def lacks_memory(network: torch.nn.Module) -> bool:
    """Whether weights of a network are still on the meta device."""
    return any(weight.is_meta for weight in [*network.parameters(), *network.buffers()])


def take_memory(network: torch.nn.Module, states: list[Mapping[str, torch.Tensor]]) -> bool:
    """Give a network memory for the weights that ``states`` are going to fill.

    False, and nothing is changed, if it has others, which only building it with memory could make; or if two of its
    layers share a weight.
    """
    import torch

    holders, names = defaultdict(set), defaultdict(set)
    for place, module in network.named_modules(remove_duplicate=False):
        for name, weight in [*module._parameters.items(), *module._buffers.items()]:
            if weight is not None and weight.is_meta:
                holders[id(weight)].add((id(module), name))
                names[id(weight)].add(f"{place}.{name}" if place else name)
    filled = {key for state in states for key in state}
    if any(len(known) > 1 for known in holders.values()) or any(known.isdisjoint(filled) for known in names.values()):
        return False
    network._apply(lambda weight: torch.empty_like(weight, device="cpu") if weight.is_meta else weight)  # type: ignore[no-untyped-call]
    return True
