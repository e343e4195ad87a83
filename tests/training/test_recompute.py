"""Activation checkpointing by stage: the same gradients and running statistics, fewer bytes held."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import nonlocal_nn as nl
from nonlocal_nn.cli import main
from nonlocal_nn.training.recompute import recompute_stages
from nonlocal_nn.training.run import train
from tests.training.conftest import ConfigMaker


def _pass(model, x: Tensor) -> tuple[Tensor, dict[str, Tensor], int]:
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(x)
    weights = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    torch.autograd.backward(logits.square().sum())
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return logits.detach(), gradients, sum(size for place, size in held.items() if place not in weights)


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_the_same_but_for_the_memory(norm: str, without_shape_checks: None) -> None:
    torch.manual_seed(0)
    options = {"num_classes": 3, "norm": norm, "nonlocal_norm": "batch" if norm == "batch" else None}
    plain, again = nl.create_model("i3d_tiny_nl2", **options), nl.create_model("i3d_tiny_nl2", **options)
    again.load_state_dict(plain.state_dict())
    recompute_stages(again, again.stage_names)
    assert list(again.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 3, 8, 32, 32)
    logits, gradients, held = _pass(plain, x)
    others, grads, less = _pass(again, x)
    assert torch.equal(logits, others)
    for name, grad in gradients.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-5, atol=1e-6, msg=name)
    for (name, a), b in zip(plain.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name  # running statistics, and how many batches they have seen
    assert less < 0.35 * held
    with torch.no_grad():
        assert torch.equal(plain.eval()(x), again.eval()(x))


def test_a_run_ends_with_the_same_weights(tiny_config: ConfigMaker) -> None:
    sections = {"schedule": {"iterations": 3}, "precise_bn": 2}
    one = train(tiny_config(out="one", **sections))
    config = tiny_config(out="two", **sections)
    config.recompute = ("res2", "res3")
    two = train(config)
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-4) if "loss" in one else True
    a, b = (nl.load_model(tiny_config(out=name).out).state_dict() for name in ("one", "two"))
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_an_unknown_stage(tiny_config: ConfigMaker) -> None:
    config = tiny_config(out="run")
    config.recompute = ("res9",)
    with pytest.raises(ValueError, match="recompute names 'res9'; the network has the stages"):
        train(config)


@pytest.mark.slow
def test_a_compiled_network_trains_alike(tiny_config: ConfigMaker, without_shape_checks: None) -> None:
    sections = {"schedule": {"iterations": 2}, "precise_bn": 0}
    train(tiny_config(out="plain", **sections))
    train(tiny_config(out="compiled", compile=True, **sections))
    a, b = (nl.load_model(tiny_config(out=name).out).state_dict() for name in ("plain", "compiled"))
    assert list(a) == list(b)
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, rtol=1e-4, atol=1e-5)


def test_stages_are_named_with_commas_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in ("res2,res3", "[res2, res3]", "res2"):
        arguments = ["--data.train", str(tmp_path / "absent"), "--out", str(tmp_path / "run")]
        assert main(["train", *arguments, "--recompute", given]) == 2
        assert "no such file or folder" in capsys.readouterr().err  # the first thing that is wrong
