"""See `cramjax.config`."""

import sys

from cramjax.config import *  # noqa: F403  # moved
from cramjax.config import data, glue
from cramjax.config.training import CURVES, OPTIMIZERS  # noqa: F401

sys.modules.update({f"{__name__}.data": data, f"{__name__}.glue": glue})
