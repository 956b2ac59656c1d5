"""A progress bar for what takes seconds; on a terminal only."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

WORTH_A_BAR = 64 << 20  # bytes; less is packed before one could read it


class ProgressBar:
    """Shows on stderr how many of ``total`` bytes are done, from the first to the last or to ``close``.

    Shows nothing where stderr is no terminal, or where there is little to do. Any thread may advance it.
    """

    def __init__(self, description: str, total: int) -> None:
        self._description = description
        self._total = total
        self._done = 0
        self._shown: Progress | None = None
        self._is_wanted = total >= WORTH_A_BAR and sys.stderr.isatty()
        self._lock = threading.Lock()

    def advance(self, done: int) -> None:
        if not self._is_wanted:
            return
        with self._lock:
            if self._shown is None:
                self._shown = self._start()
            self._shown.advance(self._shown.task_ids[0], done)
            self._done += done
        if self._done >= self._total:
            self.close()

    def _start(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        progress = Progress(*columns, console=Console(stderr=True), transient=True)
        progress.add_task(self._description, total=self._total)
        progress.start()
        return progress

    def close(self) -> None:
        """Take the bar away; it does not come back."""
        with self._lock:
            self._is_wanted = False
            if self._shown is not None:
                self._shown.stop()
                self._shown = None
