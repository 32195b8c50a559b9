import dataclasses

import numpy as np

from cramjax.glue import finetune as batches
from cramjax.glue.data import Encoded


def test_every_epoch_sees_every_row_once_but_the_last_partial_batch(tiny):
    glue = dataclasses.replace(tiny.glue, trials=2, batch_size=4)
    epochs = [list(batches.batches(10, glue, 0, epoch)) for epoch in range(2)]
    for found in epochs:
        assert [b.shape for b in found] == [(2, 4)] * 2
        for trial in range(2):
            assert len(set(np.concatenate([b[trial] for b in found]))) == 8
    assert (epochs[0][0] != epochs[1][0]).any()


def test_a_trial_has_its_order_and_lengths_whatever_runs_beside_it(tiny):
    glue = dataclasses.replace(tiny.glue, trials=2, batch_size=2, epochs=1)
    tokens = np.tril(np.ones((40, 40), np.uint16))  # row i has i + 1 tokens
    rows = Encoded(tokens, np.zeros(40, np.int32))
    glue = dataclasses.replace(glue, max_length=64)
    both = list(batches.chunks(rows, glue, range(2), 0, 0))
    alone = list(batches.chunks(rows, glue, range(1, 2), 0, 0))
    assert {length for length, _ in both} == {32, 64}
    for (length, rows_SxTxB), (other, rows_Sx1xB) in zip(both, alone, strict=True):
        assert length == other
        np.testing.assert_array_equal(rows_SxTxB[:, 1:], rows_Sx1xB)


def test_length_and_size():
    tokens = np.zeros((2, 40), np.uint16)
    tokens[0, :33] = 1
    assert batches.padded_length(tokens, 128) == 64
    assert batches.padded_length(tokens[:, :20], 128) == 32
    assert batches.padded_length(tokens, 40) == 40  # learned positions may end there


def test_chunks_are_steps_in_a_row_of_one_length(tiny, monkeypatch):
    monkeypatch.setattr(batches, "CHUNK", 3)
    glue = dataclasses.replace(tiny.glue, batch_size=1, epochs=1, max_length=64)
    tokens = np.zeros((12, 64), np.uint16)
    lengths = [1, 1, 60, 60, 60, 60, 60, 33, 1, 1, 1, 1]
    for row, n in zip(tokens, lengths, strict=True):
        row[:n] = 1
    rows = Encoded(tokens, np.zeros(12, np.int32))
    monkeypatch.setattr(
        batches,
        "batches",
        lambda *_: iter(np.arange(12, dtype=np.int32).reshape(12, 1, 1)),
    )
    found = list(batches.chunks(rows, glue, range(1), 0, 0))
    assert [(n, rows_SxTxB.ravel().tolist()) for n, rows_SxTxB in found] == [
        (32, [0, 1]),
        (64, [2, 3, 4]),
        (64, [5, 6, 7]),
        (32, [8, 9, 10]),
        (32, [11]),
    ]
