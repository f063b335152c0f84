"""What evaluating a config would cost is told from its text, in a moment, whatever it asks for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medseg.bundle import Bundle, audit
from medseg.bundle.audit_configs import read_imports
from medseg.bundle.audit_costs import judge_costs
from medseg.bundle.findings import blocks
from medseg.errors import BundleError, UntrustedBundle
from tests.bundle.sample import read_config, write_config

_IMPORTS = {"imports": ["$import glob", "$import itertools", "$import math"]}
_ELSEWHERE: dict[str, Any] = {
    "n": 10**10,
    "half": "$@n // 2",
    "size": [10**4, 10**4, 10**4],
    "filled": "$lambda n: [0] * n",
    "zeros": {"_target_": "torch.zeros", "_mode_": "callable"},
}

ENDLESS = """
$[1.0, 1.0, 1.0] if sum(range(10**11)) else 1
$list(range(@n))
$list(range(@half))
$sum(range(int('9' * 12)))
$[0] * 10**8
$10**9 * 'a'
$('a' * 10**5) * 10**5
$[[0] * 10**4 for _ in range(10**4)]
$[a + b for a in range(10**4) for b in range(10**4)]
$[a for a in glob.glob('*') for b in glob.glob('*') for c in glob.glob('*')]
$((10**16)**16)**16
$'1'.zfill(10**9)
$f'{1:>1000000000}'
$','.join(['aaaa'] * 10**8)
$'aaaaaaaaaa'.replace('a', 'a' * 10**8)
$sorted(range(10**9))
$torch.zeros(10**5, 10**5)
$torch.zeros(@size)
$torch.ones((10**10,))
$torch.arange(10**10)
$torch.arange(0, 1, 1e-12)
$torch.randint(0, 10, (10**10,))
$np.zeros((10**6, 10**6))
$np.linspace(0, 1, 10**10)
$np.ones((4000, 1)) * np.ones((1, 400000))
$torch.full((10**10,), 1.0)
$torch.tensor([1]).repeat(10**10)
$torch.zeros(1).expand(10**12).clone()
$torch.nn.functional.pad(torch.zeros(1), (10**10, 10**10))
$torch.nn.functional.one_hot(torch.tensor([10**10]))
$torch.nn.functional.interpolate(torch.zeros(1, 1, 1), size=10**10)
$torch.tensor([10**10]).item() * [0]
$torch.nn.Linear(10**5, 10**5)
$torch.set_num_threads(10**6)
$monai.utils.ensure_tuple_rep(1, 10**10)
$list(itertools.product(range(100), repeat=5))
$list(itertools.accumulate([2] * 64, lambda a, b: a * a))
$list(iter(lambda: 0, 1))
$10.5 in range(10**11)
$list(map(len, map(list, map(range, [10**9]))))
$sum([[0] * 1000] * 10000, [])
$(lambda f: [0] * f)(10**9)
$@filled(10**9)
$@zeros(10**9)
$[x.extend(x) for x in [[0]] for _ in range(60)]
$print(*range(10**10))
$dict(zip(range(10**10), range(10**10)))
$[0][:sum(range(10**11))]
$math.prod([10**10]) * [0]
$[0] * int(1 / 1e-10)
$all(x < 0 for x in range(10**11))
""".strip().splitlines()


def _component(target: str, **arguments: Any) -> dict[str, Any]:
    return {"part": {"_target_": target, **arguments}}


CONFIGS: dict[str, dict[str, Any]] = {
    "a volume": _component("Resized", keys="image", spatial_size=[10**5] * 3),
    "windows at once": _component("SlidingWindowInferer", roi_size=[96] * 3, sw_batch_size=10**6),
    "processes": _component("DataLoader", num_workers=10**6),
    "patches": _component("RandCropByPosNegLabeld", num_samples=10**7),
    "wide layers": _component("BasicUNet", features=[60_000] * 6),
    "wide layers by reference": {"c": "$30000 * 2", **_component("BasicUNet", features=["@c"] * 6)},
    "many layers": _component("UNet", channels="$[16] * 100000"),
    "a function as a component": _component("torch.zeros", size=[10**6, 10**6]),
    "macros of macros": {"a0": ["x"] * 10, **{f"a{i}": [f"%a{i - 1}"] * 10 for i in range(1, 12)}},
    "references to references": {"a0": ["x"] * 10, **{f"a{i}": [f"@a{i - 1}"] * 10 for i in range(1, 12)}},
    "sums of sums": {"a0": "$['x'] * 10", **{f"a{i}": f"$@a{i - 1} + @a{i - 1}" for i in range(1, 40)}},
    "calls of calls": {"f0": "$lambda x: x", **{f"f{i}": f"$lambda x: @f{i - 1}(@f{i - 1}(x))" for i in range(1, 30)}},
    "a chain": {f"a{i}": f"@a{i + 1}" for i in range(3000)},
    "a tower": {"a": json.loads("[" * 90 + '"$1"' + "]" * 90)},
    "images that grow": {f"a{i}": {"_target_": "Lambdad", "func": "$lambda x: x * 60000"} for i in range(3)},
}


def _problems(config: dict[str, Any]) -> list[str]:
    return [finding.what for finding in judge_costs("configs/a", {"configs/a": config}, read_imports(config))]


@pytest.mark.parametrize("expression", ENDLESS)
def test_an_endless_expression_is_found(expression: str) -> None:
    assert _problems({**_IMPORTS, **_ELSEWHERE, "x": expression})


def test_what_the_expressions_refer_to_is_no_alarm() -> None:
    assert not _problems({**_IMPORTS, **_ELSEWHERE})


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_explodes_is_found(name: str) -> None:
    assert _problems(CONFIGS[name])


@pytest.mark.parametrize(
    "expression",
    [
        "$[{'image': i, 'label': l} for i, l in zip(sorted(glob.glob('*')), sorted(glob.glob('*')))]",
        "$[x for x in glob.glob('*') if x not in [y for y in ['a', 'b']]]",
        "$lambda x: (x - x.min()) / (x.max() - x.min()) * 65535",
        "$torch.randn(1, 3, 96, 96, 96)",
        "$max(1, min(4, 500 // 2))",
        "$'fold' + str(int('runs/3'.split('/')[-1]) + 1)",
        "$range(10**5)",
    ],
)
def test_an_ordinary_expression_is_none(expression: str) -> None:
    assert not _problems({**_IMPORTS, "x": expression})


def test_the_finding_says_which_budget(bundle: Path) -> None:
    config = read_config(bundle, "inference")
    write_config(bundle, "inference", {**config, "extra": "$sum(range(10**11))"})
    found = blocks(audit(bundle))
    assert [finding.place for finding in found] == ["extra"]
    assert "takes 10000" in found[0].what
    assert "expected at most 5000000" in found[0].what
    with pytest.raises(UntrustedBundle, match="extra: sum"):
        Bundle.open(bundle).load_network()


def test_a_value_may_stand_in_another_config(bundle: Path) -> None:
    write_config(bundle, "train", {**read_config(bundle, "train"), "extra": "$list(range(@many))"})
    assert not blocks(audit(bundle))
    write_config(bundle, "evaluate", {"many": 10**10})
    assert [finding.place for finding in blocks(audit(bundle))] == ["extra"]


def test_references_are_counted_before_anybody_follows_them(bundle: Path) -> None:
    write_config(bundle, "inference", {**read_config(bundle, "inference"), **CONFIGS["references to references"]})
    with pytest.raises(BundleError, match=r"parts with its references followed, expected at most 1000000"):
        _ = Bundle.open(bundle).inference


def test_a_long_datalist_is_no_alarm(bundle: Path) -> None:
    items = [{"image": f"case-{n}.nii.gz", "label": f"l-{n}.nii.gz", "fold": n % 5} for n in range(5000)]
    write_config(bundle, "datalist", {"training": items})
    assert not [finding for finding in blocks(audit(bundle)) if "parts" in finding.what]


def _long_number(folder: Path) -> None:
    (folder / "configs/metadata.json").write_text(f'{{"version": 1{"0" * 300}}}')


def _deep(folder: Path) -> None:
    (folder / "configs/metadata.json").write_text("[" * 900 + "]" * 900)


def _many(folder: Path) -> None:
    (folder / "configs/metadata.json").write_text("[" + "[]," * 1_000_001 + "[]]")


def _large(folder: Path) -> None:
    with (folder / "configs/metadata.json").open("wb") as handle:
        handle.truncate(1 << 40)


@pytest.mark.parametrize("change", [_long_number, _deep, _many, _large])
def test_a_text_beyond_its_budget_is_refused(bundle: Path, change: Callable[[Path], None]) -> None:
    change(bundle)
    with pytest.raises(BundleError, match=r"cannot be read as JSON.*(expected at most|more than)"):
        Bundle.open(bundle)
    assert [finding.file for finding in blocks(audit(bundle))] == ["configs/metadata.json"]


def test_a_width_that_fills_all_memory_is_refused_in_a_log(bundle: Path) -> None:
    path = bundle / "configs/logging.conf"
    path.write_text(path.read_text().replace("format=", "format=%(message)999999999s ", 1))
    assert any("pads to more than 999 letters" in finding.what for finding in blocks(audit(bundle)))


def test_values_of_a_logging_conf_that_name_each_other_are_refused(bundle: Path) -> None:
    path = bundle / "configs/logging.conf"
    nested = "".join(f"{a} = " + f"%({b})s" * 1000 + "\n" for a, b in (("level", "formatter"), ("formatter", "class")))
    path.write_text(
        path.read_text().replace("level=INFO\nformatter=fullFormatter\n", nested).replace("args=(", "args=(%(level)s")
    )
    assert "configs/logging.conf" in {finding.file for finding in blocks(audit(bundle))}
