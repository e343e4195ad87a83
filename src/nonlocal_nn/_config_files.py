"""YAML files of options: strictly read, and handed to the parser whatever characters they hold.

>>> import tempfile
>>> path = Path(tempfile.mkdtemp()) / "run.yaml"
>>> _ = path.write_text("seed: 1\\nprecision: 32\\n")
>>> read_config(path)
{'seed': 1, 'precision': 32}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from nonlocal_nn._text import read_text


def read_config(path: str | Path) -> dict[str, Any]:
    """The options in a YAML file.

    Raises:
        ValueError: it is missing, no YAML, not a table of options, or names a key twice (of two values YAML
            itself takes the last without a word).
    """
    import yaml  # type: ignore[import-untyped]

    file = Path(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "File does not exist"
        raise ValueError(f"--config: {what}: {path}; give a YAML file, such as a run's config.yaml")
    try:
        values = yaml.load(read_text(file), Loader=_strict_loader())
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path}: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"--config {path}: expected options, a line `name: value` each, not {values!r:.80}")
    return values


def _strict_loader() -> type:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Refuses a key that stands twice."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            first: dict[Any, int] = {}
            for key_node, _ in node.value:
                key, line = key_node.value, key_node.start_mark.line + 1
                if isinstance(key, str) and key in first:
                    raise yaml.YAMLError(
                        f"{key!r} stands twice, in lines {first[key]} and {line}; leave one of them out"
                    )
                first[str(key)] = line
            return super().construct_mapping(node, deep)

    return Loader


class Hidden:
    """Texts that YAML cannot hold (emoji, bytes that are no UTF-8, control characters), as plain words.

    The parser reads values as YAML. What it would not read goes through it as a word of ASCII letters.

    >>> hidden = Hidden()
    >>> word = hidden.hide("caf\\udce9.mp4")
    >>> word.isascii(), hidden.show([word, 3]), hidden.hide("plain.mp4")
    (True, ['caf\\udce9.mp4', 3], 'plain.mp4')
    """

    def __init__(self) -> None:
        self._texts: list[str] = []

    def hide(self, text: str) -> str:
        """The text, or the word that stands for it."""
        if text.isascii() and text.isprintable():
            return text
        self._texts.append(text)
        return f"nonlocal-text-{len(self._texts) - 1}-"

    def hide_in(self, value: Any) -> Any:
        """A value of a YAML file, with all texts in it hidden; a number where text is wanted stays one."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, list):
            return [self.hide_in(item) for item in value]
        if isinstance(value, dict):
            return {key: self.hide_in(item) for key, item in value.items()}
        return value

    def show(self, value: Any) -> Any:
        """The value with its texts back."""
        if isinstance(value, str):
            for number, text in enumerate(self._texts):
                value = value.replace(f"nonlocal-text-{number}-", text)
            return value
        if isinstance(value, list | tuple):
            return type(value)(self.show(item) for item in value)
        if isinstance(value, dict):
            return {self.show(key): self.show(item) for key, item in value.items()}
        return value


def as_words(values: dict[str, Any], types: dict[str, Any], hidden: Hidden) -> str:
    """The options of a file as one word of the command line, in JSON.

    A number where one of some texts is wanted (`precision: 32`) is that text.
    """

    def plain(value: Any, option: str) -> Any:
        if isinstance(value, dict):
            start = "--" if option == "--" else f"{option}."
            return {key: plain(item, f"{start}{key}") for key, item in value.items()}
        if isinstance(value, int | float) and not isinstance(value, bool):
            choices = _choices(types.get(option))
            if str(value) in choices and value not in choices:
                return str(value)
        return hidden.hide_in(value)

    return json.dumps(plain(values, "--"))


def _choices(hint: Any) -> tuple[Any, ...]:
    """The values of a Literal, or of those in a union."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(choice for kind in get_args(hint) for choice in _choices(kind))
