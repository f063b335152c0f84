"""A process that cannot reach a network, for bundles whose own code is to run."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys

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
