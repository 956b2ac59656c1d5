"""How this package starts another Python process of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PACKAGE_FOLDER = str(Path(__file__).parents[2])


def python_command(module: str) -> list[str]:
    """The command of a process that runs ``main`` of ``module``, which takes its arguments from ``sys.argv``.

    It imports from where this process does, but not from the current folder: the user's files there, such as one named
    ``queue.py``, are none of its own. ``python -m`` would look there first, and ``-P`` is not known to Python 3.10.
    """
    path = [entry for entry in sys.path if not _is_current_folder(entry)]
    if PACKAGE_FOLDER not in path:  # the current folder is the one that this package lies in
        path.append(PACKAGE_FOLDER)
    run = f"import sys; sys.path[:] = {path!r}; from {module} import main; sys.exit(main())"
    return [sys.executable, "-c", run]


def _is_current_folder(entry: str) -> bool:
    try:
        return os.path.samefile(entry or os.curdir, os.curdir)
    except OSError:  # there is none of that name
        return False
