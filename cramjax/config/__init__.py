# ruff: noqa: F401
"""What a run depends on: every key once, with its default, its rule and its meaning.

The defaults are the final recipe of "Cramming: Training a Language Model on a Single
GPU in One Day" (Geiping & Goldstein 2022, arXiv 2212.14034; its sections are cited as
"paper 4.2"): the architecture "crammed-bert" (4.2), the training "bert-o4" (4.3) and
the GLUE protocol (5). The files in configs/ start from these values and change a few.
"""

from cramjax.config.data import CurriculumConfig, DataConfig
from cramjax.config.files import (
    changed,
    defaults,
    find,
    from_file,
    load,
    module,
)
from cramjax.config.glue import GlueConfig
from cramjax.config.key import require
from cramjax.config.model import ModelConfig
from cramjax.config.root import (
    ABSENT,
    FORMAT,
    OPERATIONAL_KEYS,
    Config,
    flatten,
    from_dict,
    model_from_dict,
    read_recorded,
    record,
    to_dict,
)
from cramjax.config.training import (
    TRACKERS,
    AveragingConfig,
    BudgetConfig,
    CheckpointConfig,
    OptimizerConfig,
    ScheduleConfig,
)
