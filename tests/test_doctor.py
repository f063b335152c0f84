from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medseg.cli import doctor
from medseg.cli import doctor as command
from medseg.cli.main import app
from medseg.confinement import can_filter_sockets, landlock_version

assert command


def test_the_machine_that_runs_the_tests_can_work() -> None:
    found = doctor.diagnose()
    assert found.problems == ()
    assert found.cores >= 1
    assert found.memory_gb > 0.5
    assert "cpu" in found.devices
    assert (found.landlock, found.denies_sockets) == (landlock_version(), can_filter_sockets())


def test_every_lossless_syntax_we_promise_can_be_decoded() -> None:
    decoders = doctor.diagnose().decoders
    promised = [
        "High-Throughput JPEG 2000 Image Compression (Lossless Only)",
        "RLE Lossless",
        "JPEG-LS Lossless Image Compression",
        "JPEG 2000 Image Compression (Lossless Only)",
    ]
    assert all(decoders[name] for name in promised)
    assert sum(decoders.values()) >= 12


def test_an_extra_that_is_incomplete_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    known = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "pynetdicom" else known(name))
    found = doctor.diagnose()
    assert not found.extras["pacs"]
    assert any("medseg[pacs]" in advice for advice in found.advice)
    assert "medseg[pacs]" in CliRunner().invoke(app, ["doctor"]).stdout


def test_a_missing_core_package_is_a_problem_and_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    known = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "nibabel" else known(name))
    assert doctor.diagnose().problems == ("nibabel is not installed",)
    assert CliRunner().invoke(app, ["doctor", "--json"]).exit_code == 1


def test_the_command_prints_the_same_facts_for_people_and_for_programs() -> None:
    people = CliRunner().invoke(app, ["doctor"])
    program = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert people.exit_code == 0
    assert program["versions"]["torch"] in people.stdout
    assert "medseg can work here." in people.stdout


def test_the_limits_of_a_container_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text(f"{3 * 2**30}\n")
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    monkeypatch.setattr(doctor, "_CGROUP", tmp_path)
    found = doctor.diagnose()
    assert found.cores == 1
    assert found.memory_gb == pytest.approx(3.0)
    assert any("one case at a time" in advice for advice in found.advice)


def test_no_limit_is_the_whole_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    monkeypatch.setattr(doctor, "_CGROUP", tmp_path)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert doctor.diagnose().memory_gb == pytest.approx(total / 2**30, abs=0.1)


def test_instruction_sets_and_bf16_agree() -> None:
    cpu = doctor.diagnose().cpu
    assert cpu["bf16_in_hardware"] == bool({"avx512_bf16", "amx_bf16"} & set(cpu["features"]))
    assert cpu["threads"] >= 1
