from __future__ import annotations

import json
import socket
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, SegmentationStorage
from pynetdicom import AE, build_context
from pynetdicom.acse import ACSE

from medseg.errors import Refusal
from medseg.pacs.dicom_network import NetworkRemote
from medseg.pacs.receive import hash_uid
from medseg.pacs.remote import PacsError
from medseg.pacs.settings import DicomNode, Route
from tests.pacs.conftest import WaitUntil, answer_one, listening, make_instance, write_study


def test_echo_answers(tmp_path: Path) -> None:
    with listening(tmp_path) as (_, node):
        assert NetworkRemote(node).echo() < 5


def test_what_is_sent_arrives_unchanged_under_names_of_our_own(tmp_path: Path, study_files: list[Path]) -> None:
    with listening(tmp_path / "in") as (_, node):
        result = NetworkRemote(node).send(study_files)
    assert len(result.sent) == len(study_files)
    received = sorted((tmp_path / "in" / "studies").rglob("*.dcm"))
    assert len(received) == len(study_files)
    sent = {str(dcmread(path).SOPInstanceUID): dcmread(path) for path in study_files}
    for path in received:
        instance = dcmread(path)
        uid = str(instance.SOPInstanceUID)
        assert instance == sent[uid]
        assert path.stem == hash_uid(uid)
        assert uid not in str(path)


def test_the_whole_loop_answers_each_study_once(tmp_path: Path, wait_until: WaitUntil) -> None:
    computed: list[str] = []

    def compute(route: Route, study: Path, output: Path) -> Sequence[Path]:
        computed.append(study.name)
        return answer_one(route, study, output)

    with (
        listening(tmp_path / "archive") as (_, archive_node),
        listening(tmp_path / "in", compute, nodes={"archive": archive_node}) as (listener, node),
    ):
        for name in "abc":
            NetworkRemote(node).send(write_study(tmp_path / "source", name))
        NetworkRemote(node).send(write_study(tmp_path / "source", "a"))  # the same again: nothing new
        wait_until(lambda: [s.state for s in listener.queue.studies()] == ["done"] * 3)
        assert len(list((tmp_path / "archive" / "studies").rglob("*.dcm"))) == 3
    assert len(computed) == len(set(computed)) == 3


def test_a_destination_that_is_down_is_tried_again_and_nothing_is_lost(tmp_path: Path, wait_until: WaitUntil) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    down = DicomNode("LISTEN", "127.0.0.1", port, timeout_seconds=10)
    with listening(tmp_path / "in", answer_one, nodes={"archive": down}, attempts=1000) as (listener, node):
        NetworkRemote(node).send(write_study(tmp_path / "source", "a"))
        wait_until(lambda: any(s.attempts > 0 and s.state == "sending" for s in listener.queue.studies()))
        with listening(tmp_path / "archive", port=port) as _:
            wait_until(lambda: [s.state for s in listener.queue.studies()] == ["done"])
    assert len(list((tmp_path / "archive" / "studies").rglob("*.dcm"))) == 1


def test_a_computation_that_keeps_failing_fails_its_study_with_the_reason(
    tmp_path: Path, wait_until: WaitUntil
) -> None:
    def fail(route: Route, study: Path, output: Path) -> Sequence[Path]:
        raise ValueError("found two series, expected one")

    nowhere = DicomNode("NOBODY", "127.0.0.1", 9)
    with listening(tmp_path / "in", fail, nodes={"archive": nowhere}, attempts=2) as (listener, node):
        NetworkRemote(node).send(write_study(tmp_path / "source", "a"))
        wait_until(lambda: [s.state for s in listener.queue.studies()] == ["failed"])
        assert "found two series" in listener.queue.studies()[0].message


@pytest.mark.parametrize("change", [{"calling_ae_title": "STRANGER"}, {"ae_title": "OTHER"}])
def test_unknown_ae_titles_are_refused(tmp_path: Path, change: dict[str, str]) -> None:
    with listening(tmp_path) as (_, node):
        stranger = DicomNode(**{**vars(node), **change})
        with pytest.raises(PacsError, match="rejected"):
            NetworkRemote(stranger).echo()


def test_a_rejection_that_comes_at_once_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(negotiation: ACSE) -> None:
        send_request(negotiation)
        time.sleep(0.5)

    send_request = ACSE.send_request
    monkeypatch.setattr(ACSE, "send_request", slowly)
    with listening(tmp_path) as (_, node), pytest.raises(PacsError, match="rejected"):
        NetworkRemote(DicomNode(**{**vars(node), "ae_title": "OTHER"})).echo()


def test_no_answer_is_a_clear_error() -> None:
    with pytest.raises(PacsError, match="did not answer"):
        NetworkRemote(DicomNode("X", "127.0.0.1", 9, timeout_seconds=1)).echo()


def test_a_full_disk_refuses_the_instance_instead_of_losing_it(tmp_path: Path, study_files: list[Path]) -> None:
    with listening(tmp_path / "in", min_free_gb=1e9) as (listener, node):
        result = NetworkRemote(node).send(study_files)
        assert not result.sent
        assert set(result.failed) == set(study_files)
        assert "0xA700" in next(iter(result.failed.values()))
        assert listener.queue.studies() == []


def test_a_file_that_is_not_dicom_does_not_stop_the_others(tmp_path: Path, study_files: list[Path]) -> None:
    junk = tmp_path / "junk.dcm"
    junk.write_bytes(b"not dicom" * 100)
    with listening(tmp_path / "in") as (_, node):
        result = NetworkRemote(node).send([junk, *study_files])
    assert len(result.sent) == len(study_files)
    assert list(result.failed) == [junk]


def test_health_and_metrics_count_studies_and_show_no_identity(tmp_path: Path, wait_until: WaitUntil) -> None:
    with listening(tmp_path / "in", health_port=0) as (listener, node):
        NetworkRemote(node).send(write_study(tmp_path / "source", "a"))
        wait_until(lambda: [s.state for s in listener.queue.studies()] == ["done"])
        assert listener._health is not None
        address = f"http://127.0.0.1:{listener._health.port}"
        health = json.loads(urllib.request.urlopen(f"{address}/health").read())
        metrics = urllib.request.urlopen(f"{address}/metrics").read().decode()
    assert health["studies"]["done"] == 1
    assert 'medseg_studies{state="done"} 1' in metrics
    assert str(make_instance("a", 0).StudyInstanceUID) not in metrics + json.dumps(health)


def _in_another_syntax(path: Path, number: int) -> Path:
    """A slice in a transfer syntax that nobody knows."""
    instance = make_instance("a", number)
    instance.file_meta.TransferSyntaxUID = UID("1.2.826.0.1.3680043.8.498.1")
    instance.save_as(path, implicit_vr=False, little_endian=True, enforce_file_format=True)
    return path


def test_an_unknown_transfer_syntax_fails_with_a_reason_and_the_others_go(
    tmp_path: Path, study_files: list[Path]
) -> None:
    odd = _in_another_syntax(tmp_path / "odd.dcm", 99)
    with listening(tmp_path / "in") as (_, node):
        mixed = NetworkRemote(node).send([odd, *study_files])
        alone = NetworkRemote(node).send([odd])
    assert set(mixed.sent) == set(study_files)
    for result in (mixed, alone):
        assert list(result.failed) == [odd]
        assert "transfer syntax" in result.failed[odd]
    assert len(list((tmp_path / "in" / "studies").rglob("*.dcm"))) == len(study_files)


def _store_and_abort(node: DicomNode, files: Sequence[Path]) -> None:
    entity = AE(ae_title="MEDSEG")
    association = entity.associate(
        node.host, node.port, contexts=[build_context(CTImageStorage, ExplicitVRLittleEndian)], ae_title=node.ae_title
    )
    for path in files:
        assert association.send_c_store(path).Status == 0
    association.abort()


def test_a_partial_study_is_kept_and_answered_when_the_rest_has_come(
    tmp_path: Path, study_files: list[Path], wait_until: WaitUntil
) -> None:
    seen: list[int] = []

    def compute(route: Route, study: Path, output: Path) -> Sequence[Path]:
        seen.append(len(list(study.glob("*.dcm"))))
        return answer_one(route, study, output)

    with (
        listening(tmp_path / "archive") as (_, archive),
        listening(tmp_path / "in", compute, nodes={"archive": archive}) as (listener, node),
    ):
        _store_and_abort(node, study_files[:2])
        wait_until(lambda: [s.state for s in listener.queue.studies()] == ["done"])
        NetworkRemote(node).send(study_files)  # the sender tries the whole study again: two instances are duplicates
        wait_until(lambda: [(s.state, s.revision) for s in listener.queue.studies()] == [("done", 4)])
    assert seen[0] == 2
    assert seen[-1] == 4
    assert len(list((tmp_path / "archive" / "studies").rglob("*.dcm"))) == 1


def test_duplicates_are_one_file_and_changed_bytes_replace_it(
    tmp_path: Path, study_files: list[Path], wait_until: WaitUntil
) -> None:
    with listening(tmp_path / "in") as (listener, node):
        assert len(NetworkRemote(node).send([*study_files, *study_files]).sent) == 2 * len(study_files)
        assert [s.revision for s in listener.queue.studies()] == [len(study_files)]
        wait_until(lambda: [s.state for s in listener.queue.studies()] == ["done"])
        changed = dcmread(study_files[0])
        changed.PixelData = bytes(reversed(changed.PixelData[:-1])) + b"\x07"
        changed.save_as(study_files[0])
        NetworkRemote(node).send(study_files[:1])
        assert [s.revision for s in listener.queue.studies()] == [len(study_files) + 1]
    received = [dcmread(path) for path in (tmp_path / "in" / "studies").rglob("*.dcm")]
    assert len(received) == len(study_files)
    assert changed.PixelData in [instance.PixelData for instance in received]


def test_a_study_in_which_nothing_fits_is_done_with_the_reason(tmp_path: Path, wait_until: WaitUntil) -> None:
    computed: list[str] = []

    def refuse(route: Route, study: Path, output: Path) -> Sequence[Path]:
        computed.append(study.name)
        raise Refusal("outside-training-range", "spacing 5 mm, expected at most 1 mm")

    nowhere = DicomNode("NOBODY", "127.0.0.1", 9)
    with listening(tmp_path / "in", refuse, nodes={"archive": nowhere}) as (listener, node):
        NetworkRemote(node).send(write_study(tmp_path / "source", "a"))
        wait_until(lambda: [s.state for s in listener.queue.studies()] == ["done"])
        assert "expected at most 1 mm" in listener.queue.studies()[0].message
    assert len(computed) == 1


def test_a_result_that_an_archive_forwards_back_starts_no_new_computation(
    tmp_path: Path, wait_until: WaitUntil
) -> None:
    with listening(tmp_path / "in") as (listener, node):
        NetworkRemote(node).send(write_study(tmp_path / "source", "a"))
        wait_until(lambda: [s.state for s in listener.queue.studies()] == ["done"])
        result = make_instance("a", 99, series="result")
        result.SOPClassUID = result.file_meta.MediaStorageSOPClassUID = SegmentationStorage
        path = tmp_path / "result.dcm"
        result.save_as(path, enforce_file_format=True)
        assert NetworkRemote(node).send([path]).sent == (path,)
        assert [(s.state, s.revision) for s in listener.queue.studies()] == [("done", 3)]
