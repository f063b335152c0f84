"""A folder is one process's at a time."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medseg.errors import OutputLocked
from medseg.files import locked_folder

HOLD = """
import sys, time
from pathlib import Path
from medseg.locks import locked_folder
with locked_folder(Path(sys.argv[1]), ""):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_holder_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with locked_folder(folder, "first"):
        second = locked_folder(folder, "somebody is at work")
        with pytest.raises(OutputLocked, match="somebody is at work"):
            second.__enter__()
    with locked_folder(folder, "second"), locked_folder(tmp_path / "other", "third"):
        pass


def test_a_killed_holder_leaves_the_folder_free(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(OutputLocked, match="taken"), locked_folder(tmp_path, "taken"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with locked_folder(tmp_path, "taken"):
        pass
