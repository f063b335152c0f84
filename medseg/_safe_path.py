"""The current folder holds data, never code: nothing in it is imported here, nor by a process that is started.

Python looks for modules first where it was started (``python -m``, ``python -c``, and with them the workers of every
pool), so that a ``struct.py`` among somebody's studies would be run. This file imports only what an interpreter has
loaded anyway: nothing is searched for before the path is clean.
"""

import os
import sys

VARIABLE = "PYTHONSAFEPATH"
"""Set to anything, Python leaves the current folder out of ``sys.path``, also in all that a process starts."""

_LISTS = ("PYTHONPATH", "PATH", "LD_LIBRARY_PATH")
"""Lists of folders in which an empty or relative entry means the current folder, or one below it."""

_done = False


def forget_current_folder() -> None:
    """Take the current folder out of the paths of this process and of all that it starts, once.

    Only for a process that is the command. The folder that medseg itself was imported from stays.
    """
    global _done  # a second call would not know which entry was that of the current folder
    if _done:
        return
    _done = True
    if not sys.flags.safe_path and sys.path[:1] in ([""], [os.path.abspath("")]):  # noqa: PTH100
        _drop(sys.path[0])
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep) if "PYTHONPATH" in os.environ else []
    for entry in given:
        if not os.path.isabs(entry) and os.path.abspath(entry) not in given:  # noqa: PTH100,PTH117
            _drop(os.path.abspath(entry))  # noqa: PTH100  as site has put it
    _drop("")
    os.environ[VARIABLE] = "1"
    for name in _LISTS:
        kept = [entry for entry in os.environ.get(name, "").split(os.pathsep) if os.path.isabs(entry)]  # noqa: PTH117
        if kept:
            os.environ[name] = os.pathsep.join(kept)
        else:
            os.environ.pop(name, None)


def _drop(entry: str) -> None:
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100,PTH120
    if entry in sys.path and (entry != own or sys.path.count(own) > 1):
        sys.path.remove(entry)
