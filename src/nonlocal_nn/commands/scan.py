"""`nonlocal scan`: videos, or the images and objects of a COCO json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from nonlocal_nn._files import write_csv, write_whole
from nonlocal_nn.data.coco_scan import CocoReport, scan_coco
from nonlocal_nn.data.scan import ScanConfig
from nonlocal_nn.data.scan import scan_command as scan_videos
from nonlocal_nn.detection.anchors import best_overlaps
from nonlocal_nn.detection.catalog import get_detector_spec

_SHOWN = 20


def scan_command(config: ScanConfig) -> int:
    """Scan, print, write; return 0 if nothing is broken, 1 if something is.

    Raises:
        FileNotFoundError, ValueError: there is no such source, or it is something else; options that are for
            the other kind.
    """
    if Path(config.source).suffix.lower() == ".json":
        return _scan_coco(config)
    for name in ("images", "detector"):
        if getattr(config, name) != getattr(ScanConfig, name):
            raise ValueError(f"--{name} is for a COCO json; {config.source} is none")
    return scan_videos(config)


def _scan_coco(config: ScanConfig) -> int:
    for name in ("kind", "root", "where", "min_frames", "index", "ray"):
        if getattr(config, name) != getattr(ScanConfig, name):
            raise ValueError(f"--{name} is for videos; {config.source} is a COCO json")
    if config.out is not None and Path(config.out).suffix not in {".csv", ".json"}:
        raise ValueError(f"out must end in .csv or .json, not {config.out!r}")
    spec = get_detector_spec(config.detector)
    report = scan_coco(config.source, config.images, workers=config.workers, progress=config.progress)
    read = report.sizes[:, 0] > 0
    overlaps = best_overlaps(report.found.boxes[read], report.sizes[read], spec)
    reached = [float((overlaps >= limit).mean()) if len(overlaps) else 0.0 for limit in (0.5, 0.7)]
    values = _values(report, config, reached)
    if config.json:
        json.dump(values, sys.stdout, indent=2)
        print()
    else:
        _print(report, config, reached)
    if config.out is not None:
        out = Path(config.out)
        if out.suffix == ".json":
            text = json.dumps(values, indent=2) + "\n"
            write_whole(out, lambda partial: partial.write_text(text))
        else:
            write_csv(out, ("path", "reason"), report.broken)
    return 1 if report.broken else 0


def _values(report: CocoReport, config: ScanConfig, reached: list[float]) -> dict[str, Any]:
    small, medium, large = report.shares
    return {
        "source": config.source,
        "task": report.found.task,
        "images": len(report.found),
        "images_without_objects": int((np.diff(report.found.ends) == 0).sum()),
        "objects": len(report.found.labels),
        "crowds": int(report.found.crowds.sum()),
        "small": round(small, 4),
        "medium": round(medium, 4),
        "large": round(large, 4),
        "categories": [
            {"id": row.category.id, "name": row.category.name, "objects": row.objects, "images": row.images}
            for row in report.categories
        ],
        "keypoints": [
            {"name": name, "marked": marked, "visible": visible} for name, marked, visible in report.keypoints
        ],
        "detector": config.detector,
        "anchors_reach_0.5": round(reached[0], 4),
        "anchors_reach_0.7": round(reached[1], 4),
        "notes": list(report.notes),
        "broken": [{"path": path, "reason": reason} for path, reason in report.broken],
    }


def _print(report: CocoReport, config: ScanConfig, reached: list[float]) -> None:
    from rich.console import Console
    from rich.markup import escape

    for problem in report.broken[:_SHOWN]:
        print(f"broken\t{problem.path}\t{problem.reason}")
    if len(report.broken) > _SHOWN:
        print(f"and {len(report.broken) - _SHOWN} more (--out FILE.csv lists all)")
    for note in report.notes:
        print(f"note\t{note}")
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width to fit
        console = Console(width=10_000)
    table = _table("category", "id", "objects", "images")
    for row in report.categories:
        if row.objects:
            table.add_row(escape(row.category.name), *map(str, (row.category.id, row.objects, row.images)))
    console.print(table)
    if report.keypoints:
        points = _table("keypoint", "marked", "visible")
        for name, marked, visible in report.keypoints:
            points.add_row(escape(name), str(marked), str(visible))
        console.print(points)
    unused = [row.category.name for row in report.categories if not row.objects]
    if unused:
        few = ", ".join(unused[:5]) + (" ..." if len(unused) > 5 else "")
        print(f"categories without an object: {len(unused)} ({few})")
    small, medium, large = (f"{100 * share:.0f} %" for share in report.shares)
    print(f"{small} small objects (under 32 x 32 pixels), {medium} medium, {large} large (over 96 x 96)")
    print(
        f"anchors of {config.detector}: {100 * reached[0]:.0f} % of the boxes have one of IoU 0.5, "
        f"{100 * reached[1]:.0f} % of 0.7 (--detector NAME for another)"
    )
    empty = int((np.diff(report.found.ends) == 0).sum())
    print(
        f"{len(report.found)} images ({empty} without objects), {len(report.found.labels)} objects with "
        f"{report.found.task}, {int(report.found.crowds.sum())} of them crowds; {len(report.broken)} broken"
    )


def _table(*columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table
