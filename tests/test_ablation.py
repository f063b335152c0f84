"""The ablation of the discriminator: what its table says is right by hand, and a run is never done twice."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import ablation
from benchmarks.ablation import BUNDLE, VARIANTS, Plan, Run, budget, gather, planned_runs, work
from benchmarks.ablation_data import FOLD, write_datalist
from benchmarks.ablation_table import (
    ARMS,
    DESIGN,
    Measured,
    Results,
    RunFacts,
    comparisons,
    markdown,
    replaced,
    topology,
)
from medseg.errors import Interrupted, TrainingDiverged, UsageError
from medseg.files import locked_folder
from medseg.signals import signals_interrupt
from medseg.training.configuration import check_overrides

ROOT = Path(__file__).parents[1]
D = "D 10 %"


def facts(variant: str, draw: int = 0, labels: int = 10) -> RunFacts:
    judged = None if variant == "plain" else 0.9
    return RunFacts(variant, labels, draw, 600, 2, 90.0, 0.15, judged, judged)


def result(variant: str, dice: list[float], draw: int = 0, **values: Any) -> Results:
    """One run with a structure in each case, of which only Dice is what the test is about."""
    fixed: dict[str, Any] = {"label": 1, "hd95_mm": 2.0, "assd_mm": 0.5, "extra_components": 0, "holes": 0}
    cells = fixed | values
    rows = [Measured(variant, 10, draw, f"case{number}", dice=one, **cells) for number, one in enumerate(dice)]
    return Results([facts(variant, draw)], rows)


def joined(*parts: Results) -> Results:
    whole = Results()
    for part in parts:
        whole = whole.joined(part)
    return whole


def row_of(table: str, arm: str) -> list[str]:
    return next(cells for line in table.splitlines() if (cells := line.strip("| ").split(" | "))[1:2] == [arm])


def test_p_and_its_correction_by_hand() -> None:
    base = result("plain", [0.5] * 6, hd95_mm=3.0)
    better = result(D, [0.51, 0.52, 0.53, 0.54, 0.55, 0.56])
    found = {test.metric: test for test in comparisons(10, joined(base, better).rows)}
    # six patients, all better: 2 of 2^6 signs are as extreme
    assert found["dice"].p == pytest.approx(2 / 64)
    assert found["dice"].difference == pytest.approx(0.035)
    assert found["assd_mm"].p == found["extra_components"].p == found["holes"].p == 1.0
    assert found["hd95_mm"].difference == pytest.approx(-1.0)
    # five tests of one family: the smallest p counts five times, the next four times and no less than that
    smallest, second = sorted(test.p for test in found.values())[:2]
    assert min(test.p_holm for test in found.values()) == pytest.approx(5 * smallest)
    assert found["dice"].p_holm == pytest.approx(max(5 * smallest, 4 * second))
    assert found["holes"].p_holm == 1.0


def test_all_arms_with_as_many_labels_are_one_family() -> None:
    base, better = result("plain", [0.5] * 6), [0.51, 0.52, 0.53, 0.54, 0.55, 0.56]
    alone = comparisons(10, joined(base, result(D, better)).rows)
    both = comparisons(10, joined(base, result(D, better), result("D 30 %", [0.5] * 6)).rows)
    assert alone[0].p == both[0].p
    assert alone[0].p_holm == pytest.approx(5 * 2 / 64)
    assert both[0].p_holm == pytest.approx(10 * 2 / 64)


def test_only_draws_of_both_sides_are_paired() -> None:
    bases = result("plain", [0.1] * 6, draw=0, holes=9), result("plain", [0.5] * 6, draw=1)
    mine = result(D, [0.6] * 6, draw=1)
    found = {test.metric: test for test in comparisons(10, joined(*bases, mine).rows)}
    assert found["dice"].draws == (1,)
    assert found["dice"].difference == pytest.approx(0.1)
    assert found["dice"].by_draw == pytest.approx((0.1,))
    assert found["holes"].difference == 0.0


def test_draws_of_a_patient_are_one_observation() -> None:
    bases = result("plain", [0.5] * 6, draw=0), result("plain", [0.5] * 6, draw=1)
    rises = [0.03 * number for number in range(1, 7)]
    mine = result(D, [0.5 + rise for rise in rises], draw=0), result(D, [0.5 - rise / 3 for rise in rises], draw=1)
    dice = comparisons(10, joined(*bases, *mine).rows)[0]
    assert dice.p == pytest.approx(2 / 64)  # six patients, not twelve cases
    assert dice.difference == pytest.approx(0.105 / 3)
    assert dice.by_draw == pytest.approx((0.105, -0.035))


def test_without_a_common_draw_nothing_is_compared() -> None:
    whole = joined(result("plain", [0.5] * 6, draw=0), result(D, [0.6] * 6, draw=1))
    assert comparisons(10, whole.rows) == []
    assert row_of(markdown(whole), D)[2:6] == ["1 of 3", "0.6000", "", ""]


def test_what_is_not_measured_is_said_and_is_no_zero() -> None:
    table = markdown(joined(result("plain", [0.5] * 6), result(D, [0.6] * 6)))
    assert row_of(table, "plain")[2:4] == ["1 of 3", "0.5000"]
    assert row_of(table, "D 30 %")[2:4] == ["0 of 3", "not measured"]
    assert set(row_of(table, "D 30 %")[4:]) <= {"", "|"}
    blocks = [line.strip("| ").split(" | ") for line in table.splitlines() if "all arms" in line]
    assert [cells[:4] for cells in blocks] == [
        ["50", "all arms", f"0 of {len(ARMS)}", "not measured"],
        ["all", "all arms", f"0 of {len(ARMS)}", "not measured"],
    ]
    assert f"{5 * len(ARMS) - 2} of {5 * len(ARMS)} planned runs are not measured" in table
    assert "nan" not in table


def test_the_table_says_in_words_which_arm_differs() -> None:
    base, ups = result("plain", [0.5] * 8), [0.01 * number for number in range(1, 9)]
    more = [result(D, [0.5 + up for up in ups]), result("D 30 %", [0.5 - up for up in ups])]
    assert "Dice, 10 labels: no arm differs from plain training (smallest p 1)" in markdown(
        joined(base, result(D, [0.5] * 8))
    )
    assert "Dice, 10 labels: D 10 % gains |" in markdown(joined(base, more[0]))
    # ten tests now: 2 of 2^8 signs, times 10, are 0.078
    assert "Dice, 10 labels: no arm differs from plain training (smallest p 0.078)" in markdown(joined(base, *more))


def test_no_result_at_all() -> None:
    table = markdown(Results())
    assert table.count("not measured") == 1 + len(DESIGN)
    assert "0.0" not in table


def test_the_restoring_start_is_compared_without_the_discriminator_too() -> None:
    arms = {"plain": 0.5, "restoring U-Net": 0.6, "restoring U-Net + D": 0.55}
    table = markdown(joined(*(result(arm, [dice] * 6) for arm, dice in arms.items())))
    assert row_of(table, "restoring U-Net + D")[4].startswith("+5.00")
    assert "restoring U-Net + D against restoring U-Net, 10 labels: -5.00" in table


def test_a_missed_structure_is_counted_beside_the_mean() -> None:
    base, mine = result("plain", [0.5] * 6), result(D, [0.5] * 6)
    lost = Measured(D, 10, 0, "case0", 1, 0.0, None, None, 0, 0)
    whole = joined(base, Results(mine.runs, [lost, *mine.rows[1:]]))
    assert row_of(markdown(whole), D)[6].startswith("2.000, 1 missed")
    distance = {test.metric: test for test in comparisons(10, whole.rows)}["hd95_mm"]
    assert distance.difference == 0.0  # of the five that have a distance


def test_topology_of_a_shell_and_a_grain() -> None:
    mask = np.zeros((7, 7, 7), dtype=bool)
    assert topology(mask) == (0, 0)
    mask[1:6, 1:6, 1:6] = True
    mask[3, 3, 3] = False
    assert topology(mask) == (0, 1)
    mask[1:6, 3, 3] = False  # a tunnel is no cavity
    assert topology(mask) == (0, 0)
    mask[0, 0, 0] = True  # touches by a corner
    assert topology(mask) == (0, 0)
    mask[:] = False
    mask[0, 0, 0] = mask[3:, 3:, 3:] = True
    assert topology(mask) == (1, 0)


def test_tables_come_back_as_they_were(tmp_path: Path) -> None:
    lost = Measured(D, 0, 2, "case7", 2, 0.0, None, None, 3, 1)
    whole = joined(result("plain", [0.5, 1.0]), Results([facts(D, 2, labels=0)], [lost]))
    whole.write(tmp_path)
    assert Results.read(tmp_path) == whole
    assert Results.read(tmp_path / "nowhere") == Results()


def test_the_table_of_a_page_is_replaced() -> None:
    old, new = markdown(Results()), markdown(result("plain", [0.5] * 6))
    assert replaced(f"# Few\n\n{old}\nWhat it says\n", new) == f"# Few\n\n{new}\nWhat it says\n"


def test_the_page_has_the_table_of_the_results() -> None:
    assert markdown(Results.read(ROOT / "benchmarks" / "results")) in (ROOT / "docs" / "benchmarks.md").read_text()


def test_runs_come_draw_by_draw_and_the_most_telling_first() -> None:
    runs = planned_runs(list(ARMS), DESIGN)
    assert [(run.variant, run.draw) for run in runs[:5]] == [*((arm, 0) for arm in ARMS[:4]), ("plain", 1)]
    assert [run.variant for run in runs[12:14]] == list(ARMS[4:])
    assert [run.labels for run in runs] == [10] * 18 + [50] * 6 + [0] * 6
    assert len({run.folder for run in runs}) == len(runs)
    students = planned_runs(["self-training", "plain"], {10: 1, 0: 1})
    assert [(run.variant, run.labels) for run in students] == [("plain", 10), ("self-training", 10), ("plain", 0)]


def test_arms_differ_in_the_share_alone() -> None:
    plan, config = Plan(Path(), Path()), json.loads((BUNDLE / "configs" / "train.json").read_text())
    found = [plan.overrides(Run(arm, 10, 1)) for arm in ARMS]
    assert [one.pop("adversarial_share") for one in found] == [VARIANTS[arm].share for arm in ARMS]
    assert all(one == found[0] for one in found)
    check_overrides(config, found[0])
    assert found[0]["judge_steps"] == 0, "what is measured is the opponent"
    assert found[0]["epochs"] * found[0]["iterations"] == 600
    assert found[0]["warm_up"] + found[0]["adversary#schedule#settle"] + found[0]["ramp"] == 300


def test_what_is_held_out_is_seen_by_no_run(tmp_path: Path) -> None:
    lists = {}
    for name, unlabelled in (("plain", False), ("unlabelled", True)):
        write_datalist(BUNDLE, tmp_path / name, 10, 1, unlabelled=unlabelled)
        lists[name] = json.loads((tmp_path / name).read_text())
    assert lists["plain"]["training"] == lists["unlabelled"]["training"]
    assert sum(item["fold"] != FOLD for item in lists["plain"]["training"]) == 10
    assert not lists["plain"]["unlabelled"]
    assert FOLD not in {item["fold"] for item in lists["unlabelled"]["unlabelled"]}
    assert len(lists["unlabelled"]["unlabelled"]) == 166


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that were carried out, instead of trained."""
    carried: list[str] = []

    def carry_out(plan: Plan, run: Run) -> Results:
        carried.append(run.variant)
        if run.variant == "D 30 %":
            raise TrainingDiverged("broken on purpose")
        found = result(run.variant, [0.5] * 6, run.draw)
        (plan.output / run.folder).mkdir(parents=True)
        (plan.output / run.folder / "result.json").write_text(json.dumps(_json(found)))
        return found

    monkeypatch.setattr(ablation, "carry_out", carry_out)
    return carried


def _json(found: Results) -> dict[str, Any]:
    return {"runs": [vars(run) for run in found.runs], "rows": [vars(row) for row in found.rows]}


def test_what_stands_in_the_results_is_not_done_again(tmp_path: Path, done: list[str]) -> None:
    runs, plan = planned_runs(["plain", D, "D 30 %"], {10: 1}), Plan(tmp_path, tmp_path / "out")
    result("plain", [0.7] * 6).write(tmp_path / "results")
    assert work(plan, runs, tmp_path / "results") == 1
    assert done == [D, "D 30 %"]  # what fails does not keep others from being done, and is tried once
    assert Results.read(tmp_path / "results").finished == {("plain", 10, 0), (D, 10, 0)}
    assert work(Plan(tmp_path, tmp_path / "other"), runs[:2], tmp_path / "results") == 0
    assert done == [D, "D 30 %"]


def test_what_another_process_is_at_is_left_to_it(tmp_path: Path, done: list[str]) -> None:
    runs, plan = planned_runs(["plain", D], {10: 1}), Plan(tmp_path, tmp_path / "out")
    with locked_folder(plan.output / "at-work" / runs[0].folder, "at it"):
        assert work(plan, runs, tmp_path / "results") == 0
    assert done == [D]
    assert gather(plan, tmp_path / "results").finished == {(D, 10, 0)}


def test_a_budget_ends_the_work_in_order() -> None:
    with pytest.raises(Interrupted), signals_interrupt(), budget(0.0):
        time.sleep(10.0)
    with budget(None):
        pass


def test_runs_of_another_length_are_not_compared(tmp_path: Path) -> None:
    result("plain", [0.5] * 6).write(tmp_path)
    with pytest.raises(UsageError, match=r"\[\(600, 2\)\].*expected \(400, 2\)"):
        gather(Plan(tmp_path, tmp_path / "out", iterations=400), tmp_path)
