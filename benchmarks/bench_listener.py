"""The listening node under load: five senders at once, the listener killed with -9 in between, nothing lost or doubled.

python benchmarks/bench_listener.py [--instances 2000] [--kills 3]

With ``--orthanc`` every study gets twenty results, which go to an Orthanc that is killed with -9 as well. Orthanc binds
every interface, so this needs root and a namespace with loopback only, which the script makes for itself.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import generate_uid

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from medseg.pacs.dicom_network import NetworkRemote
from medseg.pacs.dicomweb import WebRemote
from medseg.pacs.listener import Listener
from medseg.pacs.remote import PacsError
from medseg.pacs.settings import DicomNode, Route, WebNode, read_settings
from tests.pacs.conftest import make_instance, write_study

PER_STUDY = 100
RESULTS = 20
SENDERS = 5
SETTINGS = """
[listener]
folder = "in"
port = {port}
allowed_callers = ["MEDSEG"]
quiet_seconds = 2
min_free_gb = 0
"""
TO_ORTHANC = """
attempts = 1000
retry_seconds = 0.5
[nodes.archive]
ae_title = "ORTHANC"
host = "127.0.0.1"
port = 4242
timeout_seconds = 5
[[routes]]
name = "r"
bundle = "none"
write = ["seg"]
send_to = ["archive"]
"""
ORTHANC = {
    "RemoteAccessAllowed": True,
    "AuthenticationEnabled": False,
    "DicomPort": 4242,
    "HttpPort": 8042,
    "Plugins": ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"],
    "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(settings: Path, *, answers: bool) -> subprocess.Popen[str]:
    code = "from medseg.cli.main import main; main()"
    real = [sys.executable, "-c", code, "pacs", "listen", str(settings)]
    command = [sys.executable, __file__, "--serve", str(settings)] if answers else real
    with settings.with_suffix(".log").open("a") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def start_orthanc(folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    database = {"StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db")}
    (folder / "orthanc.json").write_text(json.dumps({**ORTHANC, **database}))
    return subprocess.Popen(
        ["Orthanc", str(folder / "orthanc.json")],
        env={**os.environ, "TCP_NODELAY": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def answer(route: Route, study: Path, output: Path) -> Sequence[Path]:
    """Some results instead of a bundle's, the same on every route: what is measured is what becomes of them."""
    del route
    output.mkdir(parents=True, exist_ok=True)
    result = dcmread(min(study.glob("*.dcm")))
    study_uid = str(result.StudyInstanceUID)
    result.SeriesInstanceUID = generate_uid(entropy_srcs=["result", study_uid])
    for number in range(RESULTS):
        result.SOPInstanceUID = generate_uid(entropy_srcs=["result", study_uid, str(number)])
        result.file_meta.MediaStorageSOPInstanceUID = result.SOPInstanceUID
        result.save_as(output / f"{number}.dcm", enforce_file_format=True)
    return sorted(output.glob("*.dcm"))


def serve(settings: Path) -> None:
    with Listener(read_settings(settings), answer):
        print("listening", flush=True)
        signal.sigwait({signal.SIGTERM})


def send_until_taken(node: DicomNode, files: list[Path]) -> None:
    left = list(files)
    while left:
        try:
            left = list(NetworkRemote(node).send(left).failed)
        except PacsError:
            time.sleep(0.2)


def wait_until_done(database: Path, studies: int, limit_seconds: float = 120) -> None:
    end = time.monotonic() + limit_seconds
    while time.monotonic() < end:
        states = [state for state, _ in rows_of(database)]
        if len(states) == studies and set(states) <= {"done", "failed"}:
            return
        time.sleep(0.5)


def rows_of(database: Path) -> list[tuple[str, int]]:
    connection = sqlite3.connect(database, timeout=30)
    try:
        return connection.execute("SELECT state, revision FROM study").fetchall()
    finally:
        connection.close()


def results_in_orthanc(studies: int) -> int:
    """Studies whose results lie in Orthanc, each result once."""
    remote = WebRemote(WebNode("http://127.0.0.1:8042/dicom-web"))
    count = 0
    for number in range(studies):
        uid = str(make_instance(f"s{number}", 0).StudyInstanceUID)
        found = remote.find({"StudyInstanceUID": uid}, level="SERIES", limit=10)
        count += [match.instances for match in found] == [RESULTS]
    return count


def kill(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


class RestartedOrthanc(threading.Thread):
    """An Orthanc that is killed in the middle of sending, so often, and started again a second later."""

    def __init__(self, folder: Path, kills: int, studies: int) -> None:
        super().__init__(daemon=True)
        self._folder, self._database = folder / "orthanc", folder / "in" / "queue.sqlite"
        self._goals = [(k + 1) * studies * RESULTS // (kills + 1) - RESULTS // 2 for k in range(kills)]
        self.done_when_killed: list[int] = []
        self.results_when_killed: list[int] = []
        self.process = start_orthanc(self._folder)
        self.start()

    def run(self) -> None:
        for goal in self._goals:
            while self._sent() < goal:
                time.sleep(0.005)
            time.sleep(0.02)  # the next study's results are on their way
            kill(self.process)
            self.results_when_killed.append(self._sent())
            self.done_when_killed.append(sum(state == "done" for state, _ in rows_of(self._database)))
            time.sleep(1)
            self.process = start_orthanc(self._folder)

    def _sent(self) -> int:
        if not self._database.is_file():
            return 0
        connection = sqlite3.connect(self._database, timeout=30)
        try:
            return int(connection.execute("SELECT count(*) FROM sent").fetchone()[0])
        except sqlite3.OperationalError:  # the listener has not made its tables yet
            return 0
        finally:
            connection.close()


def run(instances: int, kills: int, folder: Path, *, with_orthanc: bool) -> dict[str, object]:
    studies = [write_study(folder / "source", f"s{n}", PER_STUDY) for n in range(instances // PER_STUDY)]
    settings, database = folder / "pacs.toml", folder / "in" / "queue.sqlite"
    node = DicomNode("MEDSEG", "127.0.0.1", free_port(), timeout_seconds=5)
    settings.write_text(SETTINGS.format(port=node.port) + (TO_ORTHANC if with_orthanc else ""))
    orthanc = RestartedOrthanc(folder, kills, len(studies)) if with_orthanc else None
    listener = start(settings, answers=with_orthanc)
    begin = time.perf_counter()
    senders = [
        threading.Thread(target=send_until_taken, args=(node, [path for s in studies[k::SENDERS] for path in s]))
        for k in range(SENDERS)
    ]
    for sender in senders:
        sender.start()
    for _ in range(kills):
        time.sleep(2)
        kill(listener)
        listener = start(settings, answers=with_orthanc)
    for sender in senders:
        sender.join()
    seconds = time.perf_counter() - begin
    wait_until_done(database, len(studies))
    os.kill(listener.pid, signal.SIGTERM)
    listener.wait(30)
    rows = rows_of(database)
    kept = len(list((folder / "in" / "studies").rglob("*.dcm")))
    report: dict[str, object] = {
        "instances": kept,
        "expected": len(studies) * PER_STUDY,
        "studies done": sum(state == "done" for state, _ in rows),
        "studies": len(studies),
        "counted once": all(revision == PER_STUDY for _, revision in rows),
        "seconds": round(seconds, 1),
        "instances/s": round(kept / seconds),
    }
    if orthanc:
        orthanc.join()
        report["studies done when Orthanc was killed"] = orthanc.done_when_killed
        report["results taken when Orthanc was killed"] = orthanc.results_when_killed
        report["attempts to send that failed"] = settings.with_suffix(".log").read_text().count("study ")
        report["studies answered in Orthanc, each result once"] = results_in_orthanc(len(studies))
        kill(orthanc.process)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--orthanc", action="store_true", help="send results to an Orthanc that is killed as well")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        serve(options.serve)
        return
    if options.orthanc and not options.inside:
        if shutil.which("Orthanc") is None:
            sys.exit("Orthanc is not installed (Debian: orthanc, orthanc-dicomweb)")
        inside = 'ip link set lo up && exec "$@"'
        again = [sys.executable, *sys.argv, "--inside"]
        os.execvp("unshare", ["unshare", "--net", "sh", "-c", inside, "sh", *again])
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(options.instances, options.kills, Path(folder), with_orthanc=options.orthanc), indent=2))


if __name__ == "__main__":
    main()
