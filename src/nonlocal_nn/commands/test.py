"""`nonlocal test`: the figures of a trained network on labelled videos, and the files that keep them."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonlocal_nn._files import open_text, write_whole
from nonlocal_nn._launch import launched
from nonlocal_nn.commands.trained import Trained, load_trained, scores_key, scoring_of, views_of
from nonlocal_nn.data.dataset import Skipped
from nonlocal_nn.data.errors import Problem
from nonlocal_nn.data.manifest import read_manifest
from nonlocal_nn.data.records import Manifest
from nonlocal_nn.evaluation.breakdown import (
    break_down,
    check_parts,
    check_quartets,
    choose_by_quartet,
    quartets_to_json,
)
from nonlocal_nn.evaluation.charades import charades_map, rows_of_csv, write_submission
from nonlocal_nn.evaluation.config import TestConfig
from nonlocal_nn.evaluation.parts import Parts, Scored, work_through
from nonlocal_nn.evaluation.result import EvaluationResult, write_predictions
from nonlocal_nn.evaluation.views import NothingTestedError, joined, pooled, score_dataset
from nonlocal_nn.experiments.statistics import bootstrap_interval

if TYPE_CHECKING:
    from rich.table import Table

    from nonlocal_nn.evaluation.quartets import ForcedChoice


def test_command(config: TestConfig) -> int:
    """Test, write the files, print the table; 0.

    Raises:
        ValueError, FileNotFoundError: options, videos or classes that do not fit the network.
    """
    out, results = run_test(config)
    if launched().rank == 0:
        _print_table(results)
        print(f"results: {out / 'results.json'}")
    return 0


def run_test(config: TestConfig) -> tuple[Path, dict[str, Any]]:
    """Test as `config` says; the folder with the files, and what results.json holds.

    Of several processes the first one alone joins, writes and returns the figures; the others return {}.

    The folder gets config.yaml, results.json, skipped.csv and, if asked for, predictions.csv or .npz; those
    of an earlier test there are replaced.
    Raises ValueError where no video could be tested, or its classes are not the network's.
    """
    trained = load_trained(config.checkpoint, config.device)
    columns = [name.strip() for name in (config.break_down_by or "").split(",") if name.strip()]
    manifest = _manifest(config, trained, columns)
    dataset = views_of(manifest, config, trained)
    pool = config.pool or ("max" if manifest.kind == "charades_csv" else "mean")
    if pool == "max" and not trained.multi_label:
        sys.stderr.write("a video's score is the largest of its views' (--pool max), for one label a video\n")
    scoring = replace(scoring_of(config, trained), pool=pool)
    out = trained.file.parent / "test" if config.out is None else Path(config.out)
    out.mkdir(parents=True, exist_ok=True)

    start = time.monotonic()
    first = launched().rank == 0
    if first:
        (out / "results.json").unlink(missing_ok=True)
    store = Parts(out / ".parts", scores_key(trained, dataset, scoring, config.device))

    def score(indices: list[int]) -> Iterable[Scored | Skipped]:
        progress = config.progress and first
        items = score_dataset(
            trained.model, dataset, scoring, only=indices, workers=config.workers, progress=progress
        )
        return pooled(items, scoring)

    found = work_through(store, len(dataset), score)
    if found is None:
        return out, {}
    try:
        result = joined(found, scoring)
    except NothingTestedError as error:
        store.remove()
        _write_skipped(out, (*manifest.problems, *error.skipped))
        raise
    seconds = time.monotonic() - start

    skipped = (*manifest.problems, *result.skipped)
    groups = None if config.group_by is None else manifest.records.groups()
    parts = break_down(result, manifest.records.parts(), groups) if columns else []
    results = {
        "model": trained.name,
        "checkpoint": str(trained.file),
        "data": config.data,
        "where": config.where,
        "clips": config.clips,
        "crops": "full frame" if config.full_frame else config.crops,
        "clip_frames": dataset.clip_frames,
        "frame_stride": dataset.frame_stride,
        "short_side": dataset.transform.short_side,
        "crop": dataset.transform.crop,
        "precision": config.precision,
        "pool": pool,
        **result.to_json(),
        **(_average_precisions(config, manifest, result) if trained.multi_label else {}),
        "skipped": len(skipped),
        "classes_left_out": [trained.classes[index] for index in result.classes_left_out],
        **({} if groups is None else _quartets(choose_by_quartet(result, groups))),
        **({"parts": [part.to_json(columns) for part in parts]} if columns else {}),
        "test_seconds": round(seconds, 2),
    }
    _write_files(out, config, manifest, trained, result, skipped)
    if config.submission is not None:
        paths = [manifest.records[index].path for index in result.indices]
        write_submission(config.submission, paths, result.scores)
    text = json.dumps(results, indent=2) + "\n"
    write_whole(
        out / "results.json", lambda partial: partial.write_text(text)
    )  # last: a folder with it is whole
    store.remove()
    return out, results


def _average_precisions(config: TestConfig, manifest: Manifest, result: EvaluationResult) -> dict[str, Any]:
    """Both counts; `map` is the one that was asked for."""
    official = charades_map(*rows_of_csv(result, manifest))
    kind = config.map or ("official" if manifest.kind == "charades_csv" else "labelled")
    return {
        "map": official.percent if kind == "official" else result.map,
        "map_kind": kind,
        "map_official": official.percent,
        "map_official_weighted": official.weighted,
        "map_labelled": result.map,
    }


def _quartets(found: ForcedChoice | None) -> dict[str, Any]:
    """The forced choice with its 95 % interval, of other quartets like these for this one network."""
    figures = quartets_to_json(found)
    if found is not None and found.quartets > 1:
        interval = bootstrap_interval(found.decisions, range(found.quartets))
        figures["quartets_interval"] = [round(100.0 * end, 2) for end in interval]
    return figures


def _manifest(config: TestConfig, trained: Trained, columns: list[str]) -> Manifest:
    """The videos, with the network's own classes, so that a class missing here shifts no label."""
    manifest = read_manifest(
        config.data,
        kind=config.kind,
        root=config.root,
        classes=trained.classes,
        where=config.where,
        group_by=config.group_by,
        part_by=columns,
    )
    manifest.require_known_labels()
    if launched().rank == 0:
        sys.stderr.writelines(f"{note}\n" for note in manifest.notes)
    if manifest.multi_label and not trained.multi_label:
        raise ValueError(
            f"{config.data} has several labels a video, but the network was trained to choose one class; "
            "train with --optim.loss sigmoid for several"
        )
    if trained.multi_label and (columns or config.group_by is not None):
        raise ValueError(
            "--group_by and --break_down_by count right videos, of one class each; the network was trained "
            "for several classes a video"
        )
    if config.group_by is not None:
        if len(trained.classes) != 2:
            raise ValueError(
                f"--group_by chooses between two classes; the network has {len(trained.classes)}"
            )
        records = manifest.records
        check_quartets(records.groups(), [labels for _, labels, _, _ in records.rows()], config.group_by)
        check_parts(records.groups(), records.parts())
    return replace(manifest, multi_label=trained.multi_label)


def _write_files(
    out: Path,
    config: TestConfig,
    manifest: Manifest,
    trained: Trained,
    result: EvaluationResult,
    skipped: Iterable[Problem],
) -> None:
    import yaml  # type: ignore[import-untyped]

    text = yaml.safe_dump(asdict(config), sort_keys=False)
    write_whole(out / "config.yaml", lambda partial: partial.write_text(text))
    _write_skipped(out, skipped)
    if config.predictions != "none":
        paths = list(manifest.records.paths)
        write_predictions(result, paths, trained.classes, out / f"predictions.{config.predictions}")


def _write_skipped(out: Path, skipped: Iterable[Problem]) -> None:
    rows = list(skipped)

    def write(partial: Path) -> None:
        with open_text(partial) as stream:
            writer = csv.writer(stream)
            writer.writerow(["path", "reason"])
            writer.writerows(rows)

    write_whole(out / "skipped.csv", write)


def _print_table(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{results['model']}: {results['videos']} videos, {results['views']} views")
    table.add_column("measure")
    table.add_column("percent", justify="right")
    for name, text in (
        ("video_top1", f"video top-1 ({results['pool']} over views)"),
        ("video_top5", "video top-5"),
        ("clip_top1", "clip top-1 (each view by itself)"),
        ("clip_top5", "clip top-5"),
        ("mean_class", "mean over classes of video top-1"),
        ("map", f"mean average precision, {results.get('map_kind')}"),
    ):
        if results[name] is not None:
            table.add_row(text, f"{results[name]:.2f}")
    if "quartets" in results:
        table.add_row(
            f"quartets ({results['quartets']}), a tie counted half", f"{results['quartets_right']:.2f}"
        )
        if "quartets_interval" in results:
            low, high = results["quartets_interval"]
            table.add_row("95 % interval (bootstrap over quartets)", f"{low:.1f} to {high:.1f}")
        table.add_row("quartets that tie", f"{results['quartets_tied']:.2f}")
    console = Console()
    console.print(table)
    if results.get("parts"):
        console.print(_parts_table(results["parts"]))
    if results["classes_left_out"]:
        console.print(
            f"classes without a video, left out: {', '.join(results['classes_left_out'])}", markup=False
        )
    if results["skipped"]:
        console.print(f"videos skipped: {results['skipped']}, listed in skipped.csv", markup=False)


def _parts_table(parts: list[dict[str, Any]]) -> Table:
    """A row for each part, with the columns it was cut by first."""
    from rich.table import Table

    titles = {"video_top1": "video top-1 %", "quartets_right": "quartets %", "quartets_tied": "ties %"}
    table = Table()
    for name in parts[0]:
        table.add_column(titles.get(name, name), justify="right")
    for part in parts:
        table.add_row(
            *(f"{value:.2f}" if isinstance(value, float) else str(value) for value in part.values())
        )
    return table
