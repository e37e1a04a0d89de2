"""Work in processes of this machine, or over the workers of a dask or ray cluster through joblib.

Results come in order, taken no further ahead than the memory allows. A cluster's workers must have fercli installed and
see the datasets under the same paths.

A worker is a Python process with two pipes: calls come in by the one, results go out by the other. It ends when its
first pipe does, so that it never outlives its parent, however that ended. Nothing else is shared: no lock, no semaphore
and no file, so that a killed process leaves nothing behind, no wait lasts for ever, and /dev/shm is not needed.
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
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from typing import IO, Any, TypeVar

with warnings.catch_warnings():
    # Where /dev/shm cannot be written to, joblib warns of it whoever needs it.
    warnings.filterwarnings("ignore", message=".*joblib will operate in serial mode")
    import joblib
    from joblib.externals.loky import cpu_count

from fercli import console
from fercli.errors import FercliError

A = TypeVar("A")
R = TypeVar("R")

#: Calls that a worker has at a time: the next one lies ready when it is done with the first.
_AT_HAND = 2
_KILLED = "a worker process was killed, most likely for want of memory; run the same command again to go on"
#: Seconds that a killed worker may take to end before it is left to the system.
_PATIENCE_S = 2
#: Bytes of large items that may be under way.
_MOST_BYTES = 256 << 20
_LENGTH = struct.Struct("<Q")
#: What a worker's interpreter runs. The path is set before anything is imported: the working folder is not on it.
_BEGIN = "import sys; sys.path[:] = sys.argv[1:]; from fercli.parallel import work; work()"


class WorkerEnded(FercliError):
    """A worker process ended in the middle of its work."""


class WorkerTrace(Exception):
    """What led to an error in a worker process, as text: the cause of that error in this one."""


class Workers:
    """Worker processes, started when the first work comes; a context manager that ends them.

    Args:
        count: processes; 0 is all cores that this process may use (affinity, container), 1 is this process.
    """

    def __init__(self, count: int = 0):
        self.count = count or cpu_count()
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._workers: list[_Worker] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        workers, self._workers = self._workers, []
        # What nobody waits for any more is not waited for: the processes are killed in the middle of it.
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
            items: taken as there is room: at most `most` of them are under way or done and not yet taken.
            call: the arguments for an item.
            most: see `items`; of large items (`Sized.size`, in bytes), as many as fit into 256 MiB, and at least two.

        Raises:
            WorkerEnded: a worker was killed, or crashed.
        """
        if self.count == 1:
            import cv2

            threads = cv2.getNumThreads()
            try:
                for item in items:
                    yield item, function(*call(item))
            finally:
                cv2.setNumThreads(threads)
            return
        self._workers = [worker for worker in self._workers if worker.serves()]
        while len(self._workers) < self.count:
            self._workers.append(_Worker(self._calls))
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
            for _, future in waiting:  # those that no worker has yet
                future.cancel()

    def _submit(self, function: Callable[..., R], arguments: tuple[Any, ...]) -> Future[R]:
        future: Future[R] = Future()
        self._calls.put((future, pickle.dumps((function, arguments), pickle.HIGHEST_PROTOCOL)))
        return future


#: A call on its way: where its result goes, and the pickled function and arguments. None ends the thread that gets it.
_Call = tuple[Future, bytes]


class _Worker:
    """One process, and the thread that gives it calls from the queue and takes its results."""

    def __init__(self, calls: queue.SimpleQueue[_Call | None]):
        self._calls = calls
        self._process = subprocess.Popen(
            [sys.executable, *subprocess._args_from_interpreter_flags(), "-c", _BEGIN, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if _is_open(2) else subprocess.DEVNULL,
            # One thread each: the processes are as many as there are cores.
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            # Ctrl-C reaches the whole group of a terminal; the parent alone decides what it means.
            start_new_session=True,
        )
        self._thread = threading.Thread(target=self._serve, name="fercli-worker", daemon=True)
        self._thread.start()

    def serves(self) -> bool:
        return self._thread.is_alive()

    def kill(self) -> None:
        with suppress(OSError):
            self._process.kill()
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
                    while len(given) < _AT_HAND:
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
        except Exception:  # the pipe's, or of a result that cannot be read
            for future in given:
                future.set_exception(WorkerEnded(self._why()))
        finally:
            with suppress(OSError):  # what was not sent yet fails again
                self._process.stdin.close()
            self._process.stdout.close()

    def _why(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE_S)
        code = self._process.returncode
        if code in (None, -getattr(signal, "SIGKILL", 9)):
            return "a worker process was killed, most likely for want of memory; try fewer: --workers 1"
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        return f"a worker process was ended {how} in the middle of its work; try without: --workers 1"


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
    """Be a worker: answer the calls that come on stdin until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, results = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # What a library prints must not get among the results.
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    calls: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(source, calls), daemon=True).start()
    with suppress(Exception):  # a process that cannot load it is told of by its first piece of work
        import cv2

        cv2.setNumThreads(1)
    while True:
        answer = _answer(calls.get())
        try:
            _send(results, answer)
        except OSError:  # nobody listens any more
            os._exit(1)


def _read(source: IO[bytes], calls: queue.SimpleQueue[bytes]) -> None:
    """Take calls as they come, so that the end of the pipe is seen at once, even in the middle of a call."""
    try:
        while True:
            calls.put(_received(source))
    except BaseException:
        os._exit(0)


def _answer(call: bytes) -> bytes:
    """Return whether a call returned, and what it returned or raised, pickled."""
    try:
        function, arguments = pickle.loads(call)
        return pickle.dumps((True, function(*arguments)), pickle.HIGHEST_PROTOCOL)
    except Exception as failure:
        try:
            pickle.loads(pickle.dumps(failure))
        except Exception:  # one that cannot travel
            failure = RuntimeError(f"{type(failure).__name__}: {failure}")
        return pickle.dumps((False, (failure, traceback.format_exc())), pickle.HIGHEST_PROTOCOL)


def in_order(function: Callable[..., R], arguments: Iterator[tuple[Any, ...]], count: int, options: Any) -> Iterator[R]:
    """Yield ``function(*a)`` of each of the `count` arguments, in their order, as the results come.

    Args:
        function: importable by name in other processes.
        arguments: of each call; taken only a little ahead of the work, so that the memory stays flat.
        count: how many there are.
        options: has `backend` (as the run spec's ``prepare.backend``), `workers` (0: all cores, or all of the cluster)
            and `cluster` (the address of a dask scheduler or a ray head; None: DASK_SCHEDULER_ADDRESS or RAY_ADDRESS).

    Raises:
        FercliError: the backend is not installed, there is no cluster at the address, or a worker was killed.
    """
    if not count:
        return
    remote = options.backend in ("dask", "ray")
    workers = options.workers or (-1 if remote else cpu_count())
    if not remote and (options.backend in ("loky", "sequential") or min(workers, count) <= 1):
        processes = 1 if options.backend == "sequential" else max(1, min(workers, count))
        # As many results wait for the one before them, each of some megabytes.
        most = max(processes + 2, min(4 * processes, 32))
        with Workers(processes) as pool:
            try:
                yield from (result for _, result in pool.in_order(function, arguments, lambda given: given, most))
            except WorkerEnded as failure:
                raise FercliError(f"{_KILLED}, with fewer workers (--set prepare.workers=1)") from failure
        return
    jobs = (joblib.delayed(function)(*given) for given in arguments)
    with _backend(options, workers if remote else min(workers, count)):
        try:
            if options.backend == "ray":
                # Ray's backend gives its results only all at once: a few rounds' work at a time.
                while batch := list(itertools.islice(jobs, 4 * joblib.effective_n_jobs())):
                    yield from joblib.Parallel()(batch)
            else:
                yield from joblib.Parallel(return_as="generator")(jobs)
        except Exception as failure:
            if not remote or isinstance(failure, FercliError):
                raise
            # What a cluster raises when it loses a worker is its own.
            why = str(failure).splitlines()[0] if str(failure) else type(failure).__name__
            raise FercliError(
                f"the {options.backend} cluster failed ({why}); run the same command again to go on"
            ) from failure


def as_completed(
    function: Callable[..., R], arguments: Iterator[tuple[Any, ...]], jobs: int, threads: int
) -> Iterator[R]:
    """Yield ``function(*a)`` of each of the arguments as soon as it is there, from `jobs` processes of this machine.

    Args:
        function: importable by name in other processes.
        arguments: of each call; taken only a little ahead of the work.
        jobs: processes; with 1 all is done in this one.
        threads: that OpenMP may use in each process.

    Raises:
        FercliError: a worker was killed.
    """
    if jobs == 1:
        for given in arguments:
            yield function(*given)
        return
    if joblib.effective_n_jobs(jobs) == 1:
        console.warn("no processes can share memory here (is /dev/shm read-only or full?): one job after another")
    tasks = (joblib.delayed(_call)(function, given, os.getpid()) for given in arguments)
    try:
        with joblib.parallel_config(backend="loky", n_jobs=jobs, inner_max_num_threads=threads):
            yield from joblib.Parallel(return_as="generator_unordered", pre_dispatch=jobs)(tasks)
    except joblib.externals.loky.process_executor.TerminatedWorkerError as failure:
        raise FercliError(f"{_KILLED}, with fewer jobs") from failure


def _call(function: Callable[..., R], arguments: tuple[Any, ...], parent: int) -> R:
    if os.getpid() != parent:
        _end_with(parent)
    return function(*arguments)


@lru_cache(maxsize=1)
def _end_with(parent: int) -> None:
    """End this worker soon after its parent: one that was killed (-9) cannot tell its workers."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _backend(options: Any, workers: int) -> Iterator[None]:
    if options.backend == "ray":
        _join_ray(options.cluster)
    client = _dask_client(options.cluster) if options.backend == "dask" else nullcontext()
    with client, joblib.parallel_config(backend=options.backend, n_jobs=workers):
        yield


def _dask_client(address: str | None) -> Any:
    try:
        from distributed import Client
    except ImportError:
        raise FercliError("prepare.backend is dask, which is not installed: pip install 'fercli[dask]'") from None
    address = address or os.environ.get("DASK_SCHEDULER_ADDRESS")
    if not address:
        raise FercliError(
            "prepare.backend is dask: say where its scheduler is, such as --set prepare.cluster=tcp://node1:8786"
        )
    try:
        client = Client(address)
    except (OSError, TimeoutError, ValueError) as failure:
        raise FercliError(f"no dask scheduler answers at {address} ({failure}): see prepare.cluster") from failure
    console.say(f"dask cluster {address}: {sum(client.nthreads().values())} worker threads")
    return client


def _join_ray(address: str | None) -> None:
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError:
        raise FercliError("prepare.backend is ray, which is not installed: pip install 'fercli[ray]'") from None
    if not ray.is_initialized():
        try:
            # Without an address ray joins the one of RAY_ADDRESS, or starts workers on this machine.
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        except (ConnectionError, ValueError, RuntimeError) as failure:
            raise FercliError(f"no ray cluster answers at {address}: {failure}") from failure
    register_ray()
