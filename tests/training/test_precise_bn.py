"""Precise batch norm against the statistics of all batches taken together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nonlocal_nn.blocks.norm import FrozenBatchNorm
from nonlocal_nn.training.precise_bn import update_statistics


def _network() -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm3d(2), nn.Dropout(0.5), nn.Conv3d(2, 3, (1, 3, 3)), nn.BatchNorm3d(3), nn.ReLU()
    )


def _batches(count: int = 4) -> list[Tensor]:
    # each batch with a mean of its own: the mean of the batches' variances would be far too small
    return [5.0 * number + torch.randn(3, 2, 2, 5, 5) for number in range(count)]


def test_first_layer_has_the_mean_and_variance_of_all_batches_together() -> None:
    network, batches = _network(), _batches()
    update_statistics(network, batches)
    everything = torch.cat(batches).double()
    norm = network[0]
    assert isinstance(norm, nn.BatchNorm3d)
    torch.testing.assert_close(norm.running_mean, everything.mean((0, 2, 3, 4)).float())
    torch.testing.assert_close(norm.running_var, everything.var((0, 2, 3, 4), correction=0).float())


def test_deeper_layers_see_inputs_normalised_by_their_batch() -> None:
    network, batches = _network(), _batches()
    update_statistics(network, batches)
    first, _, conv, deeper, _ = network
    assert isinstance(deeper, nn.BatchNorm3d)
    with torch.no_grad():
        inputs = torch.cat(
            [
                conv(torch.nn.functional.batch_norm(b, None, None, first.weight, first.bias, training=True))
                for b in batches
            ]
        )
    torch.testing.assert_close(deeper.running_mean, inputs.mean((0, 2, 3, 4)))
    torch.testing.assert_close(deeper.running_var, inputs.var((0, 2, 3, 4), correction=0))


def test_it_depends_on_the_batches_alone_and_leaves_the_rest_as_it_was() -> None:
    network, batches = _network(), _batches()
    network[4].eval()
    modes = [module.training for module in network.modules()]
    weights = [parameter.clone() for parameter in network.parameters()]
    update_statistics(network, batches)
    once = [buffer.clone() for name, buffer in network.named_buffers() if "tracked" not in name]
    update_statistics(network, batches)  # other dropout, other running statistics to begin with
    again = [buffer for name, buffer in network.named_buffers() if "tracked" not in name]
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert modes == [module.training for module in network.modules()]
    assert all(torch.equal(a, b) for a, b in zip(weights, network.parameters(), strict=True))
    assert all(norm.momentum == 0.1 for norm in network.modules() if isinstance(norm, nn.BatchNorm3d))
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_two_processes_halves_averaged_are_the_whole() -> None:
    """`reduce_mean` is the mean over processes: two processes' moments, here computed one after the other."""
    batches = _batches(4)
    moments: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        moments.append(tensor)
        return tensor

    alone, other, whole = (nn.BatchNorm3d(2) for _ in range(3))
    update_statistics(alone, batches[:2], reduce_mean=keep)
    update_statistics(other, batches[2:], reduce_mean=lambda mine: (mine + moments[0]) / 2)
    update_statistics(whole, batches)
    torch.testing.assert_close(other.running_mean, whole.running_mean)
    torch.testing.assert_close(other.running_var, whole.running_var)


def test_frozen_norms_are_left_alone_and_no_batches_are_an_error() -> None:
    frozen = FrozenBatchNorm(2)
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    assert update_statistics(nn.Sequential(frozen), _batches()) == 0
    assert all(torch.equal(value, frozen.state_dict()[name]) for name, value in before.items())
    with pytest.raises(ValueError, match="no batches"):
        update_statistics(nn.BatchNorm3d(2), [])
