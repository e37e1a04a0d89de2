"""Work in processes whose results come in order, taken no further ahead than the memory allows.

`fercli.clusters.in_order` goes on working while nobody takes its results: right for parts that are written to the disk,
wrong for pictures that a slower network has to answer.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import joblib
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from fercli.errors import FercliError

A = TypeVar("A")
R = TypeVar("R")

#: Seconds after which a worker without work ends: one whose parent was killed ends so too.
_IDLE_S = 60


class Workers:
    """Processes that find faces, started when the first work comes; a context manager that ends them.

    Args:
        count: processes; 0 is all cores, 1 is this process.
    """

    def __init__(self, count: int = 0):
        self.count = count or joblib.cpu_count()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, kill_workers=True)
            self._pool = None

    def in_order(
        self, function: Callable[..., R], items: Iterable[A], call: Callable[[A], tuple[Any, ...]], most: int
    ) -> Iterator[tuple[A, R]]:
        """Yield (item, function(*call(item))) in the order of the items.

        Args:
            function: importable by name in other processes.
            items: taken as there is room: at most `most` of them are under way or done and not yet taken.
            call: the arguments for an item.
            most: see `items`; of large items (`Sized.size`, in bytes), as many as fit into 256 MiB, and at least two.

        Raises:
            FercliError: a worker was killed.
        """
        if self.count == 1:
            import cv2

            threads = cv2.getNumThreads()
            for item in items:
                yield item, function(*call(item))
            cv2.setNumThreads(threads)
            return
        if self._pool is None:
            # One thread each: the processes are as many as there are cores.
            self._pool = ProcessPoolExecutor(
                self.count, timeout=_IDLE_S, initializer=_begin, env={"OMP_NUM_THREADS": "1"}
            )
        waiting: deque[tuple[A, Any]] = deque()
        try:
            for item in items:
                waiting.append((item, self._pool.submit(function, *call(item))))
                while len(waiting) >= most or (len(waiting) > 1 and _bytes_of(waiting) > _MOST_BYTES):
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        except TerminatedWorkerError as failure:
            raise FercliError(
                "a worker process was killed, most likely for want of memory; try fewer: --workers 1"
            ) from failure
        finally:
            for _, future in waiting:
                future.cancel()


_MOST_BYTES = 256 << 20


def _bytes_of(waiting: Iterable[tuple[Any, Any]]) -> int:
    return sum(getattr(item, "size", 0) for item, _ in waiting)


def _begin() -> None:
    with suppress(Exception):  # a process that cannot load it is told of by its first piece of work
        import cv2

        cv2.setNumThreads(1)
    # Ctrl-C reaches the whole group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
