"""`nonlocal` that writes a part for every video, so that a kill finds some: python slow_parts.py WORDS."""

from __future__ import annotations

import sys

from nonlocal_nn.cli import main
from nonlocal_nn.evaluation import parts

if __name__ == "__main__":
    parts._PART_VIDEOS = 1
    sys.exit(main(sys.argv[1:]))
