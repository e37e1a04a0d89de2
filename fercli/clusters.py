"""Work in parallel: over processes here, or over the workers of a dask or ray cluster through joblib.

A cluster's workers must have fercli installed and see the datasets under the same paths.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

import cv2
import joblib

from fercli import console
from fercli.errors import FercliError
from fercli.workers import WorkerEnded, Workers, cores

R = TypeVar("R")


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
    workers = options.workers or (-1 if remote else cores())
    if not remote and (options.backend == "sequential" or min(workers, count) <= 1):
        threads = cv2.getNumThreads()
        try:
            for given in arguments:
                yield function(*given)
        finally:
            cv2.setNumThreads(threads)
        return
    if options.backend == "loky":
        yield from _in_processes(function, arguments, min(workers, count))
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


def _in_processes(function: Callable[..., R], arguments: Iterator[tuple[Any, ...]], count: int) -> Iterator[R]:
    with Workers(count) as workers:
        try:
            # As many results wait for the one before them, each of some megabytes.
            most = max(count + 2, min(4 * count, 32))
            for _, result in workers.in_order(function, arguments, lambda given: given, most):
                yield result
        except WorkerEnded as failure:
            raise FercliError(
                "a worker process was killed, most likely for want of memory; run the same command again to go on, "
                "with fewer workers (--set prepare.workers=1)"
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
        raise FercliError(
            "a worker process was killed, most likely for want of memory; run the same command again to go on, "
            "with fewer jobs"
        ) from failure


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
    if options.backend == "dask":
        with _dask_client(options.cluster), joblib.parallel_config(backend="dask", n_jobs=workers):
            yield
    elif options.backend == "ray":
        _join_ray(options.cluster)
        with joblib.parallel_config(backend="ray", n_jobs=workers):
            yield
    else:
        with joblib.parallel_config(backend=options.backend, n_jobs=workers):
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
