"""What several processes read of one order: every position once, whoever goes on with it."""

import random

from hypothesis import given
from hypothesis import strategies as st

from t2i_jax.data.share import Share, deal


def rows_of(count, batch_size):
    """The rows of each of `count` processes."""
    each = batch_size // count
    return [tuple(range(i * each, (i + 1) * each)) for i in range(count)]


@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2, 3, 4, 6, 12]), st.sampled_from([12, 24])),
        min_size=1,
        max_size=5,
    ),
    st.randoms(use_true_random=False),
)
def test_starts_of_any_sizes_read_every_position_once(starts: list, chance: random.Random):
    read, shares = [], None
    for count, batch_size in starts:
        rows = rows_of(count, batch_size)
        shares = [deal(shares, of, batch_size) if shares else Share(of, batch_size) for of in rows]
        # unusable samples take some processes further than others
        after = [chance.randrange(40) for _ in rows]
        for share, number in zip(shares, after, strict=True):
            read += [share.position(i) for i in range(number)]
        shares = [share.after(number) for share, number in zip(shares, after, strict=True)]
    last = deal(shares, range(5), 5)
    rest = [last.position(i) for i in range(len(starts) * 600)]
    assert sorted([*read, *rest]) == list(range(len(read) + len(rest)))


@given(st.sampled_from([1, 2, 4]), st.integers(0, 30), st.integers(0, 60))
def test_what_is_below_an_end_is_counted(count, number, end):
    for rows in rows_of(count, 12):
        share = Share(rows, 12).after(number)
        below = [i for i in range(100) if share.position(i) < end]
        assert share.count_below(end) == len(below) and below == list(range(len(below)))


def test_processes_in_step_leave_nothing_behind():
    shares = [Share(rows, 8).after(6) for rows in rows_of(4, 8)]
    assert deal(shares, range(8), 8) == Share(tuple(range(8)), 8, base=24)
