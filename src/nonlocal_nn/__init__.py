"""Non-local neural networks for images and video.

>>> import nonlocal_nn as nl
>>> nl.__version__
'0.1.0'

Names are imported when first used, so that `nonlocal --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nonlocal_nn import functional as functional
    from nonlocal_nn.blocks.global_context import GlobalContext as GlobalContext
    from nonlocal_nn.blocks.means_block import NonLocalMeansBlock as NonLocalMeansBlock
    from nonlocal_nn.blocks.nonlocal_block import NonLocalBlock as NonLocalBlock
    from nonlocal_nn.blocks.self_attention import SelfAttention2d as SelfAttention2d
    from nonlocal_nn.blocks.squeeze_excitation import SqueezeExcitation as SqueezeExcitation
    from nonlocal_nn.checkpoints.load import load_blocks as load_blocks
    from nonlocal_nn.checkpoints.load import load_model as load_model
    from nonlocal_nn.checkpoints.save import save_model as save_model
    from nonlocal_nn.detection.catalog import create_detector as create_detector
    from nonlocal_nn.detection.catalog import list_detectors as list_detectors
    from nonlocal_nn.detection.files import load_detector as load_detector
    from nonlocal_nn.detection.files import save_detector as save_detector
    from nonlocal_nn.explain.explanation import explain as explain
    from nonlocal_nn.insertion.insert import insert_blocks as insert_blocks
    from nonlocal_nn.models.catalog import create_model as create_model
    from nonlocal_nn.models.catalog import list_models as list_models
    from nonlocal_nn.models.reach import reach as reach
    from nonlocal_nn.ops.means.denoise import denoise_nl_means as denoise_nl_means
    from nonlocal_nn.pairwise import PairwiseFunction as PairwiseFunction

__version__ = "0.1.0"

# public name -> the module that defines it ("functional" is a module itself, "explain" a package to call)
_HOME = {
    "functional": "nonlocal_nn.functional",
    "PairwiseFunction": "nonlocal_nn.pairwise",
    "NonLocalBlock": "nonlocal_nn.blocks.nonlocal_block",
    "NonLocalMeansBlock": "nonlocal_nn.blocks.means_block",
    "SqueezeExcitation": "nonlocal_nn.blocks.squeeze_excitation",
    "GlobalContext": "nonlocal_nn.blocks.global_context",
    "SelfAttention2d": "nonlocal_nn.blocks.self_attention",
    "insert_blocks": "nonlocal_nn.insertion.insert",
    "create_model": "nonlocal_nn.models.catalog",
    "list_models": "nonlocal_nn.models.catalog",
    "create_detector": "nonlocal_nn.detection.catalog",
    "list_detectors": "nonlocal_nn.detection.catalog",
    "load_detector": "nonlocal_nn.detection.files",
    "save_detector": "nonlocal_nn.detection.files",
    "reach": "nonlocal_nn.models.reach",
    "explain": "nonlocal_nn.explain",
    "denoise_nl_means": "nonlocal_nn.ops.means.denoise",
    "load_blocks": "nonlocal_nn.checkpoints.load",
    "load_model": "nonlocal_nn.checkpoints.load",
    "save_model": "nonlocal_nn.checkpoints.save",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'nonlocal_nn' has no attribute {name!r}; it has: {', '.join(__all__)}")
    module = importlib.import_module(_HOME[name])
    value = module if name in ("functional", "explain") else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
