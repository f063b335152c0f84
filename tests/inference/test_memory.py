"""Each process takes its share of the memory that the machine, or the control group around it, has left."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.inference import memory

GIB = 1 << 30


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GiB left and without control groups."""
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {8 * GIB // 1024} kB\n")
    (tmp_path / "groups").mkdir()
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_GROUP", tmp_path / "group")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "_told", None)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return tmp_path


def _limit(folder: Path, limit: str, used: int, reclaimable: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(limit)
    (folder / "memory.current").write_text(str(used))
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {reclaimable}\n")


def test_a_process_alone_takes_what_there_is() -> None:
    assert memory.available_bytes() == memory.share_bytes() == 8 * GIB


def test_processes_divide_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # as torchrun does
    assert memory.share_bytes() == 4 * GIB
    memory.set_sharers(4)
    assert (memory.sharers(), memory.share_bytes(), memory.available_bytes()) == (4, 2 * GIB, 8 * GIB)


@pytest.mark.parametrize("given", ["", "0", "many", "-3"])
def test_an_odd_number_of_processes_counts_as_one(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", given)
    assert memory.sharers() == 1


def test_the_tightest_control_group_counts(machine: Path) -> None:
    (machine / "group").write_text("4:memory:/old\n0::/job/step\n")
    _limit(machine / "groups" / "job", str(6 * GIB), 3 * GIB, GIB)
    _limit(machine / "groups" / "job" / "step", "max", 2 * GIB)
    assert memory.available_bytes() == 4 * GIB
    _limit(machine / "groups" / "job" / "step", str(3 * GIB), 2 * GIB)
    assert memory.available_bytes() == GIB
    _limit(machine / "groups", str(GIB), 2 * GIB)
    assert memory.available_bytes() == 0  # already over: nothing to give, and no negative number


def test_a_machine_that_does_not_say_has_four_gibibytes(machine: Path) -> None:
    (machine / "meminfo").unlink()
    assert memory.available_bytes() == 4 * GIB
