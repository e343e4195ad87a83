"""`nonlocal recipes`: the settings of known training runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RecipesConfig:
    """The recipes of `nonlocal train --recipe NAME`: the paper's runs and the authors' released ones.

    Without a name, a table of all; with one, where it comes from, what it needs, what is published of it, the
    command, and its options. `nonlocal recipes 'released*'` lists those that match.
    """

    name: str | None = None
    """A recipe, or a shell pattern of names: 'i3d_*_nl5*'."""


def recipes_command(config: RecipesConfig) -> int:
    """Print; 0.

    Raises:
        ValueError: no recipe has that name or matches.
    """
    from nonlocal_nn.training.recipes import get_recipe, list_recipes

    if config.name is not None and not set(config.name) & set("*?["):
        _print_one(config.name)
        return 0
    names = list_recipes(config.name)
    if not names:
        raise ValueError(f"no recipe matches {config.name!r}; they are {', '.join(list_recipes())}")
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("published")
    table.add_column("hardware")
    for name in names:
        found = get_recipe(name)
        table.add_row(name, found.expected, found.hardware)
    console = Console(highlight=False)
    console.print(table)
    console.print("None of the large ones was run here: what is published is what its authors report.")
    return 0


def _print_one(name: str) -> None:
    import yaml  # type: ignore[import-untyped]

    from nonlocal_nn.training.recipes import get_recipe

    found = get_recipe(name)
    print(f"{found.name}: {found.title}")
    for word in ("source", "hardware", "time", "expected", "start", "notes"):
        text = getattr(found, word)
        if text:
            print(f"{word:10} {text}")
    print(f"\n{found.command}\n\noptions:")
    print(yaml.safe_dump(found.options, sort_keys=False).rstrip())
