"""What other people's scripts and files rely on, as data: names, options, tensors, operators.

python -m tests.freeze.interface            writes interface.json, when something is added on purpose
python -m tests.freeze.interface --help-of  prints the `--help` of every command, to compare two versions
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "interface.json"
COMMANDS = (
    "demo",
    "render",
    "train",
    "ablate",
    "test",
    "predict",
    "explain",
    "denoise",
    "conv-attention",
    "models",
    "convert",
    "scan",
    "detect test",
)


def help_of(command: str) -> str:
    """What `nonlocal COMMAND --help` prints."""
    from nonlocal_nn import cli

    os.environ["COLUMNS"] = "100"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        cli.main([*([command] if command else []), "--help"])
    return said.getvalue()


def options_of(command: str) -> list[str]:
    """The options that `--help` names."""
    words = help_of(command).replace(",", " ").replace("[", " ").replace("]", " ").split()
    return sorted({word.partition("=")[0].rstrip(".:") for word in words if word.startswith("--")})


def _signature(thing: Any) -> list[str]:
    """Names of the arguments in order, with their defaults."""
    return [
        name if p.default is p.empty else f"{name}={p.default!r}"
        for name, p in inspect.signature(thing).parameters.items()
    ]


def _tensors(state: dict[str, Any]) -> str:
    lines = [f"{name} {tensor.dtype} {tuple(tensor.shape)}" for name, tensor in state.items()]
    return f"{len(lines)} tensors, sha256 {hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:16]}"


def interface() -> dict[str, Any]:
    import torch

    import nonlocal_nn as nl
    from nonlocal_nn.models.video_resnet import VideoResNet

    public = {name: getattr(nl, name) for name in sorted(nl.__all__) if name[0] != "_"}
    signatures = {
        name: _signature(thing)
        for name, thing in public.items()
        if name not in ("functional", "PairwiseFunction")
    }
    for where, names in ((nl.functional, nl.functional.__all__), (nl.functional.sharded, None)):
        for name in names or nl.functional.sharded.__all__:
            if name != "sharded":
                prefix = "functional" if where is nl.functional else "functional.sharded"
                signatures[f"{prefix}.{name}"] = _signature(getattr(where, name))
    for kind in (nl.NonLocalBlock, VideoResNet):
        for name in vars(kind):
            if name[0] != "_" and callable(getattr(kind, name)):
                signatures[f"{kind.__name__}.{name}"] = _signature(getattr(kind, name))
    nl.functional.gaussian(*(torch.zeros(1, 1, 1),) * 3)  # registers the operators
    nl.functional.concatenation(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1, 1))
    schemas = [
        str(schema) for schema in torch._C._jit_get_all_schemas() if str(schema).startswith("nonlocal_nn::")
    ]
    with torch.device("meta"):
        models = {
            name: _tensors(nl.create_model(name).state_dict())
            for name in nl.list_models()
            if "tiny" in name or "r50" in name
        }
        blocks = {
            str(options): list(nl.NonLocalBlock(8, **options).state_dict())  # type: ignore[arg-type]
            for options in (
                {},
                {"pairwise": "gaussian", "dims": 1},
                {"pairwise": "concatenation", "norm": "frozen", "dims": 2},
                {"pairwise": "dot_product", "norm": None},
            )
        }
    return {
        "signatures": signatures,
        "operators": sorted(schemas),
        "models": models,
        "blocks": blocks,
        "commands": {command: options_of(command) for command in COMMANDS},
    }


if __name__ == "__main__":
    if "--help-of" in sys.argv:
        for each in ("", *COMMANDS):
            print(f"=== {each}\n{help_of(each)}")
    else:
        FILE.write_text(json.dumps(interface(), indent=1, sort_keys=True) + "\n")
