"""`nonlocal render`: write the long-range set, a question of known distance, as real video files."""

from __future__ import annotations

from dataclasses import dataclass, fields

from nonlocal_nn.data.long_range import LongRange


@dataclass(frozen=True, kw_only=True)
class RenderConfig(LongRange):
    """Write videos that ask: is the ink of two pieces of handwriting, so far apart, the same?

    Each is seen in two frames somewhere over a still background. A network whose features hold no part of
    both is right in exactly half of the quartets, whatever its weights; `nonlocal test --group_by quartet`
    measures that. OUT gets train/, test/ and labels.csv (path, label, set, quartet, distance_pixels,
    distance_frames), which --data.train and --data read. A set of the same options is left as it is.
    """

    out: str
    """Folder to write to."""
    workers: int | None = None
    """Processes that encode; none: one for each core."""
    progress: bool = True
    """Show a progress bar."""


def render_command(config: RenderConfig) -> int:
    """Write the set, say where and how to use it; 0."""
    from rich.console import Console

    from nonlocal_nn._progress import percent_bar
    from nonlocal_nn.data.long_range import write_long_range

    options = LongRange(**{spec.name: getattr(config, spec.name) for spec in fields(LongRange)})
    with percent_bar("rendering videos", shown=config.progress) as progress:
        labels = write_long_range(config.out, options, workers=config.workers, progress=progress)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"{options.train_videos} training and {options.test_videos} held-out videos: {labels}")
    train = f'nonlocal train --data.train {labels} --data.train_where "set == train" --data.group_by quartet'
    console.print(f"{train} ...")
    test = f'--data {labels} --where "set == test" --group_by quartet --break_down_by distance_pixels'
    console.print(f"nonlocal test {test} --clips 1 --crops 1 --checkpoint RUN")
    return 0
