"""What pytest leaves out where a library that is no part of the tests' own is missing."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("numba") else ["src/nonlocal_nn/ops/means/kernel.py"]
