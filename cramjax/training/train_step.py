"""One micro-step on the device: mask, forward, backward, accumulate, maybe update."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cramjax.config import Config
from cramjax.device.compile import MicroStep
from cramjax.model.custom_vjp import cross_entropy
from cramjax.model.encoder import MaskedLM, on_any_device
from cramjax.model.flops import predicted_per_row
from cramjax.model.rows import document_mask
from cramjax.tokens import CLS, SEP, token_dtype
from cramjax.training import averaging, loss_scale, schedules
from cramjax.training.masking import MaskedBatch, mask_tokens
from cramjax.training.optimizer import ONCE_AN_UPDATE, make_optimizer


@flax.struct.dataclass
class TrainState:
    """Everything that a micro-step reads and writes on the device; counts are int32.

    A micro-batch with a gradient that is not finite is skipped. In float16 it counts in
    `skipped` and `bad_in_a_row` only at the lowest loss scale: other skips are how the
    scale is found.
    """

    params: Any  # float32, the tree of `encoder.MaskedLM`
    opt_state: optax.MultiStepsState  # around the state of `make_optimizer`
    averages: averaging.Averages
    step: jax.Array  # micro-steps completed
    accumulate: jax.Array  # micro-batches per update, fixed during an accumulation
    skipped: jax.Array  # micro-batches
    bad_in_a_row: jax.Array  # micro-batches skipped since the last good one
    loss_scale: jax.Array  # 1 unless the model computes in float16
    finite_steps: jax.Array  # micro-steps since the loss scale last changed
    rate_scale: jax.Array  # factor of the learning rate, below 1 after a rollback


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Returns a mesh with one axis, "data"; by default of this process's device."""
    return Mesh(np.asarray(devices or jax.local_devices()[:1]), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of the state: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_specs() -> TrainState:
    """Returns the state's prefix tree of specs: each device accumulates by itself."""
    same = PartitionSpec()
    specs = TrainState(*(same for _ in dataclasses.fields(TrainState)))
    accumulated = optax.MultiStepsState(same, same, same, PartitionSpec("data"), same)
    return specs.replace(opt_state=accumulated)


def init_state(config: Config) -> TrainState:
    """Returns the initial state; `MicroStep.fresh_state` puts it on the device."""
    model = MaskedLM(on_any_device(config.model))
    tokens_1xL = jnp.zeros((1, config.model.max_length), jnp.int32)
    params = model.init(jax.random.key(config.seed), tokens_1xL, tokens_1xL[:, :1])
    params = params["params"]
    optimizer = make_optimizer(config.optimizer, config.schedule)
    opt_state = _accumulator(jnp.int32(1)).init(params)
    return TrainState(
        params=params,
        opt_state=opt_state._replace(inner_opt_state=optimizer.init(params)),
        averages=averaging.init(config.averaging, params),
        step=jnp.int32(0),
        accumulate=jnp.int32(1),
        skipped=jnp.int32(0),
        bad_in_a_row=jnp.int32(0),
        rate_scale=jnp.float32(1),
        loss_scale=loss_scale.initial(config.model.dtype),
        finite_steps=jnp.int32(0),
    )


def named_params(config: Config, state: TrainState) -> dict[str, Any]:
    """Returns parameters by name: "pretrained" and the averages that are on.

    They are this device's copies, so that each process can go on alone.
    """
    params, averages = jax.tree.map(
        lambda x: x.addressable_data(0), (state.params, state.averages)
    )
    return {"pretrained": params, **averaging.read(config.averaging, averages, params)}


def build(config: Config, mesh: Mesh | None = None) -> MicroStep:
    """Returns the micro-step and what is needed to compile, feed and time it.

    By default it is for one device, or for all devices of several processes.
    """
    mesh = mesh or make_mesh(jax.devices() if jax.process_count() > 1 else None)
    return MicroStep(
        config=config,
        function=make_micro_step(config, mesh),
        init_state=functools.partial(init_state, config),
        sharding=replicated(mesh),
        token_dtype=token_dtype(config.model.vocab_size),
        **({} if mesh.size == 1 else _state_forms(mesh)),
    )


def _state_forms(mesh: Mesh) -> dict[str, Callable[[TrainState], TrainState]]:
    """Returns `MicroStep.spread` and `MicroStep.gather` for several devices."""
    split = NamedSharding(mesh, PartitionSpec("data"))
    copy = jax.jit(
        lambda x: jnp.broadcast_to(x, (mesh.size, *x.shape)), out_shardings=split
    )
    mean = jax.jit(lambda x: jnp.mean(x, axis=0), out_shardings=replicated(mesh))
    return {
        "spread": functools.partial(_with_accumulated, copy),
        "gather": functools.partial(_with_accumulated, mean),
    }


def make_micro_step(
    config: Config, mesh: Mesh
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the jitted `micro_step(state, tokens_BxL, progress)`.

    It compiles once per B x L: `progress`, the fraction of the budget already spent, is
    traced, and the accumulation count is part of the state. The state is donated, and
    randomness depends only on config.seed and state.step.

    On several devices, the batch is split over them and each accumulates the gradients
    of its rows: they are averaged once per update. Dropout also depends on the number
    of devices. Instead of `progress` there are the devices' `requests_NxR`, see
    `MicroStep.inputs`; their maxima are `agreed_R` among the metrics.

    The returned metrics are scalars: `loss` (nats), `finite`, `accumulate`,
    `learning_rate` and `grad_norm` (of the last update, before clipping), `updated`,
    `skipped` (micro-batches so far) and `bad_in_a_row`.
    """
    objective = config.objective
    model = MaskedLM(config.model, dropout=objective.dropout)
    scales_loss = loss_scale.is_used(config.model.dtype)
    axis = "data" if mesh.size > 1 else None
    optimizer = make_optimizer(config.optimizer, config.schedule)

    def loss_of(params, masked, attention_mask, dropout_key, scale):
        rngs = {"dropout": dropout_key} if objective.dropout else {}
        logits_BxPxV = model.apply(
            {"params": params},
            masked.tokens_BxL,
            masked.positions_BxP,
            attention_mask,
            rngs=rngs,
        )
        loss = cross_entropy(logits_BxPxV, masked.targets_BxP, masked.weights_BxP)
        return loss * scale, loss

    def micro_step(state: TrainState, tokens_BxL: jax.Array, progress: jax.Array):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        mask_key, dropout_key = jax.random.split(key)
        index = 0
        if axis:  # these are the rows, the requests and the accumulator of one device
            agreed_R = jax.lax.pmax(progress[0], axis)
            progress, index = agreed_R[0], jax.lax.axis_index(axis)
            dropout_key = jax.random.fold_in(dropout_key, index)
            state = _with_accumulated(lambda x: x[0], state)
        part = (index, mesh.size)
        masked = _corrupted(config, mask_key, tokens_BxL, progress, part)
        attention_mask = None
        if objective.separate_documents:
            attention_mask = document_mask(tokens_BxL)
        grads, loss = jax.grad(loss_of, has_aux=True)(
            state.params, masked, attention_mask, dropout_key, state.loss_scale
        )
        if scales_loss:
            grads = jax.tree.map(lambda g: g / state.loss_scale, grads)

        # Changing k during an accumulation would lose gradients.
        accumulate = jnp.where(
            state.opt_state.mini_step == 0,
            schedules.accumulation_steps(
                progress,
                config.micro_batch,
                config.batch.sequences,
                config.batch.ramp_share,
            ),
            state.accumulate,
        )
        accumulated, opt_state = _accumulator(accumulate, axis).update(
            grads, state.opt_state._replace(inner_opt_state=optax.EmptyState())
        )
        finite = ~opt_state.skip_state["should_skip"]
        bad = ~finite
        if scales_loss:
            bad &= state.loss_scale <= loss_scale.MIN
        next_scale, finite_steps = loss_scale.following(
            config.model.dtype, state.loss_scale, state.finite_steps, finite
        )
        updated = finite & (opt_state.mini_step == 0)
        before = (state.params, state.opt_state.inner_opt_state, state.averages)

        def update():
            params, inner, averages = before
            mean = jax.lax.pmean(accumulated, axis) if axis else accumulated
            updates, inner = optimizer.update(
                mean, inner, params, progress=progress, rate_scale=state.rate_scale
            )
            params = optax.apply_updates(params, updates)
            averages = averaging.update(config.averaging, averages, params)
            return params, inner, averages

        with jax.named_scope(ONCE_AN_UPDATE):
            after = jax.lax.cond(updated, update, lambda: before)
        params, inner, averages = after
        opt_state = opt_state._replace(inner_opt_state=inner)
        new_state = state.replace(
            params=params,
            opt_state=opt_state,
            averages=averages,
            step=state.step + 1,
            accumulate=accumulate,
            skipped=state.skipped + bad,
            bad_in_a_row=jnp.where(finite, 0, state.bad_in_a_row + bad),
            loss_scale=next_scale,
            finite_steps=finite_steps,
        )
        metrics = {
            "loss": loss,
            "finite": finite,
            "accumulate": accumulate,
            "learning_rate": optax.tree.get(opt_state, "learning_rate"),
            "grad_norm": optax.tree.get(opt_state, "grad_norm"),
            "updated": updated,
            "skipped": new_state.skipped,
            "bad_in_a_row": new_state.bad_in_a_row,
        }
        if axis:
            metrics |= {"loss": jax.lax.pmean(loss, axis), "agreed_R": agreed_R}
            new_state = _with_accumulated(lambda x: x[None], new_state)
        return new_state, metrics

    batch_sharding = NamedSharding(mesh, PartitionSpec("data"))
    same = replicated(mesh)
    if axis is None:
        return jax.jit(
            micro_step,
            donate_argnums=0,
            in_shardings=(same, batch_sharding, same),
            out_shardings=same,
        )
    split, whole = PartitionSpec(axis), PartitionSpec()
    # Checked, the gradient of what is replicated would be summed over the devices in
    # every micro-step.
    on_each = jax.shard_map(
        micro_step,
        mesh=mesh,
        in_specs=(state_specs(), split, split),
        out_specs=(state_specs(), whole),
        check_vma=False,
    )
    state_sharding = jax.tree.map(lambda x: NamedSharding(mesh, x), state_specs())
    return jax.jit(
        on_each,
        donate_argnums=0,
        in_shardings=(state_sharding, batch_sharding, batch_sharding),
        out_shardings=(state_sharding, same),
    )


def _with_accumulated(function: Callable[[Any], Any], state: TrainState) -> TrainState:
    """Returns the state with the function applied to all accumulated gradients."""
    of = state.opt_state
    of = of._replace(acc_grads=jax.tree.map(function, of.acc_grads))
    return state.replace(opt_state=of)


def _corrupted(
    config: Config,
    key: jax.Array,
    tokens_BxL: jax.Array,
    progress: jax.Array,
    part: tuple[jax.Array | int, int],
) -> MaskedBatch:
    """Returns the batch masked as `config.objective` demands at this progress."""
    objective, predicted_count = config.objective, None
    if objective.final_mask_rate:
        change = objective.final_mask_rate - objective.mask_rate
        length = tokens_BxL.shape[1]
        count = jnp.round((objective.mask_rate + change * progress) * length)
        most = predicted_per_row(objective.max_mask_rate, length)
        predicted_count = jnp.clip(count, 1, most)
    return mask_tokens(
        key,
        tokens_BxL,
        mask_rate=objective.max_mask_rate,
        vocab_size=config.model.vocab_size,
        mask_share=objective.mask_share,
        random_share=objective.random_share,
        predicted_count=predicted_count,
        # With separate documents, the attention mask reveals where a <sep> is.
        unpredictable_ids=(CLS, SEP) if objective.separate_documents else (),
        part=part,
    )


def _accumulator(accumulate: jax.Array, axis: str | None = None) -> optax.MultiSteps:
    """Averages gradients and drops micro-batches where they are not finite.

    Devices along an axis drop together. The optimizer is left to the micro-step:
    MultiSteps would run it every time and select.
    """

    def skip_together(updates, step, params):
        skips, found = optax.skip_not_finite(updates, step, params)
        skips = jax.lax.pmax(skips.astype(jnp.int32), axis) > 0
        return skips, found | {"should_skip": skips}

    # The schedule of MultiSteps is given only the number of updates. The micro-batches
    # per update depend on progress, so they are passed in, as a traced value.
    return optax.MultiSteps(
        optax.identity(),
        every_k_schedule=lambda _: accumulate,
        should_skip_update_fn=skip_together if axis else optax.skip_not_finite,
    )
