"""Losses are those of their formulas; weight decay spares normalisation layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nonlocal_nn.models.catalog import create_model
from nonlocal_nn.training.config import OptimConfig
from nonlocal_nn.training.optim import make_loss, make_optimizer, parameter_groups, resolve_loss


def test_weight_decay_is_on_all_parameters_but_those_of_norms() -> None:
    model = create_model("c2d_tiny_nl2", num_classes=4)
    decayed, plain = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    without = {names[id(parameter)] for parameter in plain["params"]}  # type: ignore[attr-defined]
    assert without == {name for name in names.values() if "norm" in name}
    assert len(decayed["params"]) + len(without) == len(names)  # type: ignore[arg-type]
    head = model.head.fc.bias
    assert any(parameter is head for parameter in decayed["params"])  # type: ignore[attr-defined]


def test_a_step_decays_a_weight_without_gradient_and_no_norm() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = make_optimizer(model, OptimConfig(lr=0.5, weight_decay=0.1))
    before = [parameter.clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    # Nesterov's first step is (1 + momentum) times the gradient
    expected = [before[0] * (1 - 0.5 * 0.1 * 1.9), before[1] * (1 - 0.5 * 0.1 * 1.9), before[2], before[3]]
    for parameter, value in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value.detach())


def test_losses_are_those_of_their_formulas() -> None:
    logits = torch.randn(5, 4)
    classes = torch.tensor([0, 3, 1, 1, 2])
    log_p = logits - logits.exp().sum(1, keepdim=True).log()
    own = log_p[range(5), classes]
    smooth = make_loss("cross_entropy", 0.2)(logits, classes)
    torch.testing.assert_close(smooth, -(0.8 * own + 0.2 * log_p.mean(1)).mean())
    targets = torch.randint(0, 2, (5, 4)).float()
    p = 1 / (1 + (-logits).exp())
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    torch.testing.assert_close(make_loss("sigmoid", 0.0)(logits, targets), expected)
    with pytest.raises(ValueError, match="several labels"):
        resolve_loss("cross_entropy", multi_label=True)
    with pytest.raises(ValueError, match="belongs to cross_entropy"):
        make_loss("sigmoid", 0.1)
