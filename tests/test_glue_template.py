"""From texts to token arrays."""

import numpy as np
import pytest

from cramjax.glue import data
from cramjax.glue.data import Rows, template

CLS, SEP = 4, 5


# 3 special tokens; ids below 100 are A's, above are B's.
@pytest.mark.parametrize(
    ("len_a", "len_b", "max_length", "kept_a", "kept_b"),
    [
        (3, 2, 128, 3, 2),
        (3, 0, 128, 3, 0),  # <cls> A <sep> <sep>
        (9, 2, 10, 5, 2),  # room for 7: the longer one gives way
        (2, 9, 10, 2, 5),
        (9, 9, 10, 4, 3),  # A keeps the odd token
        (9, 9, 11, 4, 4),
        (4, 9, 10, 4, 3),
        (3, 9, 10, 3, 4),
        (50, 0, 10, 7, 0),
    ],
)
def test_template(len_a, len_b, max_length, kept_a, kept_b):
    a, b = list(range(10, 10 + len_a)), list(range(100, 100 + len_b))
    expected = [CLS, *a[:kept_a], SEP, *b[:kept_b], SEP]
    assert template([a, b], max_length) == expected


def test_template_is_longest_first_one_token_at_a_time():
    for len_a in range(12):
        for len_b in range(12):
            a, b = [7] * len_a, [8] * len_b
            while len(a) + len(b) > 9:
                (a if len(a) > len(b) else b).pop()
            expected = [CLS, *a, SEP, *b, SEP]
            assert template([[7] * len_a, [8] * len_b], 12) == expected


def test_template_of_one_three_and_four_texts():
    one, two, three, four = [11, 12], [21], [31, 32], [41]
    assert template([one], 20) == [CLS, 11, 12, SEP, SEP]
    assert template([one, two, three], 20) == [CLS, 11, 12, SEP, 21, SEP, 31, 32, SEP]
    all_four = [CLS, 11, 12, SEP, 21, SEP, 31, 32, SEP, 41, SEP]
    assert template([one, two, three, four], 20) == all_four
    # Room for 5: A, "11 12 <sep> 21 <sep> 31 32", gives way down to 4.
    assert template([one, two, three, four], 8) == [CLS, 11, 12, SEP, 21, SEP, 41, SEP]


def test_encode_pads_with_zero(corpus):
    rows = Rows([("a small house",), ("a",)], np.array([0, 1]))
    tokens_NxL = data.encode(rows, corpus.tokenizer, 32).tokens_NxL
    assert tokens_NxL.shape == (2, 32)
    assert list(tokens_NxL[1].nonzero()[0]) == [0, 1, 2, 3]


def test_encode_joins_three_texts_and_reads_sep_as_characters(corpus):
    words = corpus.tokenizer
    a, b, c = (words.encode(t).ids for t in ("the", "a <sep>", "house"))
    assert SEP not in b
    rows = Rows([("the", "a <sep>", "house")], np.array([0]))
    expected = [CLS, *a, SEP, *b, SEP, *c, SEP]
    [found] = data.encode(rows, words, 32).tokens_NxL.tolist()
    assert found == expected + [0] * (32 - len(expected))


def test_a_single_text_as_bert_has_it():
    assert data.template([[9, 8, 7]], 16, empty_second=False) == [4, 9, 8, 7, 5]
    assert data.template([[9, 8, 7]], 4, empty_second=False) == [4, 9, 8, 5]
    pair = data.template([[9, 8], [7]], 16)
    assert data.template([[9, 8], [7]], 16, empty_second=False) == pair
