"""`nl.explain`: a function for notebooks, a package for imports."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import nonlocal_nn as nl
from nonlocal_nn.explain.explanation import Explanation
from nonlocal_nn.explain.view import View
from tests.explain.captures import block_of, captured_of, rows_of, words

WITHOUT_PYAV = """
import sys

sys.modules["av"] = None  # import av raises ImportError

import torch
import nonlocal_nn as nl

explanation = nl.explain(nl.create_model("c2d_tiny_nl2"), torch.randn(3, 8, 48, 48))
for name in sys.argv[1:]:
    explanation.save(name)
"""


def test_the_name_is_a_function_and_a_package_in_whatever_order_it_is_used():
    package = "import nonlocal_nn.explain.capture.geometry"
    for lines in ((package, "nl.explain"), ("nl.explain", package), ("from nonlocal_nn import explain",)):
        code = "\n".join(("import nonlocal_nn as nl", *lines, "print(callable(nl.explain))"))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "True\n"
    assert list(inspect.signature(nl.explain).parameters)[:3] == ["model", "clip", "block"]
    assert "explain" in dir(nl)


@pytest.mark.parametrize(("dims", "size"), [(1, (60,)), (2, (16, 24)), (3, (4, 16, 24))])
def test_clips_images_and_sequences_with_and_without_a_batch_axis(dims, size):
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims](3, 4, 3, padding=1)
    model = nl.insert_blocks(nn.Sequential(conv, nn.ReLU()), after="1")
    x = torch.rand(3, *size)
    one, two = nl.explain(model, x), nl.explain(model, x[None])
    assert one._repr_png_() == two._repr_png_()
    assert one.captured.frames.shape == (1, 1, *size, 3)[-4:]


def test_a_query_outside_is_refused_at_once():
    model = nl.create_model("c2d_tiny_nl2")
    clip = torch.randn(3, 8, 48, 48)
    with pytest.raises(ValueError, match="query 8,0,0 "):
        nl.explain(model, clip, query=(8, 0, 0))
    with pytest.raises(ValueError, match="no non-local block 'res3'"):
        nl.explain(model, clip, block="res3")
    with pytest.raises(ValueError, match="the model has no non-local block"):
        nl.explain(nl.create_model("c2d_tiny"), clip[None])


def test_an_explanation_shows_itself_and_saves_by_the_ending(tmp_path: Path):
    explanation = Explanation(captured_of(block_of(rows_of("gaussian"))), View(query=(1, 2, 3), show="both"))
    assert explanation._repr_png_().startswith(b"\x89PNG")
    for name in ("a.png", "a.svg", "a.pdf", "a.gif", "a.mp4", "a.html"):
        assert explanation.save(tmp_path / name).stat().st_size > 1000
    with pytest.raises(ValueError, match=r"a\.jpg: cannot write '\.jpg'; the endings are \.png, "):
        explanation.save(tmp_path / "a.jpg")
    assert "grid" in words(explanation.figure(query="grid"))
    assert "row 1.5, column 1.5" in words(explanation.figure())


def test_a_tensor_is_explained_without_pyav(tmp_path: Path):
    files = [tmp_path / "figure.png", tmp_path / "page.html"]
    subprocess.run([sys.executable, "-c", WITHOUT_PYAV, *map(str, files)], check=True)
    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert files[1].read_text(encoding="utf-8").startswith("<!doctype html>")
