"""Run work in processes on this machine, or on the workers of a dask or ray cluster through joblib.

Results come either in order, with a bounded number in memory, or each as soon as it is ready. A cluster's workers must
have fercli installed and see the same files under the same paths.

A worker is a Python process with two pipes: one for incoming calls and one for results. It ends when its input pipe
closes, so that it never outlives its parent, however the parent ended. Nothing else is shared: no lock, no semaphore
and no file. So a killed process leaves nothing behind, no wait lasts for ever, and /dev/shm is not needed.
"""

from __future__ import annotations

import itertools
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import IO, Any, TypeVar

with warnings.catch_warnings():
    # Where /dev/shm is not writable, joblib warns about it even if it is not needed.
    warnings.filterwarnings("ignore", message=".*joblib will operate in serial mode")
    import joblib
    from joblib.externals.loky import cpu_count

from fercli import console
from fercli.errors import FercliError

A = TypeVar("A")
R = TypeVar("R")

#: Calls that a worker holds at a time: the next one is ready when it has finished the first.
_AT_HAND = 2
_KILLED = "a worker process was killed, probably because memory ran out; run the same command again to resume"
#: Seconds to wait for a killed worker to end before it is left to the system.
_PATIENCE_S = 2
#: Bytes of large items that may be in progress at once.
_MOST_BYTES = 256 << 20
_LENGTH = struct.Struct("<Q")
#: The code that a worker's interpreter runs. It sets the path before any import: the working folder is not on it.
_BEGIN = "import sys; sys.path[:] = sys.argv[1:]; from fercli.parallel import work; work()"


class WorkerEnded(FercliError):
    """A worker process ended in the middle of its work."""


class WorkerTrace(Exception):
    """The traceback of an error in a worker process, as text; set as the cause of that error in this process."""


class Workers:
    """Worker processes, started with the first work; a context manager that ends them.

    Args:
        count: number of processes; 0 is all cores that this process may use (affinity, container), 1 is this process.
        environments: environment variables of each process, in addition to this one's. If given, even a single worker
            is a separate process.
        at_hand: calls that a process holds at a time. With 1, no call waits behind a long one.
    """

    def __init__(self, count: int = 0, environments: Sequence[Mapping[str, str]] = (), at_hand: int = _AT_HAND):
        self.count = count or cpu_count()
        self._here = self.count == 1 and not environments
        self._environments = environments or [{}]
        self._at_hand = at_hand
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._workers: list[_Worker] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        workers, self._workers = self._workers, []
        # Results are no longer wanted, so the processes are killed in the middle of their work.
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join()

    def in_order(
        self, function: Callable[..., R], items: Iterable[A], call: Callable[[A], tuple[Any, ...]], most: int
    ) -> Iterator[tuple[A, R]]:
        """Yield (item, function(*call(item))) in the order of the items.

        Args:
            function: importable by name in other processes.
            items: consumed lazily: at most `most` of them are in progress, or finished but not yet yielded.
            call: returns the arguments for an item.
            most: see `items`. Large items (`Sized.size`, in bytes) are also limited to 256 MiB in total, but at least
                two are taken.

        Raises:
            WorkerEnded: a worker was killed, or crashed.
        """
        if self._here:
            import cv2

            threads = cv2.getNumThreads()
            try:
                for item in items:
                    yield item, function(*call(item))
            finally:
                cv2.setNumThreads(threads)
            return
        self._start()
        waiting: deque[tuple[A, Future[R]]] = deque()
        try:
            for item in items:
                waiting.append((item, self._submit(function, call(item))))
                while len(waiting) >= most or (len(waiting) > 1 and _bytes_of(waiting) > _MOST_BYTES):
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:  # those that no worker has started
                future.cancel()

    def as_completed(
        self, function: Callable[..., R], items: Iterable[A], call: Callable[[A], tuple[Any, ...]]
    ) -> Iterator[tuple[A, R | WorkerEnded]]:
        """Yield (item, function(*call(item))) as soon as each result is ready.

        Args:
            function, call: as in `in_order`.
            items: each is taken in this thread, once a process is free for it.

        If the process of an item was killed or crashed, the item's result is the `WorkerEnded`, and another process
        replaces it.
        """
        if self._here:
            for item in items:
                yield item, function(*call(item))
            return
        waiting: dict[Future[R], A] = {}

        def done() -> Iterator[tuple[A, R | WorkerEnded]]:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                item = waiting.pop(future)
                try:
                    yield item, future.result()
                except WorkerEnded as failure:
                    yield item, failure

        try:
            for item in items:
                self._start()
                waiting[self._submit(function, call(item))] = item
                if len(waiting) >= self.count:
                    yield from done()
            while waiting:
                yield from done()
        finally:
            for future in waiting:
                future.cancel()

    def signal(self, number: int) -> None:
        """Send a signal to all processes."""
        for worker in self._workers:
            worker.signal(number)

    def _start(self) -> None:
        """Start missing processes and replace ended ones, each with its own environment."""
        for place in range(self.count):
            environment = self._environments[place % len(self._environments)]
            if place >= len(self._workers):
                self._workers.append(_Worker(self._calls, environment, self._at_hand))
            elif not self._workers[place].serves:
                self._workers[place].kill()
                self._workers[place] = _Worker(self._calls, environment, self._at_hand)

    def _submit(self, function: Callable[..., R], arguments: tuple[Any, ...]) -> Future[R]:
        future: Future[R] = Future()
        self._calls.put((future, pickle.dumps((function, arguments), pickle.HIGHEST_PROTOCOL)))
        return future


#: A queued call: the future for its result, and the pickled function and arguments. None ends the thread that gets it.
_Call = tuple[Future, bytes]


class _Worker:
    """One process, and the thread that passes it calls from the queue and collects its results."""

    def __init__(self, calls: queue.SimpleQueue[_Call | None], environment: Mapping[str, str], at_hand: int):
        self._calls, self._at_hand, self.serves = calls, at_hand, True
        self._process = subprocess.Popen(
            [sys.executable, *subprocess._args_from_interpreter_flags(), "-c", _BEGIN, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if _is_open(2) else subprocess.DEVNULL,
            # One thread each: there are as many processes as cores.
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            # Ctrl-C reaches the terminal's whole process group; only the parent decides how to handle it.
            start_new_session=True,
        )
        self._thread = threading.Thread(target=self._serve, name="fercli-worker", daemon=True)
        self._thread.start()

    def signal(self, number: int) -> None:
        with suppress(OSError):
            self._process.send_signal(number)

    def kill(self) -> None:
        with suppress(OSError):
            self._process.kill()
        if self.serves:
            self._calls.put(None)

    def join(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE_S)
        self._thread.join(_PATIENCE_S)

    def _serve(self) -> None:
        given: deque[Future] = deque()
        try:
            while True:
                with suppress(queue.Empty):
                    while len(given) < self._at_hand:
                        call = self._calls.get(block=not given)
                        if call is None:
                            return
                        if call[0].set_running_or_notify_cancel():
                            given.append(call[0])
                            _send(self._process.stdin, call[1])
                done, result = pickle.loads(_received(self._process.stdout))
                future = given.popleft()
                if done:
                    future.set_result(result)
                    continue
                failure, trace = result
                failure.__cause__ = WorkerTrace(f"\n{trace}")
                future.set_exception(failure)
        except Exception:  # the pipe failed, or a result cannot be read
            self.serves = False  # set before callers see the error and submit more
            for future in given:
                future.set_exception(WorkerEnded(*self._why()))
        finally:
            with suppress(OSError):  # flushing unsent data fails again
                self._process.stdin.close()
            self._process.stdout.close()

    def _why(self) -> tuple[str, str]:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE_S)
        code = self._process.returncode
        if code in (None, -getattr(signal, "SIGKILL", 9)):
            return "a worker process was killed, probably because memory ran out", "use fewer workers: --workers 1"
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        return f"a worker process ended {how} in the middle of its work", "run without worker processes: --workers 1"


def _bytes_of(waiting: Iterable[tuple[Any, Any]]) -> int:
    return sum(getattr(item, "size", 0) for item, _ in waiting)


def _send(to: IO[bytes], data: bytes) -> None:
    to.write(_LENGTH.pack(len(data)))
    to.write(data)
    to.flush()


def _received(source: IO[bytes]) -> bytes:
    """Return what `_send` sent; raises EOFError at the pipe's end."""
    head = source.read(_LENGTH.size)
    data = source.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else b""
    if not data:
        raise EOFError("the other side of the pipe is closed")
    return data


def _is_open(handle: int) -> bool:
    try:
        os.fstat(handle)
    except OSError:
        return False
    return True


def work() -> None:
    """Run as a worker: execute calls from stdin until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, results = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # Output printed by libraries must not mix with the results.
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    calls: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(source, calls), daemon=True).start()
    with suppress(Exception):  # if it cannot be loaded, the first call reports that
        import cv2

        cv2.setNumThreads(1)
    while True:
        answer = _answer(calls.get())
        try:
            _send(results, answer)
        except OSError:  # the parent has gone
            os._exit(1)


def _read(source: IO[bytes], calls: queue.SimpleQueue[bytes]) -> None:
    """Read calls as they arrive, so that a closed pipe is noticed at once, even in the middle of a call."""
    try:
        while True:
            calls.put(_received(source))
    except BaseException:
        os._exit(0)


def _answer(call: bytes) -> bytes:
    """Run a call; return, pickled, whether it succeeded and what it returned or raised."""
    try:
        function, arguments = pickle.loads(call)
        return pickle.dumps((True, function(*arguments)), pickle.HIGHEST_PROTOCOL)
    except Exception as failure:
        try:
            pickle.loads(pickle.dumps(failure))
        except Exception:  # it cannot be pickled
            failure = RuntimeError(f"{type(failure).__name__}: {failure}")
        return pickle.dumps((False, (failure, traceback.format_exc())), pickle.HIGHEST_PROTOCOL)


def in_order(
    function: Callable[..., R], arguments: Iterator[tuple[Any, ...]], count: int, options: Any, section: str
) -> Iterator[R]:
    """Yield ``function(*a)`` for each of the `count` arguments, in their order, as results arrive.

    Args:
        function: importable by name in other processes.
        arguments: the arguments of each call; consumed only slightly ahead of the work, so that memory stays bounded.
        count: the number of calls.
        options: has `backend` (as the run spec's ``prepare.backend``), `workers` (0: all cores, or the whole cluster)
            and `cluster` (the address of a dask scheduler or a ray head; None: DASK_SCHEDULER_ADDRESS or RAY_ADDRESS).
        section: the section of the spec with these keys, for messages.

    Raises:
        FercliError: the backend is not installed, there is no cluster at the address, or a worker was killed.
    """
    if not count:
        return
    remote = options.backend in ("dask", "ray")
    workers = options.workers or (-1 if remote else cpu_count())
    if not remote and (options.backend in ("loky", "sequential") or min(workers, count) <= 1):
        processes = 1 if options.backend == "sequential" else max(1, min(workers, count))
        # The most results that may wait for an earlier one; each takes a few megabytes.
        most = max(processes + 2, min(4 * processes, 32))
        with Workers(processes) as pool:
            try:
                yield from (result for _, result in pool.in_order(function, arguments, lambda given: given, most))
            except WorkerEnded as failure:
                raise FercliError(f"{_KILLED}, with fewer workers (--set {section}.workers=1)") from failure
        return
    jobs = (joblib.delayed(function)(*given) for given in arguments)
    workers = workers if remote else min(workers, count)
    with _backend(options.backend, options.cluster, section, workers):
        try:
            if options.backend == "ray":
                # Ray's backend returns all results of a call at once, so a few rounds of work are submitted at a time.
                while batch := list(itertools.islice(jobs, 4 * joblib.effective_n_jobs())):
                    yield from joblib.Parallel()(batch)
            else:
                yield from joblib.Parallel(return_as="generator")(jobs)
        except Exception as failure:
            if not remote or isinstance(failure, FercliError):
                raise
            raise _cluster_failed(options.backend, failure) from failure


class Cluster:
    """The workers of a dask or ray cluster; a context manager that connects to it and disconnects.

    Each item runs in its own process, started by its worker. A worker may run several items at a time in threads, but
    torch's settings, such as its random state, apply to a whole process.

    Args:
        backend: ``dask`` or ``ray``.
        address: as `options.cluster` of `in_order`.
        section: the section of the spec to name in messages.
        count: the largest number of items at a time; 0 is as many as the cluster has slots for.
        environment: environment variables of the processes, in addition to their workers' own.

    Raises:
        FercliError: as `in_order`.
    """

    def __init__(self, backend: str, address: str | None, section: str, count: int, environment: Mapping[str, str]):
        self._backend, self._address, self._section = backend, address, section
        self._count, self._environment, self._left = count, environment, ExitStack()

    def __enter__(self) -> Cluster:
        self._left.enter_context(_backend(self._backend, self._address, self._section, -1))
        return self

    def __exit__(self, *_: object) -> None:
        self._left.close()

    def as_completed(
        self, function: Callable[..., R], items: Iterable[A], call: Callable[[A], tuple[Any, ...]]
    ) -> Iterator[tuple[A, R | WorkerEnded]]:
        """As `Workers.as_completed`, but items are taken in another thread. Ray returns all results at the end."""
        taken: list[A] = []

        def jobs() -> Iterator[Any]:
            for item in items:
                taken.append(item)
                yield joblib.delayed(_in_a_process)(len(taken) - 1, self._environment, function, call(item))

        # One at a time: an item that takes an hour must not wait behind another in a batch.
        how = {"batch_size": 1, "pre_dispatch": self._count or "n_jobs"}
        if self._backend != "ray":
            how["return_as"] = "generator_unordered"
        try:
            for number, result in joblib.Parallel(**how)(jobs()):
                yield taken[number], result
        except Exception as failure:
            if isinstance(failure, FercliError):
                raise
            raise _cluster_failed(self._backend, failure) from failure


def _in_a_process(
    number: int, environment: Mapping[str, str], function: Callable[..., R], arguments: tuple[Any, ...]
) -> tuple[int, R | WorkerEnded]:
    with Workers(1, [environment], at_hand=1) as alone:
        return number, next(alone.as_completed(function, [arguments], lambda given: given))[1]


def _cluster_failed(backend: str, failure: Exception) -> FercliError:
    """Return the error for a failed cluster; each backend raises its own error types when it loses a worker."""
    why = str(failure).splitlines()[0] if str(failure) else type(failure).__name__
    return FercliError(f"the {backend} cluster failed ({why}); run the same command again to resume")


@contextmanager
def _backend(backend: str, address: str | None, section: str, workers: int) -> Iterator[None]:
    if backend == "ray":
        _join_ray(address, section)
    client = _dask_client(address, section) if backend == "dask" else nullcontext()
    with client, joblib.parallel_config(backend=backend, n_jobs=workers):
        yield


def _dask_client(address: str | None, section: str) -> Any:
    try:
        from distributed import Client
    except ImportError:
        raise FercliError(f"{section}.backend is dask, which is not installed; pip install 'fercli[dask]'") from None
    address = address or os.environ.get("DASK_SCHEDULER_ADDRESS")
    if not address:
        raise FercliError(
            f"{section}.backend is dask, but its scheduler is not given; use --set {section}.cluster=tcp://node1:8786"
        )
    try:
        client = Client(address)
    except (OSError, TimeoutError, ValueError) as failure:
        raise FercliError(f"no dask scheduler answers at {address} ({failure}); check {section}.cluster") from failure
    console.say(f"dask cluster {address}: {sum(client.nthreads().values())} worker threads")
    return client


def _join_ray(address: str | None, section: str) -> None:
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError:
        raise FercliError(f"{section}.backend is ray, which is not installed; pip install 'fercli[ray]'") from None
    if not ray.is_initialized():
        try:
            # Without an address, ray joins the cluster in RAY_ADDRESS, or starts workers on this machine.
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        except (ConnectionError, ValueError, RuntimeError) as failure:
            raise FercliError(f"no ray cluster answers at {address} ({failure}); check {section}.cluster") from failure
    register_ray()
