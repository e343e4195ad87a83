"""Which of the exact forms of an operator runs a call: the sizes that decide, and one function.

>>> res4 = {"d": 512, "channels": 512, "queries": 6272, "keys": 6272}
>>> softmax_form("cuda", (9, 0), torch.bfloat16, **res4, gradients=False)
'efficient'
>>> softmax_form("cpu", None, torch.float32, **res4)
'rows'

    rows       chunks of rows through GEMM: softmax_rows.py, for everything
    half       the same in half precision on a GPU: gpu/half_rows.py
    flash      scaled_dot_product_attention's flash kernel
    efficient  scaled_dot_product_attention's memory-efficient kernel

`benchmarks/softmax_cuda.py` measures all forms; docs/gpu.md has the figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.autograd import forward_ad

Form = Literal["rows", "half", "flash", "efficient"]


@dataclass(frozen=True)
class Thresholds:
    """The tuned sizes of all operators, in one place. Another value changes time and memory, not results."""

    cpu_chunk_bytes: int = 8 * 2**20
    """Of a chunk of weights (rows x keys) on the CPU: it should stay in the last-level cache."""
    chunk_rows: int = 256
    """But so many rows on the CPU, up to twice `cpu_chunk_bytes`: GEMM of fewer rows is slow."""
    gpu_chunk_bytes: int = 256 * 2**20
    """Of a chunk of weights on a GPU."""
    gpu_half_chunk_bytes: int = 256 * 2**20
    """Of a chunk of float32 logits on a GPU, where inputs are in half precision."""
    onednn_multiplications: int = 2**24
    """Of one product, from which a call of oneDNN for each matrix of a batch pays."""
    onednn_longest_sum: int = 256
    """Products that oneDNN adds up for a logit; with longer sums the error of y doubles."""
    cpu_flash_keys: int = 4096
    """Keys from which torch's flash kernel for CPUs is the faster forward pass, where oneDNN is not used."""
    cpu_flash_width: int = 256
    """And up to so many numbers in a row of theta and g, which must have equally many."""
    gpu_positions: int = 32
    """Queries or keys up to which rows are used on a GPU: a kernel's tiles would be half empty."""
    concatenation_block: int = 32
    """Sorted keys whose sums are made by one triangular product."""
    concatenation_chunk_bytes: int = 16 * 2**20
    """Of rows of g, and of triangular weights, at a time."""


THRESHOLDS = Thresholds()


def set_thresholds(thresholds: Thresholds) -> Thresholds:
    """Use these from now on, in the whole process; returns those used before."""
    global THRESHOLDS
    before, THRESHOLDS = THRESHOLDS, thresholds
    return before


def plain_operations() -> bool:
    """Whether a call must be made of torch's plain operations, with the queries x keys matrix.

    So it is while torch.jit.trace or an ONNX export writes the operations down: buffers lent for one call,
    and decisions taken for its sizes, would become constants of the program. And for derivatives in forward
    mode (torch.func.jvp, jacfwd, hessian), which our autograd functions do not have.

    >>> plain_operations()
    False
    """
    if torch.onnx.is_in_onnx_export():
        return True
    if torch.compiler.is_compiling():
        return False
    return torch._C._is_tracing() or _in_forward_mode()


def _in_forward_mode() -> bool:
    if forward_ad._current_level >= 0:  # torch.autograd.forward_ad.dual_level
        return True
    if not torch._C._are_functorch_transforms_active():
        return False
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() == torch._C._functorch.TransformType.Jvp for level in levels)


def softmax_form(
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
    onednn: bool = False,
) -> Form:
    """The form of the softmax average for a call.

    Args:
        device_type: as in `torch.device.type`.
        capability: `torch.cuda.get_device_capability()`; None where the device is no NVIDIA GPU.
        dtype: of theta, phi and g.
        gradients: a backward pass may follow.
        same_bits: it must give the same bits on every run. The backward pass of flash does so on a GPU only
            under `torch.use_deterministic_algorithms(True)`: pass False where that is set.
        tf32: float32 products may be rounded to TF32 (`torch.backends.cuda.matmul.fp32_precision == "tf32"`).
        onednn: `cpu.gemm.has_onednn(theta)`.

    Raises:
        ValueError: for a device type that torch does not know, a missing capability, a dtype that is no
            floating-point type, or a negative size.
    """
    _check(device_type, capability, dtype, {"d": d, "channels": channels, "queries": queries, "keys": keys})
    limits = THRESHOLDS
    if 0 in (batch, queries, d, channels):
        return "rows"
    if device_type == "cpu":
        fits = d == channels <= limits.cpu_flash_width and dtype in (torch.float32, torch.float64)
        return "flash" if fits and keys >= limits.cpu_flash_keys and not (gradients or onednn) else "rows"
    if device_type != "cuda" or capability is None or dtype == torch.float64:
        return "rows"
    if min(queries, keys) <= limits.gpu_positions:
        return "rows"
    repeatable = not (gradients and same_bits)
    if repeatable and flash_takes(capability, dtype, d, channels, batch, gradients=gradients):
        return "flash"
    # With a backward pass it took 1.0 to 6.3 times as long as the rows below (H200, d 256 to 1024), and
    # without one 2.7 times as long as rows in TF32.
    rounded = dtype == torch.float32 and tf32
    if not (gradients or rounded) and efficient_takes(capability, dtype, d, channels, batch):
        return "efficient"
    return "half" if dtype != torch.float32 and capability >= (8, 0) else "rows"


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
