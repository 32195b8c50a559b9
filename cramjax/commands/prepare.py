"""Builds a config's packed corpus, unless it exists already, without training.

cramjax prepare --config=configs/a4000.py --config.data.sources=...

By default all cores of this machine do it. Several machines that share data.dir can:
--task=I --tasks=N does a part of it, as one of N tasks (I from 0 on) that run at the
same time, for example as an array job. The corpus is the same, to the byte.
--stage=NAME does a task's part of one stage only, and does not wait for other tasks:
sources, documents, matches, cuts, tokenizer, blocks and manifest, in this order.
--executor=ray --tasks=N runs N tasks on Ray, through datatrove (the extra "cluster").
--executor=slurm --tasks=N --partition=NAME --time=HH:MM:SS submits a job for each
stage to Slurm; other options are read by sbatch, from SBATCH_... in the environment.
"""

from collections.abc import Sequence

from cramjax.data import cluster
from cramjax.data.prepare import STAGES, prepare, prepare_as_task
from cramjax.errors import UserError
from cramjax.flags import parse_command_line, whole

FLAGS = ("task", "tasks", "stage", "executor", "partition", "time")


def command(argv: Sequence[str]) -> None:
    """Builds the corpus of the config, or a part of it."""
    config, flags = parse_command_line(argv, FLAGS)
    if config.init_from or config.init_hash:
        # Imported here because it imports JAX, which the text does not need.
        from cramjax.checkpoints import initial

        config, _ = initial.begin(config)
    tasks = whole(flags, "tasks", 1)
    given = {name for name in FLAGS if flags[name]}
    if flags["stage"] not in ("", *STAGES):
        raise UserError(f"--stage={flags['stage']}: must be one of {', '.join(STAGES)}")
    if not given:
        prepare(config)
    elif "executor" in given and not given & {"task", "stage"}:
        cluster.submit(config, flags["executor"], tasks, flags)
    elif {"task", "tasks"} <= given <= {"task", "tasks", "stage"}:
        task = whole(flags, "task", 0, tasks - 1)
        prepare_as_task(config, task, tasks, flags["stage"])
    else:
        together = " ".join(f"--{n}={flags[n]}" for n in FLAGS if n in given)
        raise UserError(
            f"{together}: pass --tasks=N and --task=0 to --task=N-1, one in each job "
            "(and --stage), or --tasks=N and --executor=ray or slurm"
        )
