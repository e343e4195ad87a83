"""`python -m nonlocal_nn` is the command `nonlocal`."""

from __future__ import annotations

import sys

from nonlocal_nn.cli import main

if __name__ == "__main__":
    sys.exit(main())
