"""Put the tables of docs/tables/*.csv into docs/results.md, between their marks; a test holds them together.

PYTHONPATH=src python docs/write_tables.py            # after `nonlocal ablate`, and copying OUT/TABLE.csv
"""

from __future__ import annotations

import re
from pathlib import Path

from nonlocal_nn.commands.ablate import reach_of
from nonlocal_nn.experiments.report import draw, markdown, read_rows
from nonlocal_nn.experiments.tables import get_table

DOCS = Path(__file__).parent
PAGE = DOCS / "results.md"
FIGURE = DOCS / "assets" / "distance.svg"


def written() -> dict[str, str]:
    """The text of every table, by the name of its csv."""
    texts = {}
    for file in sorted((DOCS / "tables").glob("*.csv")):
        table = get_table(file.stem.partition("_")[0])
        texts[file.stem] = markdown(table, read_rows(file))
    return texts


def with_tables(page: str) -> str:
    """The page with today's tables between `<!-- table NAME -->` and `<!-- end of table -->`."""
    for name, text in written().items():
        start, end = f"<!-- table {name} -->", "<!-- end of table -->"
        pattern = re.compile(re.escape(start) + r".*?" + re.escape(end), flags=re.DOTALL)
        if not pattern.search(page):
            raise SystemExit(f"{PAGE} has no place for table {name}: write {start} and {end}")
        page = pattern.sub(f"{start}\n{text}{end}".replace("\\", r"\\"), page)
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    distance = get_table("distance")
    draw(distance, read_rows(DOCS / "tables" / "distance.csv"), FIGURE, reach_of(distance))
