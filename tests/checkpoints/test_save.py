"""Models through our own files: the same logits after, and refusals that leave everything as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from nonlocal_nn.checkpoints.load import load_model, load_weights
from nonlocal_nn.checkpoints.native import read_checkpoint, write_checkpoint
from nonlocal_nn.checkpoints.save import save_model
from nonlocal_nn.insertion.insert import insert_blocks
from nonlocal_nn.models.catalog import create_model
from nonlocal_nn.models.video_resnet import VideoResNet


def trained(name: str = "c2d_tiny_nl2", **overrides: object) -> VideoResNet:
    """A model none of whose tensors has its first value."""
    model = create_model(name, num_classes=4, **overrides)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.1)
            else:
                tensor.add_(3)
    return model.eval()


def same_state(a: nn.Module, b: dict[str, torch.Tensor]) -> bool:
    state = a.state_dict()
    return list(state) == list(b) and all(torch.equal(state[name], b[name]) for name in b)


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "overrides", [{}, {"norm": "frozen"}, {"pairwise": "concatenation", "nonlocal_norm": None}]
)
def test_a_loaded_model_is_the_saved_one(tmp_path: Path, overrides: dict[str, object]) -> None:
    model = trained(**overrides)
    model.classes = ("a", "b", "c", "d")
    model.metadata = {"frame_stride": "2"}
    save_model(model, tmp_path / "model.safetensors")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    loaded = load_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), before), "loading draws no random numbers"
    assert same_state(loaded, model.state_dict())
    assert (loaded.spec, loaded.classes, loaded.metadata) == (model.spec, model.classes, model.metadata)
    assert not any(module.training for module in loaded.modules())
    assert [(n, p.requires_grad) for n, p in loaded.named_parameters()] == [
        (n, p.requires_grad) for n, p in model.named_parameters()
    ]
    clip = torch.randn(2, 3, 4, 32, 32)
    assert torch.equal(loaded(clip), model(clip))


def test_a_loaded_model_trains_and_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(trained(), path)
    content = path.read_bytes()
    model = load_model(path).train()
    model(torch.randn(2, 3, 4, 32, 32)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert path.read_bytes() == content


def test_class_names_must_be_as_many_as_logits(tmp_path: Path) -> None:
    model = trained()
    assert load_saved(model, tmp_path).classes is None
    model.classes = ("a", "b")
    with pytest.raises(ValueError, match=r"has 4 classes, but model.classes names 2"):
        save_model(model, tmp_path / "other.safetensors")
    model.spec = None
    with pytest.raises(ValueError, match="has no spec"):
        save_model(model, tmp_path / "other.safetensors")
    assert not (tmp_path / "other.safetensors").exists()


def load_saved(model: VideoResNet, folder: Path) -> VideoResNet:
    save_model(model, folder / "m.safetensors")
    return load_model(folder / "m.safetensors")


def test_a_file_that_does_not_hold_its_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(trained(), path)
    tensors, header = read_checkpoint(path)
    for name in ("head.fc.weight", "stem.norm.num_batches_tracked"):
        fewer = {key: tensor for key, tensor in tensors.items() if key != name}
        write_checkpoint(path, fewer, header)
        with pytest.raises(
            ValueError, match=f"'c2d_tiny_nl2' by its header.*does not fill the network.*(\n.*)*{name}"
        ):
            load_model(path)
    write_checkpoint(path, tensors | {"extra": torch.ones(1)}, header)
    with pytest.raises(ValueError, match="not in the network, left out: extra"):
        load_model(path)
    write_checkpoint(path, tensors, {"classes": None})
    with pytest.raises(ValueError, match="no spec of the network"):
        load_model(path)


def test_weights_into_a_model_with_other_classes_and_new_blocks(tmp_path: Path) -> None:
    source = trained("c2d_tiny")
    save_model(source, tmp_path / "m.safetensors")
    model = create_model("c2d_tiny_nl2", num_classes=9)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"are of another network \(partial=True places what fits\)"):
        load_weights(model, tmp_path / "m.safetensors")
    assert same_state(model, before)
    report = load_weights(model, tmp_path / "m.safetensors", partial=True)
    assert set(report.mismatched) == {"head.fc.weight", "head.fc.bias"}
    assert report.missing
    assert all(".nonlocal" in name for name in report.missing)
    assert report.unused == ()
    after, given = model.state_dict(), source.state_dict()
    assert set(report.placed) == set(given) - {"head.fc.weight", "head.fc.bias"}
    for name, tensor in after.items():
        assert torch.equal(tensor, given[name] if name in report.placed else before[name]), name
    assert model.training


def test_weights_of_trained_norms_go_into_frozen_ones_and_back(tmp_path: Path) -> None:
    source = trained()
    save_model(source, tmp_path / "m.safetensors")
    frozen = create_model("c2d_tiny_nl2", num_classes=4, norm="frozen").eval()
    assert load_weights(frozen, tmp_path / "m.safetensors").complete
    clip = torch.randn(1, 3, 4, 32, 32)
    assert torch.equal(frozen(clip), source(clip))
    save_model(frozen, tmp_path / "f.safetensors")
    back = create_model("c2d_tiny_nl2", num_classes=4).eval()
    assert load_weights(back, tmp_path / "f.safetensors").complete
    assert torch.equal(back(clip), source(clip))


def test_weights_with_nothing_in_common_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m.safetensors", {"other": torch.ones(1)}, {})
    with pytest.raises(ValueError, match=r"no tensor in .* fits this network"):
        load_weights(create_model("c2d_tiny"), tmp_path / "m.safetensors", partial=True)


def test_a_network_with_blocks_put_in_later_is_not_saved_as_what_it_was(tmp_path: Path) -> None:
    model = insert_blocks(create_model("c2d_tiny", num_classes=2), after="res3.1")
    with pytest.raises(ValueError, match=r"no longer what its spec describes.*nonlocal_after"):
        save_model(model, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())
