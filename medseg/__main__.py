"""``python -m medseg``, the same as the command ``medseg``.

Python itself imports from the current folder before this file is reached: among somebody else's files use ``medseg``,
or ``python -P -m medseg``.
"""

from medseg._safe_path import forget_current_folder

forget_current_folder()

from medseg.cli.main import main  # noqa: E402  not before the current folder is off the path

main()
