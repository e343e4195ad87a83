"""Networks as folders for the Hugging Face hub, there and back; nothing is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import nonlocal_nn as nl
from nonlocal_nn.models.video_resnet import VideoResNet


def test_pretrained_folder_there_and_back(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="the hub is an optional extra")
    model = nl.create_model("c2d_tiny_nl1", num_classes=2)
    torch.nn.init.ones_(model.get_parameter("res3.nonlocal0.norm.weight"))
    model.classes = ("hug", "kick")
    model.save_pretrained(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "c2d_tiny_nl1" in card
    assert "hug, kick" in card
    assert "library_name: nonlocal-nn" in card
    again = VideoResNet.from_pretrained(str(tmp_path / "model"))
    assert again.classes == ("hug", "kick")
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())


def test_push_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be uploaded, with the hub played by a list."""
    hub = pytest.importorskip("huggingface_hub.hub_mixin", reason="the hub is an optional extra")
    sent: list[tuple[str, set[str]]] = []

    class FakeHub:
        def __init__(self, **options: Any) -> None:
            pass

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            return type("Repo", (), {"repo_id": f"someone/{repo_id}"})()

        def upload_folder(self, *, repo_id: str, folder_path: str, **options: Any) -> str:
            sent.append((repo_id, {path.name for path in Path(folder_path).iterdir()}))
            return "sent"

    monkeypatch.setattr(hub, "HfApi", FakeHub)
    assert nl.create_model("c2d_tiny", num_classes=2).push_to_hub("mine") == "sent"
    assert sent == [("someone/mine", {"README.md", "model.safetensors"})]
