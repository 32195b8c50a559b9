"""Several devices, and several processes: the numbers of one."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, tiny_config
from test_train_step import tokens_of

from cramjax import run as run_module
from cramjax.device import distributed
from cramjax.device.compile import Requests, tree_bytes
from cramjax.errors import UserError
from cramjax.glue import evaluate
from cramjax.main import main
from cramjax.run import run
from cramjax.training import loop, train_step
from cramjax.training.optimizer import ONCE_AN_UPDATE


def on(devices, config):
    """Returns the micro-step on this many devices."""
    return train_step.build(config, train_step.make_mesh(jax.devices()[:devices]))


def test_gradients_are_reduced_once_per_update(tiny):
    step = on(2, tiny)
    program = step.lowered().compile().as_text()
    widths = {"f32": 4, "s32": 4, "u32": 4, "pred": 1}
    sums, branches, name = {}, set(), ""
    for line in program.splitlines():
        if found := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            name = found[1]
        if " conditional(" in line and ONCE_AN_UPDATE in line:
            branches |= set(re.findall(r"%([\w.-]+)", line.partition("), ")[2]))
        assert not re.search(r" (all-gather|all-to-all|collective-permute)\(", line)
        if found := re.search(r"= (.*?) all-reduce(-start)?\(", line):
            sizes = re.findall(r"(\w+)\[([\d,]*)\]", found[1])
            of_line = [
                widths[kind] * int(np.prod([int(n) for n in shape.split(",") if n]))
                for kind, shape in sizes
            ]
            sums[name] = sums.get(name, 0) + sum(of_line)
    gradient = tree_bytes(jax.eval_shape(step.init_state).params)
    [(reducing, size)] = [item for item in sums.items() if item[1] > 100]
    assert size == gradient
    assert reducing in branches  # of the conditional that ends an accumulation
    assert sum(sums.values()) - gradient < 50  # in every micro-step


def test_two_devices_give_the_numbers_of_one(tiny, monkeypatch):
    """Also where only the second one's gradient is not finite; and saved half-way."""
    exact = train_step.cross_entropy

    def breaking(logits, targets_BxP, weights):
        broken = (targets_BxP == 255).all(axis=1).any()
        return exact(logits, targets_BxP, weights) * jnp.where(broken, jnp.nan, 1)

    monkeypatch.setattr(train_step, "cross_entropy", breaking)
    found = []
    for devices in (1, 2):
        step, trace = on(devices, tiny), []
        state = step.fresh_state()
        for i in range(12):
            tokens = tokens_of(tiny, 4, i)
            if i == 6:
                tokens[3] = 255
            state, metrics = step.function(state, *step.inputs(tokens, Requests(0.5)))
            names = ("loss", "grad_norm", "finite", "updated", "skipped", "accumulate")
            trace.append([float(metrics[name]) for name in names])
            if i == 4:  # the second of three micro-batches
                assert int(state.opt_state.mini_step) > 0
                saved = jax.tree.map(np.asarray, step.gather(state))
                state = step.spread(jax.device_put(saved, step.sharding))
        assert int(metrics["skipped"]) == 1
        found.append((trace, jax.tree.leaves(train_step.named_params(tiny, state))))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    for one, two in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(one, two, atol=2e-6)


def test_what_a_checkpoint_has_is_gathered_first(monkeypatch):
    saved = []
    monkeypatch.setattr(loop, "host_state", lambda _: {})
    session = SimpleNamespace(
        clock=SimpleNamespace(step=3, measure=lambda _: contextlib.nullcontext()),
        micro_step=SimpleNamespace(gather=lambda state: f"{state}, gathered"),
        state="a state",
        store=SimpleNamespace(save=lambda *given: saved.append(given)),
    )
    loop.save(session)
    assert saved == [(3, "a state, gathered", {})]


@pytest.mark.slow
def test_devices_have_dropout_of_their_own(data_dir, monkeypatch):
    """Where rows, masks and weights are equal, so would be the gradients."""
    keys = ("model.layers=1", "objective.dropout=0.5", "batch.sequences=8")
    config, mask = tiny_config(data_dir, *keys), train_step.mask_tokens

    def same(*given, part, **more):
        return mask(*given, part=(0, part[1]), **more)

    monkeypatch.setattr(train_step, "mask_tokens", same)
    step = on(2, config)
    tokens_BxL = np.tile(tokens_of(config, 2), (2, 1))
    state, _ = step.function(
        step.fresh_state(), *step.inputs(tokens_BxL, Requests(0.5))
    )
    sums = np.asarray(state.opt_state.acc_grads["final_norm"]["bias"])
    assert sums.shape == (2, 32) and not np.isclose(*sums).any()


KEYS = (
    *TINY,
    *("model.layers=1", "averaging.ema_decay=0.0", "averaging.lawa_last=0"),
    *("glue.tasks=()", "validation.max_blocks=4"),
    "log.every_steps=10",
    "budget.tokens=76800",  # 600 micro-steps
    "data.order=random",
)


def measured(workdir):
    """Returns {step: loss} of metrics.jsonl, and its events."""
    path = workdir / "metrics.jsonl"
    lines = [json.loads(x) for x in path.read_text().splitlines()] * path.exists()
    losses = {line["step"]: line["loss"] for line in lines if "event" not in line}
    return losses, [line["event"] for line in lines if "event" in line]


def test_two_processes_train_as_one_and_one_of_them_is_stopped(
    corpus, data_dir, tmp_path
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    often = ("validation.every_minutes=0.02", "checkpoint.every_minutes=0.02")
    keys = (*KEYS, *often, f"data.dir={data_dir}")
    command = [sys.executable, "-m", "cramjax.main", "--config=configs/small.py"]
    command += [f"--config.{key}" for key in keys]
    command += [f"--workdir={tmp_path}/two", f"--coordinator={address}"]
    processes = [
        subprocess.Popen(
            [*command, "--processes=2", f"--process={i}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    config = tiny_config(data_dir, *KEYS)
    run(config, tmp_path / "one")  # meanwhile
    expected, _ = measured(tmp_path / "one")
    log = tmp_path / "two/metrics.jsonl"
    while not (log.exists() and len(measured(log.parent)[0]) > 3):
        assert [p.poll() for p in processes] == [None, None]
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    outputs = [p.communicate(timeout=60)[0] for p in processes]
    assert [p.returncode for p in processes] == [143, 143], outputs
    assert "loss" in outputs[0] and "loss" not in outputs[1]
    _, events = measured(tmp_path / "two")
    assert events[-1] == "stopped"
    reached = json.loads(log.read_text().splitlines()[-1])["step"]
    assert 30 < reached < 600

    run(config, tmp_path / "two")
    losses, events = measured(tmp_path / "two")
    assert "resumed" in events and losses.keys() == expected.keys()
    for step, loss in losses.items():
        assert loss == pytest.approx(expected[step], abs=1e-5)
    assert json.loads((tmp_path / "two/config.json").read_text())["devices"] == 2


def test_results_of_processes_are_joined(tmp_path):
    parts = {"glue": {"a": 1, "b": 1}, "glue-0": {"a": 2}, "glue-11": {"c": 3}}
    for name, tasks in parts.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"tasks": tasks}))
    evaluate.join_parts(tmp_path)
    joined = {"a": 2, "b": 1, "c": 3}
    assert evaluate.read_results(tmp_path / "glue.json") == joined
    assert [path.name for path in tmp_path.iterdir()] == ["glue.json"]


@pytest.fixture
def second_of_two(monkeypatch):
    """This process says it is number 1 of 2; returns what it waits for, in order."""
    waits = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(distributed, "wait_for_all", waits.append)
    return waits


def test_each_process_has_its_tasks_and_the_first_joins_them_at_the_end(
    tiny, corpus, second_of_two, monkeypatch, tmp_path
):
    calls = second_of_two
    monkeypatch.setattr(
        evaluate,
        "evaluate",
        lambda *given, part=None: calls.append((given[-1], part)) or {"a": 1},
    )
    monkeypatch.setattr(evaluate, "join_parts", lambda _: calls.append("join"))
    given = tiny, {}, corpus.tokenizer, tmp_path, "abcde"
    assert run_module._evaluate(*given) == {}
    assert calls == ["joined", ("bd", 1), "evaluated"]
    calls.clear()
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    assert run_module._evaluate(*given) == {"a": 1}
    alone = ["join", ("abcde", None)]
    assert calls == ["join", "joined", ("ace", 0), "evaluated", *alone]


def test_processes_wait_for_the_first_and_end_with_each_other(
    tiny, second_of_two, monkeypatch, capsys
):
    order = second_of_two
    with distributed.first_alone("corpus"):
        order.append("second")
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    with distributed.first_alone("corpus"):
        order.append("first")
    assert order == ["corpus", "second", "first", "corpus"]

    utils = distributed.multihost_utils
    monkeypatch.setattr(utils, "process_allgather", lambda x: np.stack([x, x]))
    distributed.check_equal("a config")
    monkeypatch.setattr(utils, "process_allgather", lambda x: np.stack([x, x + 1]))
    with pytest.raises(UserError, match="not all processes have the same config"):
        distributed.check_equal("a config")

    monkeypatch.setattr(distributed, "devices", lambda: 3)
    with pytest.raises(UserError, match="micro_batch is 4: must be a multiple of 3"):
        run_module.check_platform(tiny)

    monkeypatch.setattr("os._exit", sys.exit)
    with pytest.raises(SystemExit) as ended, distributed.peers_watched():
        raise ValueError("Gloo all-reduce failed")
    assert ended.value.code == 1
    assert "error: another process is gone" in capsys.readouterr().err
    with (
        pytest.raises(ValueError, match="another mistake"),
        distributed.peers_watched(),
    ):
        raise ValueError("another mistake")


@pytest.mark.parametrize(
    "flags",
    [
        "--processes=2",
        "--coordinator=a --processes=2 --process=0",
        "--coordinator=slurm",
        "--rehearse",
    ],
)
def test_wrong_flags_are_one_line(flags, tmp_path, capsys):
    argv = ["--config=configs/small.py", f"--workdir={tmp_path}", *flags.split()]
    if flags == "--rehearse":
        argv.append("--process=1")
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --") and error.count("\n") == 1
    assert "--process" in error or "srun" in error
