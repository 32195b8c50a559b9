import pytest

from cramjax.device import micro_batch

INF = float("inf")


def test_a_whole_number_of_micro_batches_makes_up_the_batch():
    assert micro_batch.sizes(12) == [1, 2, 3, 4, 6, 12]
    assert micro_batch.sizes(1) == [1]
    small = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192]
    # 22 x 384 would be 8448, 3 % more than 8192.
    assert micro_batch.sizes(8192) == [*small, 256, 512, 1024, 2048, 4096, 8192]


@pytest.mark.parametrize("limit", [1, 10.2, 26, 31, 75, 300, 10**6])
@pytest.mark.parametrize("first", [1, 64, 10**4])
@pytest.mark.parametrize("bend", [0.0, 0.3, -0.3])
@pytest.mark.parametrize("unknown_above", [INF, 200])
def test_the_search_finds_all_that_fit_and_asks_little(
    limit, first, bend, unknown_above
):
    ladder = micro_batch.sizes(1024)
    need = {n: 10 + n / 4 * (1 + bend * n / 1024) for n in ladder}
    need = {n: x if n <= unknown_above else INF for n, x in need.items()}
    asked = []

    def need_bytes(size):
        asked.append(size)
        return need[size]

    found = micro_batch.largest_first(
        ladder, limit, need_bytes, fixed_bytes=10, first=first
    )
    assert found == [n for n in reversed(ladder) if need[n] <= limit]
    assert len(asked) == len(set(asked)) <= 7


def test_what_cannot_be_compiled_is_come_down_from_quickly():
    asked = []

    def need_bytes(size):
        asked.append(size)
        return 1.0 if size <= 2 else INF

    ladder = micro_batch.sizes(8192)
    found = micro_batch.largest_first(ladder, 100, need_bytes, fixed_bytes=0, first=512)
    assert found == [2, 1]
    assert len(asked) <= 6


def test_nothing_to_choose_from():
    def need_bytes(size):
        raise AssertionError(size)

    assert micro_batch.largest_first([], 1, need_bytes, fixed_bytes=0) == []
