"""Write docs/recipes.md from the recipes; a test says when it is out of date.

PYTHONPATH=src python docs/write_recipes.py
"""

from __future__ import annotations

from pathlib import Path

from nonlocal_nn.training.recipes import Recipe, get_recipe, list_recipes

PAGE = Path(__file__).parent / "recipes.md"

HEAD = """\
# Recipes

The settings of known training runs, a word each: `nonlocal train --recipe NAME --data.train TRAIN --out RUN`.
Any other option wins over them. `nonlocal recipes` lists them, `nonlocal recipes NAME` shows one with all its
options, `--gpus 4` runs it on another number of GPUs: clips of a GPU stay, the learning rate is in proportion
to the batch, the length such that as many clips are seen, and all of it is said.

The figures are what the authors publish: video accuracy in percent on the validation set of Kinetics-400, 10
clips x 3 crops. **None of the large ones was run here**; every one was trained for two steps on small real
files in a test. This page is made of the files in `src/nonlocal_nn/training/recipes/` by
`docs/write_recipes.py`.
"""

GROUPS = {
    "The paper: Kinetics, clips of 32 frames": "*_32x2",
    "The paper: Kinetics, clips of 128 frames": "i3d_*_128x1",
    "The paper: Charades": "charades_*",
    "The authors' released code": "released_*",
    "For a CPU": "tiny",
}


def page() -> str:
    """The page as the recipes are now."""
    parts = [HEAD]
    left = list_recipes()
    for title, pattern in GROUPS.items():
        names = [name for name in list_recipes(pattern) if name in left]
        if pattern == "*_32x2":
            names = [name for name in names if not name.startswith("released_")]
        left = [name for name in left if name not in names]
        parts.append(f"## {title}\n\n{_table([get_recipe(name) for name in names])}")
    if left:
        raise SystemExit(f"recipes in no group: {', '.join(left)}")
    return "\n".join(parts)


def _table(recipes: list[Recipe]) -> str:
    lines = ["| recipe | source | hardware, time there | published | starts from |", "|---|---|---|---|---|"]
    lines += [
        f"| `{one.name}` | {one.source} | {one.hardware}; {one.time} | {one.expected} | {_start(one)} |"
        for one in recipes
    ]
    notes = dict.fromkeys(one.notes for one in recipes if one.notes)
    return "\n".join([*lines, "", *(f"{note[:1].upper()}{note[1:]}.\n" for note in notes)])


def _start(one: Recipe) -> str:
    return f"{one.start}: `{one.start_option}`" if one.start_option else one.start


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
