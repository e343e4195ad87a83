"""The command `nonlocal`: finds the command asked for, reads its options, calls its body; decides nothing.

>>> main(["--version"])
nonlocal 0.1.0
0

Each command is one line of `COMMANDS`: a dataclass that holds its options and a function that takes it and
gives the exit code. Both are named by strings and imported when the command is called, so `--help` never
waits for torch.

Exit codes: 0 done; 1 done in part (the command's help says when); 2 wrong options or input; 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, get_args, get_origin, get_type_hints

from nonlocal_nn import __version__
from nonlocal_nn._config_files import Hidden, as_words, read_config
from nonlocal_nn._names import nearest_names

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


@dataclass(frozen=True)
class Command:
    """One command: where its options (`module:Dataclass`) and its body (`module:function`) are."""

    summary: str
    options: str
    body: str
    example: str
    positional: str | None = None
    """The field of the options that is given without a name."""
    recipes: bool = False
    """Whether it takes --recipe NAME and --gpus N, and --slurm to submit it."""


COMMANDS = {
    "demo": Command(
        summary="render a data set, train two networks on it and compare them",
        options="nonlocal_nn.commands.demo:DemoConfig",
        body="nonlocal_nn.commands.demo:demo_command",
        example="nonlocal demo --seeds 3",
    ),
    "render": Command(
        summary="write videos that ask about two things a known distance apart",
        options="nonlocal_nn.commands.render:RenderConfig",
        body="nonlocal_nn.commands.render:render_command",
        example="nonlocal render videos/far --space 12,20,28,38 --time 0",
        positional="out",
    ),
    "train": Command(
        summary="train a network on labelled videos",
        options="nonlocal_nn.training.config:TrainConfig",
        body="nonlocal_nn.commands.train:train_command",
        example="nonlocal train --data.train videos/train --model.name c2d_tiny_nl2 --out runs/first",
        recipes=True,
    ),
    "recipes": Command(
        summary="list the settings of known training runs, the paper's and the released ones",
        options="nonlocal_nn.commands.recipes:RecipesConfig",
        body="nonlocal_nn.commands.recipes:recipes_command",
        example="nonlocal recipes i3d_r50_nl5_32x2",
        positional="name",
    ),
    "test": Command(
        summary="test a trained network on labelled videos, many views of each",
        options="nonlocal_nn.evaluation.config:TestConfig",
        body="nonlocal_nn.commands.test:test_command",
        example="nonlocal test --checkpoint runs/first --data videos/test",
    ),
    "predict": Command(
        summary="name the action in videos",
        options="nonlocal_nn.evaluation.config:PredictConfig",
        body="nonlocal_nn.commands.predict:predict_command",
        example="nonlocal predict clip.mp4 --checkpoint runs/first",
        positional="videos",
    ),
    "explain": Command(
        summary="see what non-local blocks relate: figure, film, page, statistics",
        options="nonlocal_nn.explain.config:ExplainConfig",
        body="nonlocal_nn.commands.explain:explain_command",
        example="nonlocal explain clip.mp4 --checkpoint runs/first --out figure.png",
        positional="videos",
    ),
    "ablate": Command(
        summary="run a table of the paper's ablations, and say what its figures show",
        options="nonlocal_nn.commands.ablate:AblateConfig",
        body="nonlocal_nn.commands.ablate:ablate_command",
        example="nonlocal ablate 2d --seeds 0,1,2",
        positional="table",
    ),
    "conv-attention": Command(
        summary="does self-attention become a convolution?",
        options="nonlocal_nn.commands.conv_attention:ConvAttentionConfig",
        body="nonlocal_nn.commands.conv_attention:conv_attention_command",
        example="nonlocal conv-attention imitate",
        positional="what",
    ),
    "denoise": Command(
        summary="take noise away from pictures, volumes and videos",
        options="nonlocal_nn.commands.denoise:DenoiseConfig",
        body="nonlocal_nn.commands.denoise:denoise_command",
        example="nonlocal denoise noisy.png clean.png --sigma auto",
        positional="files",
    ),
    "models": Command(
        summary="list the networks: parameters, operations, ratios to the baseline",
        options="nonlocal_nn.commands.models:ModelsConfig",
        body="nonlocal_nn.commands.models:models_command",
        example="nonlocal models 'c2d_r50*'",
        positional="pattern",
    ),
    "convert": Command(
        summary="write a checkpoint in another project's layout, or read one",
        options="nonlocal_nn.commands.convert:ConvertConfig",
        body="nonlocal_nn.commands.convert:convert_command",
        example="nonlocal convert model.pkl model.safetensors --to native --stem vnl32",
        positional="files",
    ),
    "shard": Command(
        summary="pack many small videos into a few large tar files to train from",
        options="nonlocal_nn.commands.shard:ShardConfig",
        body="nonlocal_nn.commands.shard:shard_command",
        example="nonlocal shard videos/train shards/train --size 1GB",
        positional="places",
    ),
    "scan": Command(
        summary="list what is broken or odd among videos, or in a COCO json",
        options="nonlocal_nn.data.scan:ScanConfig",
        body="nonlocal_nn.commands.scan:scan_command",
        example="nonlocal scan videos/",
        positional="source",
    ),
    "detect test": Command(
        summary="score boxes, masks or poses as COCO does",
        options="nonlocal_nn.detection.config:DetectTestConfig",
        body="nonlocal_nn.commands.detect:detect_test_command",
        example="nonlocal detect test --data instances_val2017.json --results results.json",
    ),
}

# What may be said in one line; `_is_about_input` decides.
_EXPECTED = (ValueError, OSError, ArgumentError, ImportError, RuntimeError, ArithmeticError, MemoryError)
_VALUELESS = ("-h", "--help", "--print", "--print_config")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` none: the words of the command line.

    >>> main(["scna"])                                        # says on stderr: did you mean scan?
    2
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words or os.environ.get("NONLOCAL_DEBUG", "") not in ("", "0")
    words = [word for word in words if word != "--debug"]
    _let_streams_print_anything()
    hidden = Hidden()
    try:
        return _run(words, hidden)
    except SystemExit as done:  # training stopped by a signal says so itself and leaves with its own code
        return int(done.code or 0)
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except BrokenPipeError:
        # The output has been closed (`nonlocal models | head`). Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except _EXPECTED as error:
        if debug or not _is_about_input(error):
            raise
        _say(f"error: {hidden.show(_one_line(error))}")
        return int(getattr(error, "exit_code", 1 if _is_full_disk(error) else 2))


def _let_streams_print_anything() -> None:
    """File names may hold what a console cannot show: print that escaped rather than not at all."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and stream.errors == "strict":
            reconfigure(errors="backslashreplace")


def _run(words: list[str], hidden: Hidden) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"nonlocal {__version__}")
        return 0
    name, *rest = words
    if rest and f"{name} {rest[0]}" in COMMANDS:  # a command of two words
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name not in COMMANDS:
        seconds = [known.partition(" ")[2] for known in COMMANDS if known.startswith(f"{name} ")]
        if seconds:
            raise ValueError(f"nonlocal {name} what? There is: {', '.join(f'{name} {s}' for s in seconds)}")
        kind = "option" if name.startswith("-") else "command"
        raise ValueError(
            f"no {kind} {name!r}{_did_you_mean(name, COMMANDS)}; `nonlocal --help` lists the commands"
        )
    command = COMMANDS[name]
    options_type = _load(command.options)
    types = _option_types(options_type)
    parser = _parser(name, command, options_type)
    canonical = _canonical(rest, types, command.positional, hidden)
    first: list[str] = []
    job: dict[str, str] = {}
    if command.recipes:
        job, canonical, rest = _job_read(canonical, rest)
        first, canonical = _recipe_read(canonical, types, hidden)
    try:
        parsed = parser.parse_args([*first, *_configs_read(canonical, types, hidden)])
    except SystemExit as done:  # --help and --print_config end so
        return int(done.code or 0)
    except ArgumentError as error:
        raise ValueError(_explained(error, name, types)) from error
    values = _shown(parser.instantiate(parsed).as_dict(), hidden)
    for name in ("config", *(("recipe", "gpus", "slurm", "print") if command.recipes else ())):
        values.pop(name, None)
    body: Callable[[Any], int] = _load(command.body)
    if "slurm" in job:
        submit = _load("nonlocal_nn.commands.submit:submit_command")
        body = partial(submit, text=hidden.show(job["slurm"]), print_only="print" in job, words=rest)
    with warnings.catch_warnings():
        warnings.showwarning = _say_warning
        return body(options_type(**values))


def _shown(values: dict[str, Any], hidden: Hidden) -> dict[str, Any]:
    """The options with all texts as they were given, those of nested dataclasses, too."""
    for name, value in values.items():
        if is_dataclass(value) and not isinstance(value, type):
            shown = {spec.name: hidden.show(getattr(value, spec.name)) for spec in fields(value)}
            values[name] = replace(value, **shown)
        else:
            values[name] = hidden.show(value)
    return values


def _configs_read(words: Sequence[str], types: dict[str, Any], hidden: Hidden) -> list[str]:
    """The words, each --config FILE replaced by what the file holds."""
    said = {word.partition("=")[0] for word in words}
    result = []
    for word in words:
        option, _, path = word.partition("=")
        if option != "--config":
            result.append(word)
            continue
        file = Path(hidden.show(path))
        values = read_config(file)
        resumes = values.get("resume") is True or any(w.lower() == "--resume=true" for w in words)
        if resumes and "--out" not in said and "out" in values and (file.parent / "checkpoints").is_dir():
            # A run's own config.yaml describes the run it lies in, wherever that was moved to.
            if Path(str(values["out"])).resolve() != file.parent.resolve():
                _say(f"the run of {file} was moved here from {values['out']}: going on in {file.parent}")
            values["out"] = str(file.parent)
        result.append(f"--config={as_words(values, types, hidden)}")
    return result


def _job_read(words: Sequence[str], given: Sequence[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """What --slurm and --print say, and the words without them, as the parser wants them and as given."""
    names = ("--slurm", "--print")
    said = {name[2:]: value for name, _, value in (w.partition("=") for w in words) if name in names}
    if "print" in said and "slurm" not in said:
        raise ValueError("--print shows the script of a SLURM job: give --slurm nodes=1,gpus=8,time=24h")
    left: list[str] = []
    skip = False
    for word in given:
        if not skip and word.partition("=")[0] not in names:
            left.append(word)
        skip = word == "--slurm"
    return said, [word for word in words if word.partition("=")[0] not in names], left


def _recipe_read(words: Sequence[str], types: dict[str, Any], hidden: Hidden) -> tuple[list[str], list[str]]:
    """The options of --recipe NAME, for the number of GPUs that --gpus says, and the words without those two.

    They come first, so that a file and every option win over them.
    """
    said = {name: value for name, _, value in (word.partition("=") for word in words)}
    rest = [word for word in words if word.partition("=")[0] not in ("--recipe", "--gpus")]
    name, gpus = said.get("--recipe"), said.get("--gpus")
    if name is None:
        if gpus is not None:
            raise ValueError("--gpus scales a recipe: give --recipe NAME, or say --devices for other runs")
        return [], rest
    from nonlocal_nn.training.recipes import for_gpus, get_recipe

    found = get_recipe(hidden.show(name))
    options = found.options
    if gpus is not None:
        if not gpus.isdecimal():
            raise ValueError(f"--gpus {gpus}: a whole number of GPUs")
        options, line = for_gpus(found, int(gpus))
        _say(line)
    return [f"--config={as_words(options, types, hidden)}"], rest


def _parser(name: str, command: Command, options_type: type) -> ArgumentParser:
    from jsonargparse import ArgumentParser, set_parsing_settings

    # Help is the docstring under each field. A config file is data: it may not name classes to build.
    set_parsing_settings(
        docstring_parse_attribute_docstrings=True,
        instantiate_subclass_spec_in_any=False,
        import_path_allowlist=["nonlocal_nn"],
    )
    given = f" {command.positional.upper()}" if command.positional else ""
    parser = ArgumentParser(
        prog=f"nonlocal {name}",
        usage=f"nonlocal {name}{given} [options]",
        description=options_type.__doc__,
        epilog=f"Example: {command.example} -- A switch alone, such as --progress, means true. --lr will do "
        "for --optim.lr where no other option ends in that name. --debug shows where an error came from.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these options.")
    if command.recipes:
        recipe = "Settings of a known run, over which all other options win; `nonlocal recipes` lists them."
        gpus = "With --recipe: so many GPUs. Clips of a GPU stay; rate and length follow, and are said."
        parser.add_argument("--recipe", help=recipe)
        parser.add_argument("--gpus", type=int, help=gpus)
        slurm = "Submit the run as a SLURM job: nodes=2,gpus=8 (on each),time=24h, and cpus (a process), "
        slurm += "mem, partition, account, qos, constraint; cluster=local: a process on this machine."
        parser.add_argument("--slurm", help=slurm)
        parser.add_argument("--print", action="store_true", help="With --slurm: show the script instead.")
    parser.add_class_arguments(options_type, as_group=False)
    return parser


def _option_types(options_type: type, prefix: str = "--") -> dict[str, Any]:
    """Every option by its full name, those of nested dataclasses with dots, with its type."""
    hints = get_type_hints(options_type)
    types: dict[str, Any] = {}
    for spec in fields(options_type):
        hint = hints[spec.name]
        types[prefix + spec.name] = hint
        for inner in (hint, *get_args(hint)):
            if is_dataclass(inner) and isinstance(inner, type):
                types |= _option_types(inner, f"{prefix}{spec.name}.")
    return types


def _canonical(
    words: Sequence[str], types: dict[str, Any], positional: str | None, hidden: Hidden
) -> list[str]:
    """The words as the parser wants them: full option names with underscores, each with its value.

    >>> types = {"--videos": list[str], "--json": bool, "--optim.lr": float}
    >>> _canonical(["a.mp4", "--json", "--lr", "0.1", "b.mp4"], types, "videos", Hidden())
    ['--json=true', '--optim.lr=0.1', '--videos=["a.mp4", "b.mp4"]']

    Files given by --config come first, so that whatever stands on the command line wins over them; what
    stands alone is the value of the `positional` option.
    """
    configs: list[str] = []
    canonical: list[str] = []
    alone: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            alone += left
            break
        if not word.startswith("-") or word == "-":
            alone.append(word)
            continue
        option, equals, value = word.partition("=")
        option = _full_name(option, types)
        if not equals and option not in _VALUELESS:
            if types.get(option) is bool and (not left or left[0].lower() not in ("true", "false")):
                equals, value = "=", "true"
            elif left:
                equals, value = "=", left.pop(0)
        if equals and _takes_commas(types.get(option)) and not value.lstrip().startswith(("[", "null")):
            value = f"[{value}]"  # 12,20 and res2,res3, and a single 12
        (configs if option == "--config" else canonical).append(option + equals + hidden.hide(value))
    alone = [hidden.hide(word) for word in alone]
    if alone and positional:
        if get_origin(types[f"--{positional}"]) is list:
            alone = [json.dumps(alone)]
        canonical.append(f"--{positional}={alone.pop(0)}")
    return configs + canonical + alone  # what is still alone, the parser calls unexpected


def _takes_commas(kind: Any) -> bool:
    """Whether an option takes several numbers or names: tuple[int, ...], list[float], or that or none.

    >>> [_takes_commas(kind) for kind in (tuple[int, ...], tuple[float, ...] | None, tuple[str, ...])]
    [True, True, True]
    >>> _takes_commas(list[str])                                    # paths, in which a comma may stand
    False
    """
    kinds = [kind] if get_origin(kind) in (list, tuple) else list(get_args(kind))
    numbers, names = {int, float, ...}, {str, ...}
    return any(
        (get_origin(k) in (list, tuple) and {*get_args(k)} <= numbers)
        or (get_origin(k) is tuple and {*get_args(k)} <= names)
        for k in kinds
    )


def _full_name(option: str, types: dict[str, Any]) -> str:
    """`--max-bad-videos` is --data.max_bad_videos, as long as no other option ends so."""
    if not option.startswith("--"):
        return option
    name = option[2:].replace("-", "_")
    endings = [full for full in types if full.endswith(f".{name}")]
    return endings[0] if f"--{name}" not in types and len(endings) == 1 else f"--{name}"


def _explained(error: ArgumentError, name: str, types: dict[str, Any]) -> str:
    """The parser's message in one line, with the nearest names where it did not know one."""
    message = re.sub(r'Parser key "([^"]+)":', r"--\1:", _one_line(error))
    message = re.sub(r"Expected an? (?:<class '(\w+)'>|typing\.)", r"expected \1", message)
    # an option on the command line; one in a file; one in a section of a file
    word = re.search(r"unrecognized arguments: (\S+?)(?:=.*)?$", message)
    key = re.search(r"(?:Group '(?P<group>\S+)' does not accept o|O)ption '(?P<name>\S+?)'", message)
    if word and not word[1].startswith("-"):
        message = f"{word[1]!r} is not expected here"
    elif word or key:
        option = word[1] if word else "--" + ".".join(filter(None, key.groups())) if key else ""
        same_end = [full for full in types if full.rpartition(".")[2] == option.lstrip("-")]
        message = f"no option {option}{_did_you_mean(option, types, same_end)}"
    return f"{message}; `nonlocal {name} --help` lists the options"


def _did_you_mean(word: str, known: Iterable[str], first: Sequence[str] = ()) -> str:
    """`, did you mean ...?` with the nearest names, or nothing.

    >>> _did_you_mean("trian", ["train", "test"])
    '; did you mean train?'
    """
    near = list(first) or _nearest(word, known)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _nearest(word: str, known: Iterable[str]) -> list[str]:
    """Up to three names whose last part (after the dots) looks like that of `word`."""
    ends = {name: name.lstrip("-").rpartition(".")[2] for name in known}
    near = nearest_names(word.lstrip("-").rpartition(".")[2], set(ends.values()))
    return sorted(name for name, end in ends.items() if end in near)[:3]


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [
        "usage: nonlocal COMMAND [options]",
        "",
        "Non-local neural networks for video: train, test, predict, explain.",
        "",
        "commands:",
        *(f"  {name:{width}}{command.summary}" for name, command in COMMANDS.items()),
        "",
        "options:",
        "  --help     this text; `nonlocal COMMAND --help` lists the options of a command",
        "  --version  the version",
        "  --debug    show where an error came from (or set NONLOCAL_DEBUG=1)",
        "",
        "Every option of a command can come from a YAML file (--config FILE), be overridden by name",
        "(--optim.lr 0.1), and be printed (--print_config).",
        "",
        "examples:",
        *(f"  {command.example}" for command in COMMANDS.values()),
    ]
    return "\n".join(lines)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _is_about_input(error: Exception) -> bool:
    """Whether one line says enough; a RuntimeError needs its traceback unless it is ours or a full memory."""
    ours = type(error).__module__.startswith("nonlocal_nn")
    if isinstance(error, RuntimeError | ArithmeticError):
        return ours or type(error).__name__ == "OutOfMemoryError"
    return True


def _is_full_disk(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


_EXTRAS = {"ray": "ray", "torchvision": "detect", "faster_coco_eval": "detect"}


def _one_line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("nonlocal_nn"):
        extra = {"ray": "ray", "torchvision": "detect", "faster_coco_eval": "detect"}.get(
            error.name.partition(".")[0], "demo"
        )
        return f"this command needs the package {error.name}: pip install 'nonlocal-nn[{extra}]'"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"out of memory{': ' if str(error) else ''}{error}"
    return " ".join(str(error).split()) or type(error).__name__


def _say_warning(
    message: Warning | str,
    category: type[Warning],  # noqa: ARG001 - these are the arguments warnings.showwarning gets
    filename: str,  # noqa: ARG001
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    """A warning in one line; where in the code it arose is of no use to who runs a command."""
    _say(f"warning: {' '.join(str(message).split())}")


def _say(text: str) -> None:
    print(f"nonlocal: {text}", file=sys.stderr)
