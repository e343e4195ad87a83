"""`nonlocal explain`: what the non-local blocks of a trained network look at, in one video or over many."""

from __future__ import annotations

import sys
from pathlib import Path

from nonlocal_nn._progress import percent_bar
from nonlocal_nn._text import printable
from nonlocal_nn.commands.predict import find
from nonlocal_nn.commands.trained import Trained, load_trained
from nonlocal_nn.data.errors import Problem, VideoError
from nonlocal_nn.data.transforms import ViewTransform
from nonlocal_nn.explain.capture.affinity import Capture, capture
from nonlocal_nn.explain.clip import ClipCut, read_clip
from nonlocal_nn.explain.config import ExplainConfig
from nonlocal_nn.explain.draw import figure
from nonlocal_nn.explain.explanation import Explanation, check_suffix
from nonlocal_nn.explain.queries import choose_blocks, parse_query
from nonlocal_nn.explain.statistics import BlockMeasures, average, measure_blocks, plot, write_csv
from nonlocal_nn.explain.view import View


def explain_command(config: ExplainConfig) -> int:
    """Write the figure, film or page of one video, or the statistics of many; 0, or 1 if some were broken.

    Raises:
        ValueError: options that do not fit the network or the video; nothing was written.
    """
    if config.checkpoint is None:
        raise ValueError(
            "no network to look into: give --checkpoint with a run folder or a model.safetensors. No trained "
            "weights come with this package; `nonlocal demo` or `nonlocal train` makes some"
        )
    if not config.videos:
        raise ValueError("no video given: nonlocal explain VIDEO --checkpoint RUN --out figure.png")
    if config.statistics is not None:
        return _statistics(config, config.checkpoint, config.statistics)
    out = check_suffix(config.out)
    view = View(config.block, config.query, _frames(config.frames), config.arrows, config.show)
    parse_query(config.query)
    if len(config.videos) > 1 or Path(config.videos[0]).is_dir():
        raise ValueError(
            f"{', '.join(config.videos)}: a figure shows one video; name one, or give --statistics FILE.csv "
            "for what holds of many"
        )
    trained = load_trained(config.checkpoint, config.device)
    captured = capture_video(config.videos[0], config, trained)
    if config.block is not None and config.block != "all":
        choose_blocks(captured, config.block)
    with percent_bar("drawing", shown=config.progress) as tick:
        Explanation(captured, view).save(out, progress=tick)
    print(f"{_what(out)}: {out}")
    return 0


def capture_video(path: str, config: ExplainConfig, trained: Trained) -> Capture:
    """One clip of a video through the network, cut as `config` says and as it was trained.

    Raises VideoError for a file that cannot be read, ValueError for what does not fit.
    """
    clip = read_clip(path, _cut(config, trained))
    return capture(
        trained.model,
        clip.tensor(trained.mean, trained.std),
        frames=clip.frames,
        frame_seconds=clip.frame_seconds,
        classes=trained.classes,
        title=printable(Path(path).name),
    )


def _cut(config: ExplainConfig, trained: Trained) -> ClipCut:
    if config.full_frame and config.crop is not None:
        raise ValueError(
            f"full_frame and crop = {config.crop} contradict each other: the whole frame, or a square of it?"
        )
    short_side = trained.short_side if config.short_side is None else config.short_side
    crop = None if config.full_frame else config.crop or short_side
    clip_frames = trained.clip_frames if config.clip_frames is None else config.clip_frames
    stride = trained.frame_stride if config.frame_stride is None else config.frame_stride
    if clip_frames < 1 or stride < 1:
        raise ValueError(f"clip_frames and frame_stride must be 1 or more, not {clip_frames} and {stride}")
    transform = ViewTransform(short_side=short_side, crop=crop, crops=1)
    return ClipCut(clip_frames, stride, transform, config.start_seconds)


def _frames(text: str | None) -> int | list[int] | None:
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"frames = {text!r}: give a number of frames (6) or which ones (0,3,7)") from None
    return numbers if "," in text else numbers[0]


def _what(path: Path) -> str:
    return {".html": "page", ".htm": "page", ".mp4": "film", ".gif": "film"}.get(
        path.suffix.lower(), "figure"
    )


def _statistics(config: ExplainConfig, checkpoint: str, out: str) -> int:
    """Measure every video that can be read; what was measured until Ctrl-C is written."""
    table = Path(out)
    if table.suffix.lower() != ".csv":
        raise ValueError(
            f"{table.name}: --statistics writes a .csv (and a plot beside it), not {table.suffix!r}"
        )
    if config.queries < 1:
        raise ValueError(f"queries = {config.queries}: at least one position must be asked")
    paths, problems = find(config.videos)
    failures = [_report(problem) for problem in problems]
    if not paths:
        return 1
    trained = load_trained(checkpoint, config.device)
    measures: list[BlockMeasures] = []
    try:
        with percent_bar("measuring", shown=config.progress) as tick:
            for done, path in enumerate(paths, 1):
                try:
                    captured = capture_video(path, config, trained)
                except VideoError as error:
                    failures.append(_report(error.problem))
                else:
                    measures += measure_blocks(captured, config.queries, path)
                tick(done, len(paths))
    finally:
        if measures:
            write_csv(measures, table)
    if not measures:
        raise ValueError(f"none of {len(paths)} videos could be measured; each has its reason above")
    picture = figure.save(plot(measures, f"What {trained.name} looks at"), table.with_suffix(".png"))
    _print_table(measures, len(failures))
    print(f"statistics: {table}\nplot: {picture}")
    return 1 if failures else 0


def _report(problem: Problem) -> Problem:
    print(f"nonlocal: {problem}", file=sys.stderr, flush=True)
    return problem


def _print_table(measures: list[BlockMeasures], skipped: int) -> None:
    from rich.console import Console
    from rich.table import Table

    videos = len({one.video for one in measures})
    table = Table(title=f"{videos} videos" + (f", {skipped} skipped" if skipped else ""))
    table.add_column("block")
    for name in ("pixels away", "frames away", "entropy, bits", "outside own frame"):
        table.add_column(name, justify="right")
    for one in average(measures):
        for name, values in ((one.block, one.measured), ("  equal weights", one.even)):
            table.add_row(
                name,
                f"{values.space_pixels:.1f}",
                f"{values.time_frames:.2f}",
                f"{values.entropy_bits:.2f}",
                f"{100 * values.outside_frame:.0f} %",
                style=None if name == one.block else "dim",
            )
    Console().print(table)
