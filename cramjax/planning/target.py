"""Compiling for a card that need not be there.

XLA compiles for a described GPU without a driver, as long as JAX's CUDA plugin is
installed. Nothing is tuned then: which of several kernels is the fastest, the real card
decides when it compiles for itself.
"""

from typing import Any

import jax
from jax.experimental import topologies

from cramjax.device.cards import Card
from cramjax.device.compilation import lowered
from cramjax.errors import UserError
from cramjax.schema import Config
from cramjax.training import train_step

# Of a thread block, the same for all compute capabilities of `cards.ARCHITECTURES`.
_PER_BLOCK = """
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
"""
# The oldest libraries that the extras cuda12 and cuda13 may bring.
_LIBRARIES = """
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 }
"""


def describe(card: Card) -> str:
    """Returns XLA's description of the card, a GpuTargetConfigProto as text."""
    core = card.architecture
    major, minor = card.compute_capability
    shared_bytes = core.shared_memory_kib << 10
    # From compute capability 8 on the system keeps 1 KiB of a block's.
    shared_of_block_bytes = shared_bytes - (1024 if major >= 8 else 0)
    return f"""
gpu_device_info {{ {_PER_BLOCK}
  core_count: {card.cores} fpus_per_core: {core.fpus}
  threads_per_core_limit: {core.threads}
  shared_memory_per_core: {shared_bytes}
  shared_memory_per_block_optin: {shared_of_block_bytes}
  l2_cache_size: {int(card.l2_mib * 2**20)}
  device_memory_size: {card.memory_bytes}
  memory_bandwidth: {int(card.bandwidth)}
  clock_rate_ghz: {card.clock_ghz}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA" device_description_str: "{card.title}"
{_LIBRARIES}"""


def device(card: Card) -> jax.Device:
    """Returns a device that can be compiled for, and nothing else.

    Raises:
      UserError: JAX's CUDA plugin is not installed.
    """
    try:
        topology = topologies.get_topology_desc(
            "", "cuda", target_config=describe(card), topology="1x1x1"
        )
    except NotImplementedError as error:  # JAX knows no topology without the plugin
        raise UserError(
            f"compiling for the {card.title} needs JAX's CUDA plugin, not a GPU: "
            'pip install -e ".[cuda12]" (or cuda13)'
        ) from error
    return topology.devices[0]


def compile_micro_step(config: Config, on: jax.Device) -> jax.stages.Compiled:
    """Returns the training micro-step on whole blocks, compiled."""
    mesh = train_step.make_mesh([on])
    shape = (config.micro_batch, config.model.max_length)
    step = train_step.make_micro_step(config, mesh)
    untuned: dict[str, Any] = {"xla_gpu_autotune_level": 0}  # tuning would run kernels
    return lowered(config, step, shape, mesh).compile(compiler_options=untuned)
