"""Work in parallel: independent jobs on a thread for each CPU. Numpy releases the GIL where it works on arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed

from ..fabric.host import probe_host

Job = Callable[[], object]


def run_jobs(jobs: Iterable[Job]) -> None:
    """Run ``jobs``, begun in their order, and return when all are done.

    The first exception is raised once the jobs under way have ended; those not begun by then are dropped.
    """
    with ThreadPoolExecutor(len(probe_host().cpus), thread_name_prefix="waferline-pack") as pool:
        futures = [pool.submit(job) for job in jobs]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
