"""Networks on the Hugging Face hub: our own file and a model card. huggingface_hub is imported when used.

`VideoResNet.from_pretrained`, `save_pretrained` and `push_to_hub` call the functions of the same names here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nonlocal_nn.checkpoints.load import load_model
from nonlocal_nn.checkpoints.native import MODEL_FILE
from nonlocal_nn.checkpoints.save import save_model
from nonlocal_nn.models.video_resnet import VideoResNet

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

_CARD = """---
{{ card_data }}
---

# {{ name }}

A video network of [nonlocal_nn](https://arxiv.org/abs/1711.07971): {{ name }}, {{ classes }} classes,
for clips of {{ frames }} frames of {{ crop }} x {{ crop }} pixels.

```python
from nonlocal_nn.models.video_resnet import VideoResNet

model = VideoResNet.from_pretrained("{{ repo_id }}")
logits = model(clip)  # clip: float (batch, 3, frames, height, width)
```

Classes: {{ class_names }}.

Everything about the network:

```json
{{ spec }}
```
"""


Network = TypeVar("Network", bound=VideoResNet)


def from_pretrained(
    model_class: type[Network],
    name: str,
    *,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | None,
    force_download: bool,
    local_files_only: bool,
) -> Network:
    """The network of a repository on the hub, or of a folder from `save_pretrained`; in eval mode.

    Raises:
        ImportError: huggingface_hub is not installed.
        ValueError: it holds another model than a `model_class`.
    """
    model = _mixin(None).from_pretrained(
        name,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        force_download=force_download,
        local_files_only=local_files_only,
    )
    if not isinstance(model, model_class):
        raise ValueError(f"{name} holds a {type(model).__name__}, not a {model_class.__name__}")
    return model


def save_pretrained(model: VideoResNet, folder: str | Path) -> None:
    """Write model.safetensors and a model card (README.md) into a folder.

    Raises:
        ImportError: huggingface_hub is not installed.
        ValueError: as `save_model`.
    """
    _mixin(model).save_pretrained(folder)


def push_to_hub(
    model: VideoResNet, name: str, *, message: str, private: bool | None, token: str | None
) -> str:
    """Upload what `save_pretrained` writes; returns the commit's address.

    Raises:
        ImportError: huggingface_hub is not installed.
        ValueError: as `save_model`.
    """
    return str(
        _mixin(model).push_to_hub(
            name,
            commit_message=message,
            private=private,
            token=token,
            model_card_kwargs={"repo_id": name},
        )
    )


def _mixin(model: VideoResNet | None) -> Any:
    """The mixin of huggingface_hub around a network; of None, its class alone, to load with.

    Raises:
        ImportError: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin, hf_hub_download
    except ImportError as error:
        raise ImportError(
            "the hub needs huggingface_hub: pip install 'nonlocal-nn[hub]'", name=error.name
        ) from error

    class HubModel(PyTorchModelHubMixin, library_name="nonlocal-nn", tags=["video-classification"]):
        """A folder with model.safetensors and README.md."""

        def __init__(self) -> None:
            self.model = model

        def _save_pretrained(self, save_directory: Path) -> None:
            assert self.model is not None
            save_model(self.model, Path(save_directory) / MODEL_FILE)

        @classmethod
        def _from_pretrained(
            cls,
            *,
            model_id: str,
            revision: str | None,
            cache_dir: str | Path | None,
            force_download: bool,
            local_files_only: bool,
            token: str | bool | None,
            **_: Any,
        ) -> Any:
            if Path(model_id).is_dir():
                return load_model(model_id)
            file = hf_hub_download(
                model_id,
                MODEL_FILE,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
            return load_model(file)

        def generate_model_card(self, *_: Any, repo_id: str = "this repository", **__: Any) -> ModelCard:
            assert self.model is not None
            assert self.model.spec is not None
            spec = self.model.spec
            card: ModelCard = ModelCard.from_template(
                ModelCardData(library_name="nonlocal-nn", tags=["video-classification"]),
                template_str=_CARD,
                name=spec.name,
                classes=spec.num_classes,
                frames=spec.frames,
                crop=spec.crop,
                class_names=", ".join(self.model.classes or ["not named"]),
                spec=spec.to_json(),
                repo_id=repo_id,
            )
            return card

    return HubModel if model is None else HubModel()
