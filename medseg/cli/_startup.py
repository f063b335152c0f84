"""How the process of a command starts: behind a wall where a bundle runs, and quickly.

``import monai`` imports every module of MONAI, and with them ignite (which loads PyTorch's distributed training),
matplotlib and scikit-learn: half of the time until the first case is read. MONAI does without them where they are not
installed, so they are hidden from it while it is imported. That lasts for the life of the process, as the wall does,
and both are therefore only for a process that is this one command.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.cli._app import terminal
from medseg.errors import UsageError

if TYPE_CHECKING:
    from medseg.confinement import Reach

_WITHOUT = "MEDSEG_UNCONFINED"
"""Set to anything, no wall is raised: to compare, or where a system denies more than it was asked to."""


def confine_command(
    writable: Iterable[Path], reach: Reach | None = None, *, imports: str, own_code: bool = False
) -> None:
    """Raise the wall of :mod:`medseg.confinement` if this process is the command itself; tell what it cannot hold.

    ``writable`` are folders that exist, ``reach`` is nothing by default, ``imports`` a module that the command needs.
    Raises ``UsageError`` if a bundle's ``own_code`` is to run, and sockets cannot be denied.
    """
    if _is_program() and _WITHOUT not in os.environ:
        from medseg.confinement import NOTHING, confine
        from medseg.ingest.pseudonyms import pseudonym

        pseudonym("made while its key can be kept")
        _keep_bytecode(imports)
        for note in confine(writable, reach or NOTHING):
            terminal().print(f"note: {note}")
    if own_code and not _is_offline():
        raise UsageError(
            "a bundle's own code runs only without network, and this process cannot cut it: use the command medseg, "
            f"without {_WITHOUT}, on Linux (x86-64 or ARM-64)"
        )


def _is_offline() -> bool:
    try:
        socket.socket().close()
    except PermissionError:
        return True
    return False


def _keep_bytecode(module: str) -> None:
    """Let a child import what the command will, if nobody has yet: behind the wall each run would compile it anew."""
    found = [spec.origin for spec in map(find_spec, ("monai", module)) if spec is not None and spec.origin is not None]
    kept = [Path(cache_from_source(origin)) for origin in found]
    lacking = [path for path in kept if not path.exists() and os.access(path.parent.parent, os.W_OK)]
    if sys.dont_write_bytecode or not lacking:
        return
    child = os.fork()
    if child == 0:
        try:
            import_module(module)
        finally:  # what goes wrong is told where it is imported to be used
            os._exit(0)
    os.waitpid(child, 0)


_HIDDEN = ("ignite", "matplotlib", "pandas", "sklearn", "tensorboard")


def import_monai_quickly() -> bool:
    """Import MONAI without optional parts, if this process is the command itself; say whether that was done."""
    if "monai" in sys.modules or not _is_program():
        return False
    hidden = [name for name in _HIDDEN if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # makes an import fail
    try:
        import monai  # noqa: F401
    finally:
        for name in hidden:
            del sys.modules[name]
    return True


def _is_program() -> bool:
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    return (spec is not None and spec.name == "medseg.__main__") or Path(getattr(main, "__file__", "")).stem == "medseg"
