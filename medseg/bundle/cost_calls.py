"""What a bundle's expressions may call: for every function a bound of its result, and what the call takes.

A function that is not listed is given the largest of its arguments, and at least the modest size of
:data:`~medseg.bundle.cost_bounds.UNKNOWN`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from medseg.bundle.cost_bounds import (
    FLAG,
    UNKNOWN,
    Bound,
    Call,
    TooCostlyError,
    array,
    items,
    join,
    number,
    power,
    text,
)

_FROM_FILES = 2000.0
"""Items of a list that is read from a datalist or a folder: one loop over it is fine, one within another is not."""
_LARGEST_AXIS_BITS = 26
_MOST_THREADS = 1024


def other(call: Call) -> Bound:
    """What is assumed of a call that no rule knows."""
    call.read()
    if not call.given:
        return UNKNOWN
    known = join([UNKNOWN, *call.given])
    return Bound("unknown", known.number, known.count)


def _range(call: Call) -> Bound:
    length = sum(bound.number for bound in call.args)
    return items(length, number(length))


def _sum(call: Call) -> Bound:
    given = call.get(0)
    call.read()
    if len(call.given) > 1 and call.get(1, "start").kind != "number":  # lists laid end to end, one after the other
        call.meter.spend(given.count * given.weight, call.what)
        return items(given.weight, given.each.each)
    return number(given.each.number * given.count + call.get(1, "start").number, "real", 0.0)


def _same(call: Call) -> Bound:
    """As many elements as the argument has, charged."""
    return call.made(replace(call.given[0], product=None, kind="items")) if call.given else items(0.0)


def _lazy(call: Call) -> Bound:
    if len(call.args) > 1:  # iter(function, value) calls it until it gives that value
        return items(math.inf)
    return _same(call)


def _longest(call: Call) -> Bound:
    counts = [bound.count for bound in call.args]
    return call.made(items(max(counts, default=0.0), items(len(counts), join([bound.each for bound in call.args]))))


def _shortest(call: Call) -> Bound:
    counts = [bound.count for bound in call.args]
    return call.made(items(min(counts, default=0.0), items(len(counts), join([bound.each for bound in call.args]))))


def _enumerate(call: Call) -> Bound:
    given = call.get(0)
    start = call.get(1, "start").number
    return call.made(items(given.count, items(2.0, join([number(given.count + start), given.each]))))


def _map(call: Call) -> Bound:
    count = min((bound.count for bound in call.args[1:]), default=0.0)
    return items(count, call.meter.apply(call.get(0), [bound.each for bound in call.args[1:]], count))


def _filter(call: Call) -> Bound:
    given = call.get(1)
    call.meter.apply(call.get(0), [given.each], given.count)
    return call.made(replace(given, product=None, kind="items"))


def _ordered(call: Call) -> Bound:
    given = call.get(0)
    call.meter.spend(given.count * 4, call.what)
    if "key" in call.named:
        call.meter.apply(call.named["key"], [given.each], given.count)
    return replace(given, kind="items", product=None)


def _extreme(call: Call) -> Bound:
    held = call.args if len(call.args) > 1 else [bound.each for bound in call.args]
    count = call.read()
    if "key" in call.named:
        call.meter.apply(call.named["key"], [join(held)], count)
    return join([*held, *(bound for name, bound in call.named.items() if name == "default")])


def _length(call: Call) -> Bound:
    return number(max((bound.count for bound in call.given), default=1.0))


def _flag(call: Call) -> Bound:
    call.read()
    return FLAG


def _whole(call: Call) -> Bound:
    given = call.get(0)
    digits = power(10.0, min(given.count, 300.0)) if given.kind in {"text", "unknown"} else 1.0
    return Bound("number", max(given.number, digits), 1.0)


def _real(call: Call) -> Bound:
    return number(call.get(0).number, "real")


def _written(call: Call) -> Bound:
    return call.made(text(sum(32.0 + 32.0 * bound.weight for bound in call.given)))


def _mapping(call: Call) -> Bound:
    held = [bound.each.each for bound in call.args] + list(call.named.values())
    return call.made(items(sum(bound.count for bound in call.args) + len(call.named), join(held)))


def _chain(call: Call) -> Bound:
    return call.made(items(sum(bound.count for bound in call.args), join([bound.each for bound in call.args])))


def _product(call: Call) -> Bound:
    repeat = call.get(99, "repeat").number
    count = power(math.prod(bound.count for bound in call.args), repeat)
    return call.made(items(count, items(len(call.args) * repeat, join([bound.each for bound in call.args]))))


def _accumulate(call: Call) -> Bound:
    given = call.get(0)
    call.read()
    function = call.get(1, "func", UNKNOWN)
    if len(call.given) < 2:
        return items(given.count, number(given.each.number * given.count, "real"))
    held = given.each
    for _ in range(int(min(given.count, 1000.0))):
        held = join([held, call.meter.apply(function, [held, given.each], 1.0)])
    return call.made(items(given.count if given.count <= 1000.0 else math.inf, held))


def _islice(call: Call) -> Bound:
    stop = max((bound.number for bound in call.args[1:]), default=math.inf)
    return call.made(replace(call.get(0), count=min(call.get(0).count, stop), product=None))


def _files(call: Call) -> Bound:
    call.read()
    return items(_FROM_FILES, UNKNOWN)


def _shaped(call: Call) -> Bound:
    """An array of a shape that stands in all arguments: ``torch.zeros(2, 3)``, ``torch.zeros((2, 3))``."""
    shape = [*call.args, *(bound for name, bound in call.named.items() if name in {"size", "shape"})]
    return call.made(array(math.prod(bound.extent for bound in shape), 1.0))


def _filled(call: Call) -> Bound:
    return call.made(array(call.get(0, "size", call.get(0, "shape")).extent, call.get(1, "fill_value").number))


def _drawn(call: Call) -> Bound:
    size = call.named.get("size") or (call.args[-1] if call.args else FLAG)
    return call.made(array(size.extent, max((bound.number for bound in call.args[:2]), default=1.0)))


def _spaced(call: Call) -> Bound:
    largest = max((bound.number for bound in call.args[:2]), default=1.0)
    return call.made(array(call.get(2, "steps", call.get(2, "num", number(100.0))).number, largest))


def _stepped(call: Call) -> Bound:
    ends = [*call.args[:2], *(bound for name, bound in call.named.items() if name in {"start", "end", "stop"})]
    step = call.get(2, "step", number(1.0, least=1.0))
    least = step.least if step.least > 0 else 1.0 if step.kind == "number" else 0.0
    length = sum(bound.number for bound in ends)
    return call.made(array(length / least if least else math.inf, length))


def _gathered(call: Call) -> Bound:
    """An array of what is given, at all depths."""
    entries = sum(max(bound.weight, bound.count) for bound in call.args[:1])
    return call.made(array(entries, max((bound.number for bound in call.args[:1]), default=1.0)))


def _coded(call: Call) -> Bound:
    classes = call.get(1, "num_classes", number(call.get(0).number + 1.0)).number
    return call.made(array(call.get(0).count * max(1.0, classes), 1.0))


def _resized(call: Call) -> Bound:
    sizes = [*call.args[1:3], *(bound for name, bound in call.named.items() if name in {"size", "scale_factor", "pad"})]
    factor = math.prod(1.0 + bound.extent for bound in sizes)
    call.meter.grow(max(1.0, factor / 2**_LARGEST_AXIS_BITS), call.what)  # as large as an image may become
    return array(call.get(0).count * factor, call.get(0).number)


def _repeated(call: Call) -> Bound:
    factor = math.prod(bound.extent for bound in [*call.args, *call.named.values()])
    held = call.receiver or UNKNOWN
    if held.kind == "unknown":
        call.meter.grow(factor, call.what)
    return call.made(array(held.count * factor, held.number))


def _tuples(call: Call) -> Bound:
    given, times = call.get(0), call.get(1, "dim").number
    return call.made(items(max(1.0, given.count) * times, given.each if given.kind == "items" else given))


def _zero_filled(call: Call) -> Bound:
    return call.made(text(max(bound.number if bound.kind == "number" else bound.count for bound in call.given)))


def _joined(call: Call) -> Bound:
    glue, parts = call.receiver or FLAG, call.get(0)
    return call.made(text(parts.count * (glue.count + max(1.0, parts.each.count))))


def _replaced(call: Call) -> Bound:
    return call.made(text((call.receiver or FLAG).count * (1.0 + call.get(1).count)))


def _parts(call: Call) -> Bound:
    held = call.receiver or UNKNOWN
    call.meter.spend(held.weight, call.what)
    return items(held.count, text(held.count) if held.kind == "text" else UNKNOWN)


def _extended(call: Call) -> Bound:
    """A list that grows where it is, each time that this is run."""
    call.meter.grow(2.0, call.what)
    return call.made(FLAG)


def _total(call: Call) -> Bound:
    held = call.given[0] if call.given else FLAG
    call.meter.spend(held.weight, call.what)
    return replace(array(held.count, held.number * held.count), item=None)


def _multiplied(call: Call) -> Bound:
    held = call.given[0] if call.given else FLAG
    call.meter.spend(held.weight, call.what)
    return array(held.count, held.product or power(max(1.0, held.number), held.count))


def _alike(call: Call) -> Bound:
    """A value like the receiver, or like the first argument."""
    held = call.given[0] if call.given else UNKNOWN
    call.meter.spend(held.weight, call.what)
    return held


def _single(call: Call) -> Bound:
    held = call.given[0] if call.given else UNKNOWN
    return Bound("number", held.number, 1.0)


def _multiplied_whole(call: Call) -> Bound:
    return Bound("number", _multiplied(call).number, 1.0)


def _threads(call: Call) -> Bound:
    if (threads := call.get(0).number) > _MOST_THREADS:
        raise TooCostlyError(f"{threads:.0f} threads, expected at most {_MOST_THREADS}")
    return FLAG


def _listed(call: Call) -> Bound:
    held = call.receiver or UNKNOWN
    return call.made(items(held.count, held.each))


def _looked_up(call: Call) -> Bound:
    return join([(call.receiver or UNKNOWN).each, *call.args[1:]])


def _exponential(call: Call) -> Bound:
    return number(power(math.e, call.get(0).number), "real")


Rule = Callable[[Call], Bound]

_BUILTINS: dict[str, Rule] = {
    "range": _range, "sum": _sum, "list": _same, "tuple": _same, "set": _same, "iter": _lazy, "reversed": _same,
    "enumerate": _enumerate, "zip": _shortest, "map": _map, "filter": _filter, "sorted": _ordered, "max": _extreme,
    "min": _extreme, "any": _flag, "all": _flag, "len": _length, "isinstance": _flag, "bool": _flag, "int": _whole,
    "float": _real, "abs": _real, "round": _alike, "str": _written, "print": _written, "dict": _mapping,
    "next": _looked_up,
}  # fmt: skip

FUNCTIONS: dict[str, Rule] = {
    **_BUILTINS,
    **dict.fromkeys(("math.ceil", "math.floor"), _whole),
    **dict.fromkeys(("math.sqrt", "math.log", "math.log2", "math.log10", "math.fabs"), _real),
    "math.exp": _exponential,
    "math.prod": _multiplied_whole,
    "itertools.chain": _chain,
    "itertools.product": _product,
    "itertools.zip_longest": _longest,
    "itertools.accumulate": _accumulate,
    "itertools.islice": _islice,
    **dict.fromkeys(("glob.glob", "glob.iglob", "os.listdir", "monai.data.load_decathlon_datalist"), _files),
    **dict.fromkeys(("torch.zeros", "torch.ones", "torch.rand", "torch.randn", "numpy.zeros", "numpy.ones"), _shaped),
    **dict.fromkeys(("torch.full", "numpy.full"), _filled),
    **dict.fromkeys(("torch.linspace", "numpy.linspace"), _spaced),
    **dict.fromkeys(("torch.arange", "numpy.arange"), _stepped),
    **dict.fromkeys(("torch.tensor", "torch.as_tensor", "numpy.array", "numpy.asarray"), _gathered),
    **dict.fromkeys(("torch.stack", "torch.cat", "numpy.stack", "numpy.concatenate"), _gathered),
    **dict.fromkeys(("torch.sum", "numpy.sum"), _total),
    "numpy.prod": _multiplied,
    "torch.randint": _drawn,
    **dict.fromkeys(("torch.nn.functional.one_hot", "monai.networks.utils.one_hot"), _coded),
    **dict.fromkeys(("torch.nn.functional.interpolate", "torch.nn.functional.pad"), _resized),
    "monai.utils.ensure_tuple_rep": _tuples,
    "torch.set_num_threads": _threads,
}
"""Rules for functions, by dotted name; those of Python by their own."""

METHODS: dict[str, Rule] = {
    **dict.fromkeys(("repeat", "expand"), _repeated),
    **dict.fromkeys(("append", "extend"), _extended),
    **dict.fromkeys(("split", "rsplit"), _parts),
    "zfill": _zero_filled,
    "join": _joined,
    "replace": _replaced,
    "sum": _total,
    "prod": _multiplied,
    "item": _single,
    "tolist": _listed,
    "size": _listed,
    **dict.fromkeys(("keys", "values", "items"), _alike),
    "get": _looked_up,
    **dict.fromkeys(("index", "count", "startswith", "endswith"), lambda call: number(call.read())),
    **dict.fromkeys(("copy", "lower", "upper", "strip", "lstrip", "rstrip", "removesuffix", "removeprefix"), _alike),
    **dict.fromkeys(("numpy", "detach", "clone", "float", "double", "half", "long", "int", "type", "astype"), _alike),
    **dict.fromkeys(("abs", "clamp", "round", "squeeze", "unsqueeze", "permute", "transpose", "flatten"), _alike),
    **dict.fromkeys(("flip", "contiguous", "mean", "std", "max", "min"), _alike),
}
"""Rules for methods, by their name alone."""
