"""Which form runs a call: what is chosen, what must never be chosen, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from nonlocal_nn.ops import dispatch
from nonlocal_nn.ops.dispatch import efficient_takes, flash_takes, softmax_form

HALF = torch.bfloat16


def choose(dtype: torch.dtype = HALF, d: int = 256, channels: int = 256, **options) -> str:
    defaults = {"device_type": "cuda", "capability": (9, 0), "queries": 6272, "keys": 6272}
    return softmax_form(**{**defaults, "dtype": dtype, "d": d, "channels": channels, **options})


CPU = {"device_type": "cpu", "capability": None, "dtype": torch.float32}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({**CPU}, "rows"),
        ({**CPU, "gradients": False}, "flash"),
        ({**CPU, "gradients": False, "onednn": True}, "rows"),
        ({**CPU, "gradients": False, "keys": 1000}, "rows"),
        ({**CPU, "gradients": False, "d": 64}, "rows"),  # torch's kernel wants equal widths
        ({"device_type": "mps", "capability": None}, "rows"),
        ({"dtype": torch.float64}, "rows"),
        ({"gradients": False}, "flash"),
        ({"same_bits": False}, "flash"),
        ({}, "half"),  # flash's backward pass adds in any order
        ({"d": 512, "channels": 512, "same_bits": False}, "half"),  # res4
        ({"d": 1024, "channels": 512, "gradients": False}, "efficient"),  # res4, gaussian
        ({"d": 64, "channels": 128, "gradients": False}, "efficient"),
        ({"d": 60, "channels": 60, "gradients": False}, "half"),  # flash would pad
        ({"dtype": torch.float32}, "rows"),
        ({"dtype": torch.float32, "same_bits": False}, "rows"),
        ({"dtype": torch.float32, "gradients": False}, "efficient"),
        ({"dtype": torch.float32, "gradients": False, "d": 255}, "rows"),
        ({"dtype": torch.float32, "tf32": True}, "rows"),
        ({"dtype": torch.float32, "tf32": True, "gradients": False}, "rows"),
        ({"queries": 8, "keys": 8}, "rows"),  # one position across eight frames
        ({"queries": 0}, "rows"),
        ({"batch": 0}, "rows"),
        ({"batch": 70_000, "gradients": False}, "half"),
        ({"capability": (7, 5), "dtype": torch.float16, "gradients": False}, "efficient"),
        ({"capability": (7, 5), "gradients": False}, "rows"),  # no bfloat16 there
    ],
)
def test_choices(options, expected):
    assert choose(**options) == expected


def test_thresholds_can_be_replaced_for_the_whole_process():
    before = dispatch.set_thresholds(dataclasses.replace(dispatch.THRESHOLDS, gpu_positions=10_000))
    assert choose(gradients=False) == "rows"
    dispatch.set_thresholds(before)
    assert choose(gradients=False) == "flash"


def test_every_call_gets_a_form_that_takes_it():
    for capability, dtype, (d, channels), positions, gradients, same_bits, tf32 in itertools.product(
        [(5, 0), (7, 5), (8, 0), (8, 6), (9, 0), (12, 1), (13, 0)],
        [torch.float64, torch.float32, torch.bfloat16, torch.float16],
        [(0, 3), (1, 1), (200, 200), (256, 256), (512, 512), (1024, 512), (64, 65)],
        [1, 100],
        *[[False, True]] * 3,
    ):
        form = softmax_form(
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
        )
        if form == "flash":
            assert flash_takes(capability, dtype, d, channels, 1, gradients=gradients)
        if form == "efficient":
            assert efficient_takes(capability, dtype, d, channels, 1)
        if gradients and same_bits:
            assert form in ("rows", "half")
        if form == "half":
            assert capability >= (8, 0)
            assert dtype in (torch.float16, torch.bfloat16)


def test_training_on_consumer_cards_leaves_out_what_flash_leaves_out():
    options = {"d": 200, "channels": 200, "same_bits": False}
    assert choose(capability=(8, 9), **options) == "half"
    assert choose(capability=(8, 9), gradients=False, **options) == "flash"
    assert choose(capability=(8, 0), **options) == "flash"


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
