"""The listening node under load: five senders at once, the listener killed with -9 in between, nothing lost or doubled.

python benchmarks/bench_listener.py [--instances 2000] [--kills 3]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from medseg.pacs.network import NetworkRemote
from medseg.pacs.nodes import DicomNode
from medseg.pacs.remote import PacsError
from tests.pacs.conftest import write_study

SENDERS = 5
SETTINGS = """
[listener]
folder = "in"
port = {port}
allowed_callers = ["MEDSEG"]
quiet_seconds = 2
min_free_gb = 0
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(settings: Path) -> subprocess.Popen[str]:
    code = "from medseg.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "pacs", "listen", str(settings)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def send_until_taken(node: DicomNode, files: list[Path]) -> None:
    left = list(files)
    while left:
        try:
            left = list(NetworkRemote(node).send(left).failed)
        except PacsError:
            time.sleep(0.2)


def run(instances: int, kills: int, folder: Path) -> dict[str, object]:
    per_study = 100
    studies = [write_study(folder / "source", f"s{n}", per_study) for n in range(instances // per_study)]
    settings = folder / "pacs.toml"
    node = DicomNode("MEDSEG", "127.0.0.1", free_port(), timeout_seconds=5)
    settings.write_text(SETTINGS.format(port=node.port))
    listener = start(settings)
    begin = time.perf_counter()
    senders = [
        threading.Thread(target=send_until_taken, args=(node, [path for s in studies[k::SENDERS] for path in s]))
        for k in range(SENDERS)
    ]
    for sender in senders:
        sender.start()
    for _ in range(kills):
        time.sleep(2)
        os.kill(listener.pid, signal.SIGKILL)
        listener.wait()
        listener = start(settings)
    for sender in senders:
        sender.join()
    seconds = time.perf_counter() - begin
    time.sleep(4)
    os.kill(listener.pid, signal.SIGTERM)
    listener.wait(30)
    files = list((folder / "in" / "studies").rglob("*.dcm"))
    rows = sqlite3.connect(folder / "in" / "queue.sqlite").execute("SELECT state, revision FROM study").fetchall()
    return {
        "instances": len(files),
        "expected": len(studies) * per_study,
        "studies done": sum(state == "done" for state, _ in rows),
        "studies": len(studies),
        "counted once": all(revision == per_study for _, revision in rows),
        "seconds": round(seconds, 1),
        "instances/s": round(len(files) / seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(options.instances, options.kills, Path(folder)), indent=2))


if __name__ == "__main__":
    main()
