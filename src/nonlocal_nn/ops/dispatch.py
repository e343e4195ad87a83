"""Which of the exact forms of the softmax average runs a call: one small table.

>>> res4 = {"d": 512, "channels": 512, "queries": 6272, "keys": 6272}
>>> softmax_backend("cuda", (9, 0), torch.bfloat16, **res4)
'triton'
>>> softmax_backend("cuda", (9, 0), torch.bfloat16, **res4, triton=False)
'rows'
>>> softmax_backend("cpu", None, torch.float32, **res4)
'rows'

    rows       chunks of rows through matrix products: softmax_rows.py, for everything
    flash      scaled_dot_product_attention's flash kernel
    efficient  scaled_dot_product_attention's memory-efficient kernel
    triton     our kernel that splits d and channels: triton_softmax.py

The order in the table is reasoned from what the kernels demand and how they multiply; no line of it has been
measured on a GPU. `benchmarks/softmax_cuda.py` measures all of them and prints the lines as it finds them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

Backend = Literal["rows", "flash", "efficient", "triton"]
Products = Literal["half", "tf32", "ieee"]


class Line(NamedTuple):
    """For the calls that it describes: which backend is the fastest, the second fastest, and so on."""

    products: Products | None  # how numbers are multiplied; None: in any way
    most_positions: float  # the smaller of queries and keys, up to this
    most_columns: float  # the larger of d and channels, up to this
    order: tuple[Backend, ...]
    measured_on: str | None  # a card's name; None: reasoned, as follows
    because: str


EVERY = float("inf")

# The first line that describes a call holds.
TABLE = (
    Line(
        products=None,
        most_positions=32,
        most_columns=EVERY,
        order=("rows",),
        measured_on=None,
        because="the kernels' tiles of 64 rows would be half empty; rows take many batch entries at a time",
    ),
    Line(
        products="half",
        most_positions=EVERY,
        most_columns=256,
        order=("flash", "triton", "efficient", "rows"),
        measured_on=None,
        because="flash keeps whole rows of theta and y on the chip and reads each key once for them",
    ),
    Line(
        products="half",
        most_positions=EVERY,
        most_columns=EVERY,
        order=("triton", "efficient", "rows"),
        measured_on=None,
        because="flash stops at 256; beyond 128 efficient adds to y in memory, ours holds 512 in registers",
    ),
    Line(
        products="tf32",
        most_positions=EVERY,
        most_columns=EVERY,
        order=("triton", "efficient", "rows"),
        measured_on=None,
        because="ours multiplies once in TF32, efficient three times; rows move the logits through memory",
    ),
    Line(
        products="ieee",
        most_positions=EVERY,
        most_columns=EVERY,
        order=("efficient", "rows"),
        measured_on=None,
        because="efficient multiplies as three TF32 products on tensor cores, ours would not use them",
    ),
)


def softmax_backend(
    device_type: str,
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    d: int,
    channels: int,
    queries: int,
    keys: int,
    *,
    batch: int = 1,
    gradients: bool = True,
    same_bits: bool = True,
    tf32: bool = False,
    triton: bool = True,
) -> Backend:
    """The fastest form that can run the call, by `TABLE`.

    Args:
        device_type: as in `torch.device.type`. What is not "cuda" gets "rows".
        capability: `torch.cuda.get_device_capability()`; None where the device is no NVIDIA GPU.
        dtype: of theta, phi and g.
        gradients: a backward pass may follow.
        same_bits: it must give the same bits on every run. The backward passes of flash and efficient do so
            only under `torch.use_deterministic_algorithms(True)`: pass False where that is set.
        tf32: float32 products may be rounded to TF32 (`torch.backends.cuda.matmul.fp32_precision == "tf32"`).
        triton: `triton_softmax.available(device)`.

    Raises:
        ValueError: for a device type that torch does not know, a missing capability, a dtype that is no
            floating-point type, or a negative size.
    """
    _check(device_type, capability, dtype, {"d": d, "channels": channels, "queries": queries, "keys": keys})
    if device_type != "cuda" or capability is None or dtype == torch.float64 or 0 in (batch, queries):
        return "rows"
    repeatable = not (gradients and same_bits)
    can: dict[Backend, bool] = {
        "rows": True,
        "flash": repeatable and flash_takes(capability, dtype, d, channels, batch, gradients=gradients),
        "efficient": repeatable and efficient_takes(capability, dtype, d, channels, batch),
        "triton": triton and capability >= (8, 0),
    }
    products: Products = "half" if dtype != torch.float32 else "tf32" if tf32 else "ieee"
    for line in TABLE:
        if (
            line.products in (None, products)
            and min(queries, keys) <= line.most_positions
            and max(d, channels) <= line.most_columns
        ):
            return next(backend for backend in line.order if can[backend])
    raise AssertionError("the table has a line for every call")


def flash_takes(
    capability: tuple[int, int], dtype: torch.dtype, d: int, channels: int, batch: int, *, gradients: bool
) -> bool:
    """What torch's flash kernel demands; 8 | d, so that it copies nothing to pad it.

    float16 or bfloat16, d = channels <= 256, compute capability 8.0 to 12.1, a batch of at most 65,535; for
    training on capability 8.6 to 8.9 none of d = 193 ... 224.
    """
    return (
        dtype in (torch.float16, torch.bfloat16)
        and (8, 0) <= capability <= (12, 1)
        and d == channels
        and 0 < d <= 256
        and d % 8 == 0
        and batch <= 65_535
        and not (gradients and (8, 6) <= capability <= (8, 9) and 192 < d <= 224)
    )


def efficient_takes(
    capability: tuple[int, int], dtype: torch.dtype, d: int, channels: int, batch: int
) -> bool:
    """What torch's memory-efficient kernel demands, of any size of d and channels, which may differ.

    float32, float16 and (from capability 8.0 on) bfloat16, capability 5.0 to 12.1, rows of a multiple of 16
    bytes where tensor cores multiply them, a batch of at most 65,535.
    """
    half = dtype in (torch.float16, torch.bfloat16)
    tensor_cores = capability >= (8, 0) or (half and capability >= (7, 0))
    multiple = (8 if half else 4) if tensor_cores else 1
    return (
        (dtype in (torch.float32, torch.float16) or (dtype == torch.bfloat16 and capability >= (8, 0)))
        and (5, 0) <= capability <= (12, 1)
        and d > 0
        and channels > 0
        and d % multiple == 0
        and channels % multiple == 0
        and batch <= 65_535
    )


def _check(
    device_type: str, capability: tuple[int, int] | None, dtype: torch.dtype, sizes: dict[str, int]
) -> None:
    try:
        torch.device(device_type)
    except RuntimeError:
        raise ValueError(f'torch knows no device type "{device_type}"; say "cuda" or "cpu"') from None
    if device_type == "cuda" and capability is None:
        raise ValueError("a CUDA device has a compute capability; pass torch.cuda.get_device_capability()")
    if not dtype.is_floating_point:
        raise ValueError(f"expected a floating-point dtype, got {dtype}")
    negative = {name: size for name, size in sizes.items() if size < 0}
    if negative:
        raise ValueError(f"sizes cannot be negative, got {negative}")
