"""`nonlocal train --slurm nodes=2,gpus=8,time=24h`: the run as a SLURM job, or the script of one.

A job that is preempted, or reaches its time, saves between two steps, is queued again and goes on.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nonlocal_nn._names import nearest_names
from nonlocal_nn.training.config import TrainConfig

_NUMBERS = ("nodes", "gpus", "cpus")
_WORDS = ("partition", "account", "qos", "constraint", "mem")
_WARNING_SECONDS = 120  # before the end of its time, a job is told


@dataclass(frozen=True)
class SlurmOptions:
    """What a job asks for.

    Attributes:
        nodes: machines.
        gpus: on each machine, one process each; 0: one process on the CPUs.
        cpus: for each process.
        minutes: after which it is queued again.
        words: partition, account, qos, constraint and mem, where given.
        cluster: "slurm", or "local": a process of its own on this machine, without SLURM.
    """

    nodes: int = 1
    gpus: int = 1
    cpus: int = 8
    minutes: int = 24 * 60
    words: tuple[tuple[str, str], ...] = ()
    cluster: str = "slurm"

    @property
    def tasks(self) -> int:
        """Processes on each machine."""
        return max(1, self.gpus)


def read_options(text: str) -> SlurmOptions:
    """The options from their text.

    >>> read_options("nodes=2,gpus=8,time=1-12:00:00,partition=long").minutes
    2160

    Raises:
        ValueError: an unknown name, or a value that does not fit.
    """
    known = (*_NUMBERS, "time", *_WORDS, "cluster")
    values: dict[str, Any] = {}
    words: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not value:
            raise ValueError(f"--slurm {item!r}: write NAME=VALUE, such as nodes=2,gpus=8,time=24h")
        if name not in known:
            near = nearest_names(name, known)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"--slurm has no {name!r}; {hint}")
        if name in values or name in words:
            raise ValueError(f"--slurm names {name} twice")
        if name in _NUMBERS:
            if not value.isdecimal() or (int(value) < 1 and name != "gpus"):
                raise ValueError(f"--slurm {item}: a whole number{'' if name == 'gpus' else ', at least 1'}")
            values[name] = int(value)
        elif name == "time":
            values["minutes"] = minutes_of(value)
        elif name == "cluster":
            if value not in ("slurm", "local"):
                raise ValueError(f"--slurm cluster={value}: slurm, or local for this machine")
            values[name] = value
        else:
            words[name] = value
    return SlurmOptions(**values, words=tuple(words.items()))


def minutes_of(text: str) -> int:
    """A time as people or SLURM write it, in minutes.

    >>> minutes_of("90m"), minutes_of("24h"), minutes_of("2d"), minutes_of("1-12:00:00"), minutes_of("30:00")
    (90, 1440, 2880, 2160, 30)

    Raises:
        ValueError: it is none, or shorter than five minutes.
    """
    minutes = 0.0
    unit = re.fullmatch(r"(\d+(?:\.\d+)?)(m|min|h|d)", text)
    clock = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if unit:
        minutes = float(unit[1]) * {"m": 1, "min": 1, "h": 60, "d": 1440}[unit[2]]
    elif clock:
        days, hours, mins, seconds = (int(part or 0) for part in clock.groups())
        minutes = days * 1440 + hours * 60 + mins + seconds / 60
    if minutes < 5:
        raise ValueError(f"--slurm time={text}: write 24h, 90m, 2d or 1-12:00:00; five minutes at least")
    return int(minutes)


def submit_command(config: TrainConfig, text: str, *, print_only: bool, words: Sequence[str]) -> int:
    """Submit the run, or print the script that would run it; 0.

    Args:
        config: the run, checked.
        text: of --slurm.
        print_only: show the script, submit nothing.
        words: of the command line, without --slurm and --print, for the script.

    Raises:
        ValueError: options that do not fit, or no SLURM here.
        ImportError: submitit is missing.
    """
    options = read_options(text)
    for name, asked in (("nodes", options.nodes), ("devices", options.tasks)):
        given = getattr(config, name)
        if given not in (asked, "auto", 1):
            raise ValueError(f"--{name} is {given}, and --slurm {text} starts {asked}; leave --{name} out")
    run = replace(config, nodes=options.nodes, devices=options.tasks, resume=True, progress=False)
    if config.overwrite:
        raise ValueError(
            "--overwrite with --slurm: a job that is queued again would start over; delete the run first"
        )
    if print_only:
        print(script(run, options, words), end="")
        return 0
    try:
        import submitit
    except ImportError as error:
        raise ImportError("--slurm needs submitit: pip install 'nonlocal-nn[slurm]'") from error
    if options.cluster == "slurm" and shutil.which("sbatch") is None:
        raise ValueError(
            "--slurm: there is no sbatch here; submit from a machine of the cluster, or show the script with "
            "--print"
        )
    logs = Path(f"{config.out}.slurm")  # beside the run: a run folder holds nothing before it starts
    executor = submitit.AutoExecutor(folder=logs, cluster=options.cluster, slurm_max_num_timeout=1000)
    slurm_words = {f"slurm_{name}": value for name, value in options.words if options.cluster == "slurm"}
    executor.update_parameters(
        name="nonlocal_train",
        timeout_min=options.minutes,
        nodes=options.nodes,
        tasks_per_node=options.tasks,
        cpus_per_task=options.cpus,
        gpus_per_node=options.gpus,
        **({"slurm_signal_delay_s": _WARNING_SECONDS} if options.cluster == "slurm" else {}),
        **slurm_words,
    )
    job = executor.submit(Training(), run)
    print(f"job {job.job_id}; the run is in {config.out}, its output in {logs}")
    print(f"it goes on by itself when it is cut off; by hand: {_again(words)}")
    return 0


class Training:
    """What each process of the job does."""

    def __call__(self, config: TrainConfig) -> dict[str, Any]:
        """Train, or go on."""
        from nonlocal_nn.training.run import train

        return train(config)

    def checkpoint(self, config: TrainConfig) -> Any:
        """What submitit queues in place of a job that is cut off: a run goes on by itself."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, config)


def script(config: TrainConfig, options: SlurmOptions, words: Sequence[str]) -> str:
    """A batch script for sbatch, of the same job, which needs no submitit."""
    asked = {
        "job-name": "nonlocal_train",
        "nodes": options.nodes,
        "ntasks-per-node": options.tasks,
        **({"gpus-per-node": options.gpus} if options.gpus else {}),
        "cpus-per-task": options.cpus,
        "time": options.minutes,
        **dict(options.words),
        "signal": f"USR1@{_WARNING_SECONDS}",
        "requeue": None,
        "open-mode": "append",
        "output": f"{config.out}.slurm/%j.out",
    }
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH --{name}" + ("" if value is None else f"={value}") for name, value in asked.items()]
    command = ["srun", "--kill-on-bad-exit=1", sys.executable, "-m", "nonlocal_nn", "train", *words]
    command += [f"--nodes={options.nodes}", f"--devices={options.tasks}", "--resume=true", "--progress=false"]
    return "\n".join([*lines, "", shlex.join(command), ""])


def _again(words: Sequence[str]) -> str:
    return shlex.join(["nonlocal", "train", *words, "--resume"])
