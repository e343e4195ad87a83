"""Time in alternation and peak memory of a case's contenders. These functions run in fresh processes."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _cases import Case
from _contenders import Call, contenders
from _memory import fail_rather_than_fill_the_machine, in_words, machine_bytes, resident_bytes
from _operands import Operands
from _products import square_rate_gflops

Row = dict[str, Any]

SHARE_OF_MEMORY = 0.9  # of what is free, before a measurement is refused
# Up to ten times the rounds asked for: quick calls for so long, and disturbed ones until each contender's two
# fastest rounds agree, if that does not take much longer.
SETTLED_SECONDS, DISTURBED_SECONDS = 1.0, 20.0
SAME = 1.05
# Relative to the largest value. Sums in other orders differ more in a gradient, which is a sum of sums.
AGREE = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}


@dataclass(frozen=True)
class Settings:
    """How to measure."""

    rounds: int = 5
    threads: int = 1
    device: str = "cpu"
    slow_seconds: float = 60.0  # whoever takes longer is called once
    peers: tuple[Path, ...] = ()


def room_bytes(device: str) -> int:
    """What a measurement may use."""
    free = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else machine_bytes("MemAvailable")
    return int(SHARE_OF_MEMORY * free)


def prepare(settings: Settings) -> None:
    """Threads, and a limit on memory above what is in use."""
    torch.set_num_threads(settings.threads)
    if settings.device == "cpu":
        fail_rather_than_fill_the_machine(room_bytes("cpu") + resident_bytes("VmSize"))


def time_case(case: Case, names: tuple[str, ...], settings: Settings) -> dict[str, Row]:
    """Seconds of each contender, in turns A B C A B C; results are compared first."""
    prepare(settings)
    operands = Operands(case, settings.device)
    known = contenders(case, settings.peers)
    calls: dict[str, Call] = {}
    rows: dict[str, Row] = {}
    references: dict[str, tuple[Tensor, ...]] = {}
    wanted = {known[name].like for name in names}
    for name in names:
        try:
            calls[name] = known[name].build(operands)
            seconds, result = timed(calls[name], settings.device)
        except (RuntimeError, MemoryError, OSError) as error:
            calls.pop(name, None)
            rows[name] = {"status": failure(error)}
            continue
        rows[name] = {"status": "measured", "rounds": [seconds], "warmed_up": False}
        if name in wanted:
            references[name] = result
        like = known[name].like
        if like is not None and like != name and like in references:
            rows[name] |= compare(result, references[like], case.dtype)
        del result
        if seconds > settings.slow_seconds or rows[name]["status"] != "measured":
            del calls[name]  # once is enough
    references.clear()
    take_turns(calls, rows, settings)
    for row in rows.values():
        if row["status"] == "measured":
            row["seconds"], row["runs"] = min(row["rounds"]), len(row["rounds"])
    if "products" in names and case.flops > 1e8:
        rate = square_rate_gflops(
            getattr(torch, case.dtype), settings.device, lambda call: fastest(call, settings.device)
        )
        rows[names[0]]["square_gflops"] = rate
    return rows


def take_turns(calls: dict[str, Call], rows: dict[str, Row], settings: Settings) -> None:
    """Rounds of one call each, at least as many as asked for, more while they are quick.

    Every other round goes backwards: a call finds in the caches what the one before it left there, and none
    shall always follow the same one.
    """
    for name in calls:
        rows[name] |= {"rounds": [], "warmed_up": True}
    gc.collect()
    gc.disable()
    begin = time.perf_counter()
    done = 0
    while calls and (
        done < settings.rounds
        or (done < 10 * settings.rounds and time.perf_counter() - begin < patience(calls, rows))
    ):
        for name in calls if done % 2 == 0 else reversed(calls):
            rows[name]["rounds"].append(timed(calls[name], settings.device)[0])
        done += 1
    gc.enable()


def patience(calls: Iterable[str], rows: dict[str, Row]) -> float:
    """Seconds to go on for, by whether something else seems to run on the machine."""
    for name in calls:
        fastest_two = sorted(rows[name]["rounds"])[:2]
        if fastest_two[-1] > SAME * fastest_two[0]:
            return DISTURBED_SECONDS
    return SETTLED_SECONDS


def timed(call: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds and the result; what the call leaves behind is freed outside of the time."""
    synchronise(device)
    begin = time.perf_counter()
    result = call()
    synchronise(device)
    return time.perf_counter() - begin, result


def fastest(call: Callable[[], Any], device: str) -> float:
    """Of six calls, the first of them to warm up."""
    return min([timed(call, device)[0] for _ in range(6)][1:])


def synchronise(device: str) -> None:
    """Wait for a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def compare(result: tuple[Tensor, ...], reference: tuple[Tensor, ...], dtype: str) -> Row:
    """The largest difference relative to the largest value, over result and gradients."""
    difference = 0.0
    for mine, theirs in zip(result, reference, strict=True):
        gap, largest = (mine - theirs).abs().max().item(), theirs.abs().max().item()
        one = gap / largest if largest > 0 else gap
        difference = math.inf if math.isnan(one) else max(difference, one)
    agrees = difference <= AGREE[dtype]
    return {"difference": difference} | ({} if agrees else {"status": f"differs by {difference:.1e}"})


def peak_of(case: Case, name: str, settings: Settings) -> Row:
    """The high-water mark of one call: above the process's start, and in all. Seconds of that call, too."""
    prepare(settings)
    on_gpu = settings.device.startswith("cuda")
    start = torch.cuda.memory_allocated(settings.device) if on_gpu else resident_bytes("VmRSS")
    operands = Operands(case, settings.device)
    call = contenders(case, settings.peers)[name].build(operands)
    inputs = sum(leaf.numel() * leaf.element_size() for leaf in (*operands.leaves.values(), operands.dy))
    gc.collect()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(settings.device)
    else:
        resident_bytes("VmHWM", reset=True)
    try:
        seconds, _result = timed(call, settings.device)
    except (RuntimeError, MemoryError, OSError) as error:
        return {"status": failure(error)}
    total = torch.cuda.max_memory_allocated(settings.device) if on_gpu else resident_bytes("VmHWM")
    return {
        "status": "measured",
        "first_seconds": seconds,
        "peak_bytes": total - start,
        "total_bytes": total,
        "inputs_bytes": inputs,
    }


def failure(error: BaseException) -> str:
    """One line; running out of memory in few words."""
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in text.lower():
        return "out of memory"
    return f"failed: {text.splitlines()[0] if text else type(error).__name__}"


def refusal(needs_bytes: int, room: int) -> str:
    """Why something is not tried; "" where it fits."""
    return f"out of memory: needs {in_words(needs_bytes)}" if needs_bytes > room else ""
