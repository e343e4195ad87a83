"""Keep Lightning's hints to itself: what it says of devices, workers and logging is not news to the user of a
run.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Errors still show; the loggers' levels are put back afterwards."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            # 1x1 kernels have strides of no meaning; DDP compares them all the same
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            # DDP and Lightning read attributes that newer torch versions deprecate
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\..*")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
