"""The options of `nonlocal explain`: a plain dataclass, from YAML or the command line; no torch here.

>>> ExplainConfig(videos=["clip.mp4"], checkpoint="runs/first").out
'explain.png'
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nonlocal_nn.explain.view import ARROWS, QUERY, SHOW, Show


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """See what the non-local blocks of a network relate in a video.

    The ending of --out decides what is written: a figure with arrows (.png, .svg, .pdf), a film (.mp4, .gif),
    or a page to click in, with all blocks and positions (.html). With --statistics, figures of many videos
    instead: how far the blocks look in space and time; exit code 1 if some could not be read.
    """

    videos: list[str] = field(default_factory=list)
    """One video or image; with --statistics, videos or folders that are searched for them."""
    checkpoint: str | None = None
    """Run folder of `nonlocal train` or `nonlocal demo`, or its model.safetensors."""
    out: str = "explain.png"
    """File to write: .png, .svg or .pdf (figure), .mp4 or .gif (film), .html (page one can click)."""
    block: str | None = None
    """Name of the block, such as res3.nonlocal1; none: the last one; all: each in a row of the figure."""
    query: str = QUERY
    """Which position is asked: FRAME,ROW,COLUMN (in the clip's frames and pixels, as the network sees them,
    from 0), centre, strongest (the one that the block changes most), grid or grid:2x3."""
    arrows: int = ARROWS
    """Arrows to so many of the largest weights."""
    show: Show = SHOW
    """Arrows, all weights as colours over the frames (heat), or both."""
    frames: str | None = None
    """Frames in the figure: how many, spread evenly (6), or which ones (0,3,7); none: up to eight."""
    start_seconds: float | None = None
    """Where in the video the clip starts; none: such that it lies in the middle."""
    clip_frames: int | None = None
    """Frames of the clip; none: as trained."""
    frame_stride: int | None = None
    """Take every n-th frame; none: as trained."""
    short_side: int | None = None
    """Shorter side of the frames in pixels; none: as the checkpoint says."""
    crop: int | None = None
    """Side of the square that is cut from the middle; none: the shorter side."""
    full_frame: bool = False
    """Show the network whole frames instead of a square."""
    statistics: str | None = None
    """Write how far each block looks, over all videos given, to this .csv, and a plot of it beside it."""
    queries: int = 256
    """With --statistics: positions asked of each block and video, spread evenly."""
    device: str = "auto"
    """auto (a CUDA GPU or else the CPU), cpu, cuda, cuda:1, ... or mps."""
    progress: bool = True
    """Show a progress bar."""
