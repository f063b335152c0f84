"""A quicker start: MONAI without those of its optional parts that labelling images never touches.

``import monai`` imports every module of MONAI, and with them ignite (which loads PyTorch's distributed training),
matplotlib and scikit-learn: half of the time until the first case is read. MONAI does without them where they are not
installed, so they are hidden from it while it is imported. That lasts for the life of the process, and is therefore
done only in a process that is this one command.
"""

from __future__ import annotations

import sys
from pathlib import Path

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
