"""Frozen batch norm equals batch norm in eval mode, exactly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nonlocal_nn.blocks.norm import FrozenBatchNorm, freeze_batch_norm


def trained(norm: nn.Module) -> nn.Module:
    with torch.no_grad():
        for value in (*norm.parameters(), *norm.buffers()):
            if value.is_floating_point():
                value.normal_()
        norm.running_var.uniform_(0.1, 3)
    return norm


@pytest.mark.parametrize(
    ("kind", "shape"), [(nn.BatchNorm1d, (7,)), (nn.BatchNorm2d, (5, 6)), (nn.BatchNorm3d, (2, 3, 4))]
)
@pytest.mark.parametrize("affine", [True, False])
def test_outputs_equal_those_in_eval_mode(kind, shape, affine):
    norm = trained(kind(3, eps=1e-3, affine=affine))
    x = torch.randn(4, 3, *shape)
    frozen = freeze_batch_norm(norm)
    for mode in (True, False):
        assert torch.equal(frozen.train(mode)(x), norm.eval()(x))
    half = frozen.half()(x.half())
    assert torch.equal(half, norm.half()(x.half()))


def test_every_norm_of_a_network_is_replaced_and_nothing_else():
    shared = nn.BatchNorm2d(4)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        shared,
        nn.Sequential(nn.ReLU(), trained(nn.BatchNorm2d(4)), nn.GroupNorm(2, 4)),
        shared,
    )
    x = torch.randn(2, 3, 5, 5)
    before = net.eval()(x)
    assert freeze_batch_norm(net) is net
    assert torch.equal(net.train()(x), before)
    assert net[1] is net[3]
    assert [type(module) for module in (net[1], net[2][1], net[2][2])] == [
        FrozenBatchNorm,
        FrozenBatchNorm,
        nn.GroupNorm,
    ]
    assert [name for name, _ in net.named_parameters()] == ["0.weight", "0.bias", "2.2.weight", "2.2.bias"]


def test_a_state_dict_of_batch_norm_loads_as_it_is():
    norm, frozen = trained(nn.BatchNorm3d(4)), FrozenBatchNorm(4)
    state = norm.state_dict()
    frozen.load_state_dict(state)
    assert "num_batches_tracked" in state
    x = torch.randn(2, 4, 2, 3, 3)
    assert torch.equal(frozen(x), norm.eval()(x))


def test_nothing_moves_while_training():
    frozen = freeze_batch_norm(trained(nn.BatchNorm2d(3)))
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    frozen.train()(x).square().sum().backward()
    assert x.grad is not None
    assert not list(frozen.parameters())
    assert all(torch.equal(before[name], value) for name, value in frozen.state_dict().items())


def test_a_norm_without_statistics_is_named():
    net = nn.ModuleDict({"stem": nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))})
    with pytest.raises(ValueError, match=r"batch norm 'stem\.0' keeps no running statistics"):
        freeze_batch_norm(net)
