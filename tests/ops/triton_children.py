"""Triton's programs without a GPU, in processes of their own: interpreted, or compiled for an absent GPU.

Triton looks at TRITON_INTERPRET while it is imported; in the tests' own process it may have been imported.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch


def child(interpret: bool) -> ProcessPoolExecutor:
    """A process that does one thing after another."""
    return ProcessPoolExecutor(1, get_context("spawn"), _prepare, (interpret,))


def _prepare(interpret: bool) -> None:
    os.environ["TRITON_INTERPRET"] = "1" if interpret else "0"
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
    with child(interpret=True) as interpreter:
        yield lambda name, *arguments, **options: unpacked(
            interpreter.submit(call, module, name, packed(*arguments), options).result()
        )


def _on_gpu(x: Any) -> Any:
    if isinstance(x, list):
        return [_on_gpu(part) for part in x]
    return x.cuda() if isinstance(x, torch.Tensor) else x


DEVICES = ["interpreter", *(["cuda"] if torch.cuda.is_available() else [])]


class Compiled(NamedTuple):
    """What the assembler says about a program."""

    name: str
    shared_bytes: int
    spilled_bytes: int  # of each thread's registers into memory
    narrow_loads: int  # of 2 bytes: of one half-precision number alone


def compile_all(
    capability: int,
    dtype: torch.dtype,
    precision: str,
    batch: int,
    queries: int,
    d: int,
    channels: int,
    channels_first: bool = False,
) -> list[Compiled]:
    """Go the whole way of `forward` and `backward` for such a GPU, short of starting the programs.

    There are 16 keys more than queries.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from nonlocal_nn.ops.gpu import backward as triton_backward
    from nonlocal_nn.ops.gpu import forward as triton_forward
    from nonlocal_nn.ops.gpu import softmax as triton_softmax

    programs: list[Compiled] = []

    class Utils:
        def get_device_properties(self, device: int) -> dict[str, int]:
            return {"max_shared_mem": 99 * 1024, "multiprocessor_count": 1, "warpSize": 32}

        def load_binary(self, name: str, cubin: bytes, shared: int, device: int) -> tuple[Any, ...]:
            programs.append(Compiled(name, shared, *_seen_in(triton.__path__[0], cubin)))
            return None, None, 0, 0, 1024

        def unload_module(self, module: object) -> None:
            pass

    class NoGpu:
        utils = Utils()

        def launcher_cls(self, source: object, metadata: object) -> Any:
            return lambda *arguments: None

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", capability, 32)

    driver.set_active(NoGpu())
    for module in (triton_forward, triton_backward):
        for name in ("forward", "row_products", "theta_gradient", "key_gradients"):
            if hasattr(module, name):
                getattr(module, name).device_caches.clear()  # another GPU than last time
    triton_softmax.available = lambda device: True
    sizes = [(queries, d), (queries + 16, d), (queries + 16, channels), (queries, channels)]
    if channels_first:
        theta, phi, g, dy = (torch.zeros(batch, c, n, dtype=dtype).transpose(1, 2) for n, c in sizes)
    else:
        theta, phi, g, dy = (torch.zeros(batch, n, c, dtype=dtype) for n, c in sizes)
    saved = triton_softmax.forward(theta, phi, g, precision=precision)
    triton_softmax.backward(dy, theta, phi, g, *saved, precision=precision)
    return programs


def _seen_in(triton_folder: str, cubin: bytes) -> tuple[int, int]:
    tools = Path(triton_folder) / "backends/nvidia/bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.cubin"
        path.write_bytes(cubin)
        commands = [[str(tools / "cuobjdump"), "--dump-resource-usage"], [str(tools / "nvdisasm")]]
        usage, code = (
            subprocess.run([*command, str(path)], capture_output=True, text=True, check=True).stdout
            for command in commands
        )
    stack = re.search(r"STACK:(\d+)", usage)
    assert stack is not None, usage
    return int(stack[1]), len(re.findall(r"\bLDG[.\w]*\.[US]16\b", code))
