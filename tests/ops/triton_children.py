"""Triton's programs without a GPU, interpreted in a process of their own, and on a GPU if there is one.

Triton looks at TRITON_INTERPRET while it is imported; in the tests' own process it may have been imported.
"""

from __future__ import annotations

import importlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch


def child() -> ProcessPoolExecutor:
    """A process that does one thing after another."""
    return ProcessPoolExecutor(1, get_context("spawn"), _prepare)


def _prepare() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["TRITON_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / "nonlocal_nn-tests-triton")
    warnings.simplefilter("ignore")  # numpy's, about rows that are computed and not stored
    torch.set_num_threads(1)


def packed(*values: Any) -> bytes:
    """Tensors and numbers as bytes: no shared memory between the processes."""
    buffer = io.BytesIO()
    torch.save(values, buffer)
    return buffer.getvalue()


def unpacked(data: bytes) -> tuple[Any, ...]:
    values: tuple[Any, ...] = torch.load(io.BytesIO(data))
    return values


def call(module: str, name: str, arguments: bytes, options: dict[str, Any]) -> bytes:
    """A function that returns tensors, in a child that interprets. Strides survive the way there."""
    return packed(*getattr(importlib.import_module(module), name)(*unpacked(arguments), **options))


def runner(module: str, device: str) -> Iterator[Callable[..., Any]]:
    """run(name, *arguments, **options) for the module's functions; results are on the CPU.

    device: "interpreter" or "cuda".
    """
    if device == "cuda":
        functions = importlib.import_module(module)
        yield lambda name, *arguments, **options: tuple(
            x if x is None else x.cpu()
            for x in getattr(functions, name)(*(_on_gpu(x) for x in arguments), **options)
        )
        return
    with child() as interpreter:
        yield lambda name, *arguments, **options: unpacked(
            interpreter.submit(call, module, name, packed(*arguments), options).result()
        )


def _on_gpu(x: Any) -> Any:
    if isinstance(x, list):
        return [_on_gpu(part) for part in x]
    return x.cuda() if isinstance(x, torch.Tensor) else x


DEVICES = ["interpreter", *(["cuda"] if torch.cuda.is_available() else [])]
