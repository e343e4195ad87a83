"""What is measured against each other computes the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from _cases import FUNCTIONS, Case
from _contenders import contenders
from _measure import compare
from _operands import Operands, make_block
from _peers import PEERS, find
from _plain import PlainBlock
from tests.blocks.plain_block import plain_block


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("subsample", [False, True])
@pytest.mark.parametrize("level", ["operator", "block"])
def test_all_contenders_agree_in_results_and_gradients(function: str, subsample: bool, level: str) -> None:
    case = Case(level, function, "tiny", 8, (2, 6, 4), subsample, "forward_backward", "float64")
    operands = Operands(case, "cpu")
    known = contenders(case, ())
    results = {name: one.build(operands)() for name, one in known.items() if one.like is not None}
    assert len(results) > 1
    for name, result in results.items():
        assert compare(result, results["ours"], "float64")["difference"] < 1e-9, name


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("subsample_at", ["embedding", "input"])
def test_the_plain_block_is_the_one_of_the_definitions(function: str, subsample_at: str) -> None:
    case = Case("block", function, "tiny", 6, (2, 5, 4), True, "forward", "float64")
    block = make_block(case, "cpu", subsample_at=subsample_at)
    x = Operands(case, "cpu").leaves["x"]
    torch.testing.assert_close(PlainBlock(block)(x), plain_block(block, x))


def test_a_result_that_differs_is_not_counted() -> None:
    one = torch.ones(3)
    assert compare((one,), (one,), "float32") == {"difference": 0.0}
    assert compare((one * 1.5,), (one,), "float32")["status"] == "differs by 5.0e-01"
    assert compare((one * torch.nan,), (one,), "float32")["status"] == "differs by inf"


def test_a_peer_is_loaded_from_its_checkout_with_our_weights(tmp_path: Path) -> None:
    """A made-up checkout, in the place and with the names of mmcv's block, that imports what it imports."""
    peer_file = tmp_path / "mmcv/cnn/bricks/non_local.py"
    peer_file.parent.mkdir(parents=True)
    peer_file.write_text(
        "import torch\n"
        "from mmengine.model import constant_init\n"
        "from mmengine.registry import MODELS\n"
        "from .conv_module import ConvModule\n"
        "@MODELS.register_module()\n"
        "class NonLocal2d(torch.nn.Module):\n"
        "    def __init__(self, channels, reduction, use_scale, mode, sub_sample, norm_cfg):\n"
        "        super().__init__()\n"
        "        assert (mode, use_scale, sub_sample) == ('dot_product', False, False)\n"
        "        cfg, inner = dict(type='Conv2d'), channels // reduction\n"
        "        make = lambda a, b, **k: ConvModule(a, b, kernel_size=1, conv_cfg=cfg, act_cfg=None, **k)\n"
        "        self.theta, self.phi, self.g = (make(channels, inner) for _ in range(3))\n"
        "        self.conv_out = make(inner, channels, norm_cfg=norm_cfg)\n"
        "    def forward(self, x):\n"
        "        theta, phi, g = (m(x).flatten(2) for m in (self.theta, self.phi, self.g))\n"
        "        y = torch.einsum('bdi,bdj,bcj->bci', theta, phi, g) / phi.shape[2]\n"
        "        return x + self.conv_out(y.view(*y.shape[:2], *x.shape[2:]))\n"
    )
    case = Case("block", "dot_product", "tiny", 8, (5, 4), False, "forward_backward", "float64")
    known = contenders(case, (tmp_path,))
    operands = Operands(case, "cpu")
    result, ours = known["mmcv"].build(operands)(), known["ours"].build(operands)()
    assert compare(result, ours, "float64")["difference"] < 1e-9


def test_what_a_peer_cannot_do_is_left_out(tmp_path: Path) -> None:
    slowfast = next(peer for peer in PEERS if peer.name == "SlowFast")
    assert (
        slowfast.why_not(Case("block", "gaussian", "", 8, (2, 2, 2), False, "forward")) == "has no gaussian"
    )
    assert "2-dimensional" in slowfast.why_not(Case("block", "dot_product", "", 8, (2, 2), False, "forward"))
    with pytest.raises(ValueError, match="not a checkout of a project known here"):
        find(tmp_path)
