"""How the process of a command starts: without network where a bundle's own code is to run, and quickly elsewhere.

``import monai`` imports every module of MONAI, and with them ignite (which loads PyTorch's distributed training),
matplotlib and scikit-learn: half of the time until the first case is read. MONAI does without them where they are not
installed, so they are hidden from it while it is imported. That lasts for the life of the process, and is therefore
done only in a process that is this one command.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

from medseg.errors import UsageError

_GET_FLAGS = 0x8913  # SIOCGIFFLAGS of Linux
_UP = 0x1


def network_is_off() -> bool:
    """Whether no network interface but the loopback is up."""
    return not any(_is_up(name) for _, name in socket.if_nameindex() if name != "lo")


def _is_up(name: str) -> bool:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        answer = fcntl.ioctl(handle, _GET_FLAGS, struct.pack("256s", name.encode()))
    return bool(struct.unpack_from("H", answer, 16)[0] & _UP)


def cut_network() -> None:
    """Return in a process without network: start this command line again in a network namespace of its own.

    Raises
    ------
    UsageError
        If the network is up and the system does not let this user cut it.
    """
    if not sys.platform.startswith("linux"):
        raise UsageError(f"on {sys.platform} the network cannot be cut; use Linux, or a container without network")
    if network_is_off():
        return
    unshare = shutil.which("unshare")
    again = [sys.executable, "-m", "medseg", *sys.argv[1:]]
    for options in (["--net"], ["--user", "--map-current-user", "--net"]):
        if unshare and _works([unshare, *options]):
            os.execv(unshare, [unshare, *options, "--", *again])  # noqa: S606  no shell is wanted
    raise UsageError(
        "a bundle's own code runs only without network, and this system does not let medseg cut it (unshare failed); "
        "run the command in a container without network, such as docker run --network none"
    )


def _works(command: list[str]) -> bool:
    return subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0  # noqa: S603  our words


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
