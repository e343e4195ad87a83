"""A clip, its blocks and all they relate, as one HTML file to click in: no server, no network.

The page is put together from the parts in `page/` and opens from a folder, an e-mail or a web server alike.
Its content security policy allows the page's own script and style, by their hashes, and pictures inside the
page: nothing that a file name or a class name holds can run, and nothing can be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
import io
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import nonlocal_nn
from nonlocal_nn._files import write_whole
from nonlocal_nn._progress import count_bar
from nonlocal_nn.explain.explorer.pack import PackedBlock, pack_blocks

if TYPE_CHECKING:
    from nonlocal_nn.explain.capture.affinity import Capture

# Parts of one script, in this order.
_SCRIPTS = ("data.js", "scene.js", "panels.js", "main.js", "picture.js", "input.js")
_LOSSLESS_PIXELS = 400_000  # a clip of so few pixels in all is kept as PNG
# From the best to the smallest: the longer side in pixels, and JPEG's quality.
_PICTURES = ((512, 88), (320, 82), (224, 75), (160, 60), (96, 50))


def write_explorer(
    captured: Capture, path: str | Path, *, max_bytes: int = 10_000_000, title: str | None = None
) -> Path:
    """Write the page; it holds the rows of all query positions of all captured blocks.

    >>> import tempfile, torch, nonlocal_nn as nl
    >>> from nonlocal_nn.explain.capture.affinity import capture
    >>> model = nl.create_model("c2d_tiny_nl2", num_classes=6).eval()
    >>> captured = capture(model, torch.randn(1, 3, 8, 48, 48), title="noise")
    >>> page = write_explorer(captured, Path(tempfile.mkdtemp()) / "page.html")
    >>> page.read_text(encoding="utf-8")[:15], page.stat().st_size < 10_000_000
    ('<!doctype html>', True)

    Args:
        captured: from `capture`. Its rows are computed a few at a time and never held together.
        path: of the HTML file; it is there whole or not at all.
        max_bytes: the file is no larger. What has to give way for that (digits of a weight, small weights one
            by one, query positions) is chosen block by block, and the page says it.
        title: the heading; the capture's own where None.

    Returns:
        The path.

    Raises:
        ValueError: no block, frames that are no pictures, weights that are not finite, or `max_bytes` too few
            for this clip.
    """
    if not captured.blocks:
        raise ValueError("there is no block to show: the capture holds none")
    frames = captured.frames
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise ValueError(
            f"frames must be uint8 (frames, height, width, 3), got {frames.dtype} {frames.shape}"
        )
    for name, score in captured.classes:
        if not math.isfinite(score):
            raise ValueError(f"the score of class {name!r} is {score}: not a number that can be shown")
    if max_bytes < 1:
        raise ValueError(f"max_bytes={max_bytes}: a page has at least one byte")
    pictures = encode_frames(frames, max_bytes // 3)
    heading = title if title is not None else captured.title or "What the network relates"
    about = {
        "title": heading,
        "version": nonlocal_nn.__version__,
        "frames": {
            "count": frames.shape[0],
            "height": frames.shape[1],
            "width": frames.shape[2],
            "seconds": None
            if captured.frame_seconds is None
            else [round(s, 4) for s in captured.frame_seconds],
        },
        "pictures": pictures,
        "classes": [[name, round(float(score), 6)] for name, score in captured.classes],
    }
    # The page without weights, and what it says about each block; a letter may take six bytes.
    fixed = len(_page(about, [])) + sum(4000 + 6 * len(name) for name in captured.blocks)
    if fixed >= max_bytes:
        raise ValueError(
            f"max_bytes={max_bytes}: the page takes {fixed} bytes before the first weight; allow more"
        )
    with _progress() as (done, planned):
        packed = pack_blocks(captured.blocks, frames.shape[1:3], max_bytes - fixed, done, planned)
    page = _page(about, packed)
    path = Path(path)
    write_whole(path, lambda partial: partial.write_bytes(page))
    return path


def encode_frames(frames: npt.NDArray[np.uint8], max_bytes: int) -> list[str]:
    """Data URIs of the frames, together no more than `max_bytes` where that can be had.

    >>> encode_frames(np.zeros((2, 4, 4, 3), np.uint8), 10_000)[0][:22]
    'data:image/png;base64,'
    """
    from PIL import Image

    def encode(side: int, **options: Any) -> list[str]:
        uris = []
        for frame in frames:
            picture, file = Image.fromarray(frame), io.BytesIO()
            picture.thumbnail((side, side), Image.Resampling.LANCZOS)  # only ever smaller
            picture.save(file, **options)
            text = base64.b64encode(file.getvalue()).decode()
            uris.append(f"data:image/{options['format'].lower()};base64,{text}")
        return uris

    if frames.size // 3 <= _LOSSLESS_PIXELS:
        uris = encode(max(frames.shape[1:3]), format="PNG", optimize=True)
        if sum(map(len, uris)) <= max_bytes:
            return uris
    for side, quality in _PICTURES:
        uris = encode(side, format="JPEG", quality=quality, optimize=True)
        if sum(map(len, uris)) <= max_bytes:
            break
    return uris


def _page(about: dict[str, Any], packed: list[PackedBlock]) -> bytes:
    """The whole file. Everything from outside goes in as HTML text or as JSON without a single `<`."""
    parts = importlib.resources.files("nonlocal_nn.explain.explorer") / "page"
    style = _read(parts / "page.css")
    script = "\n".join(_read(parts / name) for name in _SCRIPTS)
    blocks: list[dict[str, Any]] = []
    payloads: list[str] = []
    for block in packed:
        arrays = {}
        for name, array in block.arrays.items():
            key = f"array-{len(payloads)}"
            arrays[name] = {
                "id": key,
                "dtype": array.dtype,
                "row": array.row,
                "differences": array.differences,
            }
            payloads.append(f'<script type="text/plain" id="{key}">{array.text.decode("ascii")}</script>\n')
        blocks.append({**block.description, "arrays": arrays})
    fill = {
        "TITLE": html.escape(about["title"]),
        "POLICY": "; ".join(
            [
                "default-src 'none'",
                f"script-src '{_hash(script)}'",
                f"style-src '{_hash(style)}'",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
                "require-trusted-types-for 'script'",
            ]
        ),
        "STYLE": style,
        "DATA": _json({**about, "blocks": blocks}),
        "ARRAYS": "".join(payloads),
        "SCRIPT": script,
    }
    pieces = _read(parts / "page.html").split("@@")  # text, NAME, text, NAME, ..., text
    return "".join(fill[piece] if n % 2 else piece for n, piece in enumerate(pieces)).encode(
        "utf-8", "replace"
    )


def _read(part: Any) -> str:
    return str(part.read_text(encoding="utf-8")).replace("\r\n", "\n")  # as a browser would hash it


def _hash(text: str) -> str:
    """What a content security policy calls this script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in.

    >>> _json("</script>")
    '"\\\\u003c/script>"'
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


@contextmanager
def _progress() -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """A bar on the terminal once packing has taken two seconds: `done(rows)` and `planned(rows)`."""
    from rich.console import Console

    console = Console(file=sys.stderr)
    bar = count_bar(console)
    task, since = bar.add_task("query positions", total=None), time.monotonic()

    def done(rows: int) -> None:
        bar.advance(task, rows)
        if console.is_terminal and time.monotonic() - since > 2:
            bar.start()

    def planned(rows: int) -> None:
        bar.update(task, total=bar.tasks[0].completed + rows)

    try:
        yield done, planned
    finally:
        if bar.live.is_started:  # else it would leave an empty line
            bar.stop()
