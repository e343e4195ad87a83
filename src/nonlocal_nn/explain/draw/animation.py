"""The figure over time, as mp4 or GIF: the query's frame on the left, the clip playing on the right.

Under both stands the share of the query's weight on each frame, with the frame that is shown marked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nonlocal_nn._files import write_whole
from nonlocal_nn.explain.capture.affinity import Capture
from nonlocal_nn.explain.capture.block import BlockAffinity
from nonlocal_nn.explain.draw.captions import block_line, short, title_line, weight_note
from nonlocal_nn.explain.draw.overlay import (
    CENTRE,
    NEGATIVE,
    POSITIVE,
    QUIET,
    Arrows,
    draw_heat,
    heat,
    largest,
    style,
    weight_by_frame,
)
from nonlocal_nn.explain.queries import Query, asked_rows
from nonlocal_nn.explain.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".mp4", ".gif")
_DPI = 100
_SLOWEST, _FASTEST = 2.0, 10.0  # pictures a second: slow enough to follow the arrows
KEPT_COLOURS = (POSITIVE, NEGATIVE, CENTRE, "#FFFFFF", "#000000")
Picture = NDArray[np.uint8]


def save_animation(
    captured: Capture,
    path: str | Path,
    view: View,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the clip playing beside the query's frame, with the arrows and the heat that end on each frame.

    Args:
        captured: from `capture`.
        path: ending in .mp4 (H.264, plays everywhere) or .gif.
        view: of a grid of queries the first is shown; every frame is, whatever `view.frames` says.
        progress: called with (pictures drawn, all pictures).

    Raises ValueError for another ending, an image (which does not play), or a block or query that does not
    exist.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{path.name}: an animation is written as {', '.join(SUFFIXES)}, not {path.suffix!r}"
        )
    if len(captured.frames) < 2:
        raise ValueError(
            f"{path.name}: one frame does not play; write a figure (.png, .svg, .pdf) or a page (.html)"
        )
    if view.block == "all":
        raise ValueError("an animation shows one block; name it")
    block, query = asked_rows(captured, view)[0]
    pictures = _pictures(captured, view, block, query, progress)
    rate = _rate(captured)
    write = _write_mp4 if suffix == ".mp4" else _write_gif
    write_whole(path, lambda partial: write(partial, pictures, rate))
    return path


def _rate(captured: Capture) -> float:
    """Pictures a second: as fast as the clip, within what can be followed."""
    if captured.frame_seconds is None:
        return 4.0
    gaps = np.diff(captured.frame_seconds)
    gap = float(np.median(gaps)) if len(gaps) else 0.25
    return float(np.clip(1 / gap if gap > 0 else _FASTEST, _SLOWEST, _FASTEST))


def _pictures(
    captured: Capture,
    view: View,
    block: BlockAffinity,
    query: Query,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Picture]:
    row = block.rows([query.position])[0]
    for number in range(len(captured.frames)):
        with style():
            figure = _scene(captured, view, block, query, row, number)
            yield _as_pixels(figure)
        if progress is not None:
            progress(number + 1, len(captured.frames))


def _scene(
    captured: Capture,
    view: View,
    block: BlockAffinity,
    query: Query,
    row: NDArray[np.float32],
    number: int,
) -> Figure:
    from matplotlib.figure import Figure

    frames, height, width = captured.frames.shape[:3]
    panel = min(4.4, 4.4 * width / height)
    tall = panel * height / width
    margin, gap, head, below = 0.2, 0.1, 0.62, 1.42
    page, total = 2 * panel + gap + 2 * margin, head + tall + below
    figure = Figure(figsize=(round(page * _DPI / 2) * 2 / _DPI, round(total * _DPI / 2) * 2 / _DPI))
    room = page - 2 * margin

    def text(x: float, y: float, words: str, points: float, **how: Any) -> None:
        figure.text(x / page, 1 - y / total, short(words, room, points), va="top", fontsize=points, **how)

    text(margin, 0.12, title_line(captured), 11, weight="bold")
    text(margin, 0.37, block_line(block), 8, color=QUIET)
    axes = figure.add_axes((margin / page, 1 - (head + tall) / total, (room) / page, tall / total))
    own = min(frames - 1, max(0, round(query.frame)))
    pitch = width * (1 + gap / panel)
    signed = not block.sums_to_one and float(row.min()) < 0
    for place, frame in enumerate((own, number)):
        x = place * pitch
        extent = (x - 0.5, x + width - 0.5, height - 0.5, -0.5)
        axes.imshow(captured.frames[frame], extent=extent, zorder=0)
        if view.show != "arrows" and place == 1:
            weights = heat(row, block.keys, frame, (height, width))
            draw_heat(axes, captured.frames[frame], weights, float(np.abs(row).max()) or 1.0, signed, extent)
    axes.set_xlim(-0.5, pitch + width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.axis("off")
    targets = largest(row, block.keys, view.arrows) if view.show != "heat" else []
    here = block.keys.nearest(number, 0, 0)
    shown = [target for target in targets if block.keys.nearest(target.frame, 0, 0) == here]
    # On a strip of two frames, 0 and 1: arrows go from the query's to the one that plays.
    strip = Arrows(axes, (0, 1), pitch, most=abs(targets[0].weight) if targets else 1.0)
    strip.draw(replace(query, frame=0), [replace(target, frame=1) for target in shown])
    named = f"query: {query.text}, frame {own}{_seconds(captured, own)}"
    y = head + tall + 0.06
    text(margin, y, named, 8, color=QUIET)
    words = f"frame {number}{_seconds(captured, number)}"
    figure.text((margin + panel + gap) / page, 1 - y / total, words, va="top", fontsize=8, color=QUIET)
    timeline = figure.add_axes((margin / page, 0.52 / total, (room - 0.4) / page, 0.42 / total))
    _timeline(timeline, captured, row, block, number, own)
    text(margin, total - 0.2, weight_note(block, row, targets, 1, view.show), 7, color=QUIET)
    return figure


def _timeline(
    axes: Axes, captured: Capture, row: NDArray[np.float32], block: BlockAffinity, number: int, own: int
) -> None:
    """How much of the weight lies on each frame of the keys."""
    shares = 100 * weight_by_frame(row, block.keys)
    centres, step = block.keys.axis_centres()[0], block.keys.step[0]
    current = block.keys.nearest(number, 0, 0) // (block.keys.shape[1] * block.keys.shape[2])
    colours = [POSITIVE if at == current else "#c9c9c9" for at in range(len(shares))]
    axes.bar(centres, shares, width=0.86 * step, color=colours)
    axes.plot([own], [0], "o", color=CENTRE, ms=5, clip_on=False, zorder=4)
    axes.axvline(number, color=NEGATIVE, linewidth=1.2, zorder=3)
    axes.set_xlim(-0.6, len(captured.frames) - 0.4)
    axes.set_ylim(0, max(float(shares.max()), 1e-9) * 1.08)
    axes.set_yticks([0, float(shares.max())], labels=["0", f"{shares.max():.0f} %"])
    axes.yaxis.tick_right()
    axes.tick_params(labelsize=7, length=2, colors=QUIET, pad=1.5)
    axes.set_title("share of the weight on each frame", fontsize=7.5, color=QUIET, loc="left", pad=3)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c9c9c9")


def _seconds(captured: Capture, frame: int) -> str:
    return "" if captured.frame_seconds is None else f", {captured.frame_seconds[frame]:.2f} s"


def _as_pixels(figure: Figure) -> Picture:
    import warnings

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(_DPI)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    pixels = pixels[..., :3]
    return np.ascontiguousarray(pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2])


def _write_mp4(path: Path, pictures: Iterator[Picture], rate: float) -> None:
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = None
        for picture in pictures:
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
                stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv420p"
                stream.options = {"crf": "20", "preset": "medium"}
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def _write_gif(path: Path, pictures: Iterator[Picture], rate: float) -> None:
    from PIL import Image

    images = []
    for picture in pictures:
        # Our own colours are few pixels: a palette of the picture alone would round them to others.
        patches = np.array([[_rgb(colour)] * picture.shape[1] for colour in KEPT_COLOURS * 8], dtype=np.uint8)
        palette = Image.fromarray(np.concatenate([picture, patches])).quantize(255)
        images.append(Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE))
    first, *others = images
    first.save(
        path,
        format="GIF",
        save_all=True,
        append_images=others,
        duration=round(1000 / rate),
        loop=0,
        optimize=False,
    )


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
