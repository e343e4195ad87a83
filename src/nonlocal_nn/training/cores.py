"""How the cores of a machine are shared out between decoding and, on a CPU, computing."""

from __future__ import annotations

import os


def cores_for_each(processes: int) -> int:
    """Cores this process may use, shared out over the training processes of the machine; at least 1.

    >>> cores_for_each(10_000)
    1
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)


def default_workers(cores: int, *, on_gpu: bool) -> int:
    """Decoding processes beside a training process that has so many cores.

    >>> default_workers(2, on_gpu=False), default_workers(16, on_gpu=False), default_workers(16, on_gpu=True)
    (1, 4, 15)

    Beside a GPU all cores but one decode. A CPU computes for longer than it decodes: measured on 2 cores, one
    worker keeps c2d_tiny_nl2 waiting for 5% of a step.
    """
    return max(1, min(16, cores - 1) if on_gpu else min(4, cores // 2))


def default_threads(cores: int, workers: int, omp_num_threads: str | None) -> int:
    """Threads of torch in a training process on the CPU: the cores that do not decode, unless OMP_NUM_THREADS
    says.

    >>> [default_threads(16, workers=4, omp_num_threads=said) for said in (None, "2")]
    [12, 2]

    More threads than free cores wait for each other: on 2 busy cores a step took four times as long with 2
    threads as with 1.
    """
    if omp_num_threads is not None and omp_num_threads.isdigit() and int(omp_num_threads) > 0:
        return int(omp_num_threads)
    return max(1, cores - workers)
