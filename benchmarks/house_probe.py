"""What one ``medseg infer`` loads, and how deep the network lies under the command.

``python benchmarks/house_probe.py ANSWER CLASS ARGUMENT...`` (what :func:`run_once` starts)

Frames are counted whose file lies in the package, from the command to the first and to the deepest call of a network
of class CLASS. A network that is run by another thread is as deep as the call that started the thread plus the frames
in it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np


class Watch:
    """Counts frames of the package whenever the network is called from outside."""

    def __init__(self, network: str) -> None:
        found = importlib.util.find_spec("medseg")
        assert found is not None
        assert found.origin is not None
        self.package = str(Path(found.origin).parent)
        self.network = network
        self.calls: list[list[str]] = []
        self._begun: dict[threading.Thread, list[str]] = {}
        self._inside = threading.local()

    def frames(self) -> list[str]:
        """The package's functions that are at work, outermost first, those that started this thread included."""
        found: list[str] = []
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(self.package):
                found.append(f"{file.removeprefix(self.package)[1:]}:{frame.f_code.co_qualname}")
            frame = frame.f_back
        return [*self._begun.get(threading.current_thread(), []), *reversed(found)]

    def install(self) -> None:
        """Watch the starts of threads and the calls of networks from now on."""
        import torch  # only the process that is watched needs it

        start, call = threading.Thread.start, torch.nn.Module.__call__

        def started(thread: threading.Thread) -> None:
            self._begun[thread] = self.frames()
            start(thread)

        def called(module: Any, *arguments: Any, **keywords: Any) -> Any:
            if type(module).__name__ == self.network and not getattr(self._inside, "yes", False):
                self.calls.append(self.frames())
            self._inside.yes, before = True, getattr(self._inside, "yes", False)
            try:
                return call(module, *arguments, **keywords)
            finally:
                self._inside.yes = before

        threading.Thread.start = started  # type: ignore[method-assign, assignment]
        torch.nn.Module.__call__ = called  # type: ignore[method-assign]


def run_once(tree: Path) -> dict[str, str]:
    """Figures of one ``medseg infer`` of one synthetic case through the hippocampus bundle that a checkout ships."""
    (bundle,) = (tree.resolve() / "bundles").glob("hippocampus*")
    network = json.loads((bundle / "configs" / "inference.json").read_text())["network_def"]["_target_"].split(".")[-1]
    with tempfile.TemporaryDirectory() as name:
        answer, image = Path(name, "answer.json"), Path(name, "case.nii.gz")
        noise = np.random.default_rng(0).standard_normal((36, 50, 34)).astype(np.float32)
        nib.save(nib.Nifti1Image(noise, np.eye(4)), image)
        words = ["infer", str(bundle), str(image), "-o", str(Path(name, "out")), "--device", "cpu"]
        command = [sys.executable, str(Path(__file__).resolve()), str(answer), network, *words]
        environment = {**os.environ, "PYTHONPATH": str(tree.resolve())}
        done = subprocess.run(command, cwd=name, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"medseg infer of {tree} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        found = json.loads(answer.read_text())
    if not found["calls"]:
        raise SystemExit(f"medseg infer of {tree} called no {network}: how the network is run has changed")
    return {
        "modules that one infer loads": str(len(found["loaded"])),
        "frames to the network, first call": str(len(found["calls"][0])),
        "frames to the network, deepest": str(max(map(len, found["calls"]))),
    }


def main() -> None:
    answer, network, *arguments = sys.argv[1:]
    watch = Watch(network)
    watch.install()
    sys.argv = ["medseg", *arguments]
    try:
        runpy.run_module("medseg", run_name="__main__", alter_sys=True)
    finally:
        loaded = sorted(name for name in sys.modules if name == "medseg" or name.startswith("medseg."))
        Path(answer).write_text(json.dumps({"loaded": loaded, "calls": watch.calls}), encoding="utf-8")


if __name__ == "__main__":
    main()
