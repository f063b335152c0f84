"""What a bundle does when it is really used: run by ``python -m tests.bundle.live``, one process for many bundles.

Each task, a line of JSON, is done in a fork with limits of time and memory, and an audit hook that stops and tells what
is opened for writing, connected, started, renamed or removed outside the bundle's folder for outputs. The canary folder
is compared, too, for what is done beside Python.
"""

from __future__ import annotations

import copy
import json
import logging.config
import os
import re
import resource
import runpy
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["main"]

_SECONDS = 3
_BYTES = 6 << 30
_STOPPED = frozenset(
    {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown"}
    | {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "os.fork", "os.forkpty", "pty.spawn"}
    | {"socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "urllib.Request", "sqlite3.connect"}
    | {"shutil.move", "shutil.copyfile", "shutil.rmtree", "ctypes.dlopen", "webbrowser.open", "os.utime", "os.mkfifo"}
)
_NO_MEMORY = re.compile("allocate memory|Unable to allocate|Storage size calculation overflowed|array is too big")
_HARMLESS = ("/dev/null", "__pycache__", "/torchinductor_")


class _Stopped(BaseException):
    """Raised where the hook stops something, past all handlers of errors."""


class _Watch:
    """The hook, and what it has seen."""

    def __init__(self, canary: Path, outputs: tuple[Path, ...]) -> None:
        self.canary, self.outputs, self.seen = canary, outputs, list[str]()
        self.busy = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.busy:
            return
        self.busy = True
        try:
            told = self._told(event, arguments)
        finally:
            self.busy = False
        if told:
            self.seen.append(told)
            raise _Stopped(told)

    def _told(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        if event == "open":
            path, mode, flags = arguments
            if not isinstance(path, str | bytes | os.PathLike):
                return None
            writes = any(letter in str(mode or "") for letter in "wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR)
            name = os.path.abspath(os.fsdecode(path))  # noqa: PTH100  links are not followed
            if name.startswith(str(self.canary)) or (writes and not self._allowed(name)):
                return f"open {name} {mode}"
        elif event in _STOPPED and not (event in {"os.mkdir", "os.remove"} and self._allowed(str(arguments[0]))):
            return f"{event} {str(arguments)[:120]}"
        return None

    def _allowed(self, name: str) -> bool:
        absolute = Path(os.path.abspath(name))  # noqa: PTH100  as above
        return any(word in name for word in _HARMLESS) or any(absolute.is_relative_to(out) for out in self.outputs)


_ERRORS: list[BaseException] = []


@contextmanager
def _noted() -> Iterator[None]:
    """Go on after an error, which is kept."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  whatever a bundle raises
        _ERRORS.append(error)


def _causes(error: BaseException) -> list[BaseException]:
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    return causes


def _config(folder: Path, *names: str) -> Any:
    """Configs as MONAI's command reads them."""
    from monai.bundle import ConfigParser

    files = [next(f for s in ("json", "yaml") if (f := folder / "configs" / f"{n}.{s}").is_file()) for n in names]
    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    parser.read_meta(str(next((folder / "configs").glob("metadata.*"))))
    parser["bundle_root"] = str(folder)
    return parser


def _resolve(parser: Any, *places: str) -> None:
    for place in places or tuple(parser.config):
        with _noted():
            parser.get_parsed_content(place)


def _infer(folder: Path, permission: Any = "everything") -> None:
    """What labelling evaluates, and whatever else stands in the config but is not run."""
    import torch
    from monai.bundle import ConfigParser
    from monai.data import MetaTensor

    from medseg.bundle import Bundle
    from medseg.inference.config import read_inference_config

    opened = Bundle.open(folder, permission)
    with _noted():
        opened.load_network()
    with _noted():
        read = read_inference_config(opened)
        image = MetaTensor(torch.rand(1, 8, 8, 8))
        if read.post.written is not None:
            read.post.written({"image": image, "pred": MetaTensor(torch.rand(2, 8, 8, 8))})
        read.preprocessing({"image": image})
    if permission == "everything":
        config = copy.deepcopy(opened.inference)
        config["bundle_root"] = str(folder)
        _resolve(ConfigParser(config), *(key for key in config if key not in {"run", "initialize", "evaluator"}))


def _train(folder: Path) -> None:
    from monai.bundle import ConfigWorkflow

    from medseg.bundle import Bundle

    opened = Bundle.open(folder, "everything")
    workflow = ConfigWorkflow(
        config_file=str(opened.config_file("train")),
        meta_file=str(folder / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        run_id="run",
    )
    workflow.parser.set(copy.deepcopy(opened.training))
    workflow.parser.set(copy.deepcopy(opened.metadata), workflow.parser.meta_key)
    workflow.parser.update({"bundle_root": str(folder)})
    _resolve(workflow.parser, "output_dir")
    workflow.parser.parse(True)  # as ConfigWorkflow.initialize does
    _resolve(workflow.parser)


def _monai(folder: Path) -> None:
    if (file := folder / "configs" / "logging.conf").is_file():
        with _noted():
            logging.config.fileConfig(file, disable_existing_loggers=False)
    _resolve(_config(folder, "inference"))
    for name in ("multi_gpu_train",):
        if (folder / "configs" / f"{name}.json").is_file():
            _resolve(_config(folder, "train", name))


_COMMANDS: dict[str, Callable[[Path], None]] = {
    "infer": _infer,
    "network": lambda folder: _infer(folder, "network-only"),
    "train": _train,
    "evaluate": lambda folder: _resolve(_config(folder, "train", "evaluate")),
    "monai": _monai,
}


def _careless(folder: Path, proof: str) -> None:
    """How a reader without an audit comes to the attack."""
    if proof.startswith("torch.load "):
        import torch

        torch.load(folder / proof.partition(" ")[2], weights_only=False)
    elif proof.startswith("yaml "):
        import yaml

        content = (folder / "configs" / f"{proof.partition(' ')[2]}.yaml").read_text()
        for document in yaml.unsafe_load_all(content):
            if isinstance(document, dict):
                from monai.bundle import ConfigParser

                _resolve(ConfigParser(document))
    elif proof == "logging":
        logging.config.fileConfig(folder / "configs" / "logging.conf")
    elif proof.startswith("import "):
        runpy.run_path(str(folder / f"{proof.partition(' ')[2]}.py"))
    else:
        config, _, place = proof.partition(":")
        names = {"evaluate": ("train", "evaluate"), "multi_gpu_train": ("train", "multi_gpu_train")}
        parser = _config(folder, *names.get(config, (config,)))
        if config == "train":
            parser.get_parsed_content("output_dir")
            parser.parse(True)
        parser.get_parsed_content(place)


def _done(task: dict[str, Any], pipe: int) -> None:
    """Do one task in this process, which ends with it."""
    folder, canary = Path(task["folder"]), Path(task["canary"])
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.chdir(folder)
    signal.alarm(task.get("seconds", _SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    watch = _Watch(canary, (folder / "eval", folder / "runs", folder / "models"))
    sys.addaudithook(watch)
    try:
        command = task.get("command") or task["proof"]
        if command in _COMMANDS:
            _COMMANDS[command](folder)
        else:
            _careless(folder, task["proof"])
    except _Stopped:
        pass
    except BaseException as error:  # noqa: BLE001  told to the caller
        _ERRORS.append(error)
    watch.busy = True
    causes = [cause for error in _ERRORS for cause in _causes(error)]
    told = "; ".join(f"{type(cause).__name__}: {cause}"[:120] for cause in causes[:4])
    if any(isinstance(cause, MemoryError) or _NO_MEMORY.search(str(cause)) for cause in causes):
        watch.seen.append("memory")
    with os.fdopen(pipe, "w") as out:
        json.dump({"seen": watch.seen, "error": told}, out)
    os._exit(0)


def _answer(task: dict[str, Any]) -> dict[str, Any]:
    """Fork, wait, and look into the canary folder."""
    canary = Path(task["canary"])
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _done(task, writing)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    found: dict[str, Any] = json.loads(text) if text else {"seen": [], "error": ""}
    if not text:
        found["seen"].append("hang" if os.WTERMSIG(status) == signal.SIGALRM else f"ended by {status}")
    found["seen"] += sorted(f"canary: {path.name}" for path in canary.iterdir() if path.name not in _EXPECTED)
    if (canary / "secret").stat().st_atime > 1:
        found["seen"].append("the secret was read")
    if not (canary / "victim").exists():
        found["seen"].append("the victim is gone")
    return found


_EXPECTED = frozenset({"victim", "secret", "fifo"})


def main() -> None:
    """Answer tasks until the input ends."""
    warnings.simplefilter("ignore")
    import monai.engines  # noqa: F401
    import torch
    import torch._dynamo
    import torch.utils.tensorboard
    from monai.bundle import ComponentLocator
    from monai.transforms import LoadImage

    import medseg.inference.config
    import medseg.training  # noqa: F401  imported before the forks

    torch.set_num_threads(1)
    tempfile.gettempdir()
    LoadImage()  # what it imports is there before the forks
    table = (locator := ComponentLocator())._find_classes_or_functions(locator._find_module_names())
    ComponentLocator._find_module_names = lambda self: []
    ComponentLocator._find_classes_or_functions = lambda self, _: table
    output = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        output.write(json.dumps(_answer(json.loads(line))) + "\n")


if __name__ == "__main__":
    main()
