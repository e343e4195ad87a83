"""The table of backends: what it chooses, what it must never choose, and what it refuses."""

from __future__ import annotations

import itertools

import pytest
import torch

from nonlocal_nn.ops.dispatch import TABLE, efficient_takes, flash_takes, softmax_backend

HALF = torch.bfloat16


def choose(dtype: torch.dtype = HALF, d: int = 256, channels: int = 256, **options) -> str:
    defaults = {"device_type": "cuda", "capability": (9, 0), "queries": 6272, "keys": 6272}
    return softmax_backend(**{**defaults, "dtype": dtype, "d": d, "channels": channels, **options})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"device_type": "cpu", "capability": None}, "rows"),
        ({"device_type": "mps", "capability": None}, "rows"),
        ({"dtype": torch.float64}, "rows"),
        ({"gradients": False}, "flash"),
        ({"same_bits": False}, "flash"),
        ({}, "triton"),  # flash's backward pass adds in any order
        ({"triton": False}, "rows"),
        ({"triton": False, "same_bits": False}, "flash"),
        ({"d": 512, "channels": 512, "same_bits": False}, "triton"),  # res4
        ({"d": 512, "channels": 512, "same_bits": False, "triton": False}, "efficient"),
        ({"d": 1024, "channels": 512, "gradients": False}, "triton"),  # res4, gaussian
        ({"d": 64, "channels": 128, "gradients": False}, "triton"),  # flash wants them equal
        ({"d": 60, "channels": 60, "gradients": False}, "triton"),  # flash would pad
        ({"d": 60, "channels": 60, "gradients": False, "triton": False}, "rows"),
        ({"dtype": torch.float32}, "rows"),
        ({"dtype": torch.float32, "same_bits": False}, "efficient"),
        ({"dtype": torch.float32, "same_bits": False, "d": 255}, "rows"),
        ({"dtype": torch.float32, "tf32": True}, "triton"),
        ({"dtype": torch.float32, "tf32": True, "triton": False, "gradients": False}, "efficient"),
        ({"queries": 8, "keys": 8}, "rows"),  # one position across eight frames
        ({"queries": 0}, "rows"),
        ({"batch": 0}, "rows"),
        ({"batch": 70_000, "gradients": False}, "triton"),
        ({"capability": (7, 5), "dtype": torch.float16, "gradients": False}, "efficient"),
        ({"capability": (7, 5), "gradients": False}, "rows"),  # no bfloat16 there
    ],
)
def test_choices(options, expected):
    assert choose(**options) == expected


def test_every_call_gets_a_backend_that_takes_it():
    for capability, dtype, (d, channels), positions, gradients, same_bits, tf32, triton in itertools.product(
        [(5, 0), (7, 5), (8, 0), (8, 6), (9, 0), (12, 1), (13, 0)],
        [torch.float64, torch.float32, torch.bfloat16, torch.float16],
        [(0, 3), (1, 1), (200, 200), (256, 256), (512, 512), (1024, 512), (64, 65)],
        [1, 100],
        *[[False, True]] * 4,
    ):
        backend = softmax_backend(
            "cuda",
            capability,
            dtype,
            d,
            channels,
            positions,
            positions,
            gradients=gradients,
            same_bits=same_bits,
            tf32=tf32,
            triton=triton,
        )
        if backend == "flash":
            assert flash_takes(capability, dtype, d, channels, 1, gradients=gradients)
        if backend == "efficient":
            assert efficient_takes(capability, dtype, d, channels, 1)
        if backend == "triton":
            assert triton
            assert capability >= (8, 0)
            assert dtype != torch.float64
        if gradients and same_bits:
            assert backend in ("rows", "triton")


def test_training_on_consumer_cards_leaves_out_what_flash_leaves_out():
    options = {"d": 200, "channels": 200, "same_bits": False, "triton": False}
    assert choose(capability=(8, 9), **options) == "efficient"
    assert choose(capability=(8, 9), gradients=False, **options) == "flash"
    assert choose(capability=(8, 0), **options) == "flash"


def test_every_line_says_what_it_rests_on():
    for line in TABLE:
        assert line.because
        assert line.order[-1] == "rows"  # the one that takes everything


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch tells what its kernels take only beside a GPU"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_torch_agrees_about_its_kernels(dtype):
    from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention

    capability = torch.cuda.get_device_capability()
    for d, channels in [
        (8, 8),
        (64, 64),
        (200, 200),
        (256, 256),
        (264, 264),
        (512, 512),
        (64, 128),
        (60, 60),
    ]:
        theta, phi = (torch.zeros(2, 1, 70, d, dtype=dtype, device="cuda") for _ in range(2))
        g = torch.zeros(2, 1, 70, channels, dtype=dtype, device="cuda")
        for x in (theta, phi, g):
            x.requires_grad_()
        parameters = SDPAParams(theta, phi, g, None, 0.0, False, False)
        assert can_use_efficient_attention(parameters) == efficient_takes(capability, dtype, d, channels, 2)
        if flash_takes(capability, dtype, d, channels, 2, gradients=True):
            assert can_use_flash_attention(parameters)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device_type": "cdua"}, 'no device type "cdua"'),
        ({"capability": None}, "has a compute capability"),
        ({"dtype": torch.int32}, r"floating-point dtype, got torch\.int32"),
        ({"keys": -1}, r"cannot be negative, got \{'keys': -1\}"),
    ],
)
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        choose(**options)


def test_a_misspelt_option_is_refused():
    with pytest.raises(TypeError, match="same_bit"):
        choose(same_bit=True)
