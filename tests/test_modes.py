"""Evaluation mode for a while, and networks built without data."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nonlocal_nn._modes import evaluating, meta_init
from nonlocal_nn.models.catalog import create_model


def test_every_module_gets_its_own_mode_back_after_an_error_too() -> None:
    network = nn.Sequential(nn.BatchNorm1d(3).eval(), nn.Sequential(nn.Dropout()).eval(), nn.Dropout())
    network[1][0].train()
    before = [module.training for module in network.modules()]

    def fail() -> None:
        assert not any(module.training for module in network.modules())
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"), evaluating(network):
        fail()
    assert [module.training for module in network.modules()] == before == [True, False, False, True, True]


def test_a_function_has_no_mode() -> None:
    with evaluating(torch.relu):
        pass


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_a_network_built_without_data_has_the_names_shapes_and_dtypes_of_the_real_one(norm: str) -> None:
    with meta_init():
        shapes = create_model("i3d_tiny_nl2", norm=norm).state_dict()
    real = create_model("i3d_tiny_nl2", norm=norm).state_dict()
    assert {tensor.device.type for tensor in shapes.values()} == {"meta"}
    assert [(name, tensor.shape, tensor.dtype) for name, tensor in shapes.items()] == [
        (name, tensor.shape, tensor.dtype) for name, tensor in real.items()
    ]


def test_random_numbers_are_not_drawn_without_data() -> None:
    state = torch.get_rng_state()
    with meta_init():
        create_model("c2d_tiny_nl1", nonlocal_init="released")
    assert torch.equal(torch.get_rng_state(), state)
