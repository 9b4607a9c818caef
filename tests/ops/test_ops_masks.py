"""Which step sees which, by hand."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from stormlit.ops.masks import episode_causal_mask, last_start

IS_FIRST = torch.tensor([[False, False, True, False], [True, False, False, True], [False, False, False, False]])


def test_mask_by_hand() -> None:
    mask = episode_causal_mask(IS_FIRST)
    assert mask.dtype == torch.bool
    # An episode begins at step 2: steps 0 and 1 see the old one, steps 2 and 3 the new one.
    assert mask[0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    # A start at step 0 hides nothing; one at step 3 hides all before.
    assert mask[1].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]]
    assert mask[2].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_last_start_by_hand() -> None:
    assert last_start(IS_FIRST).tolist() == [2, 3, 0]
    assert last_start(torch.tensor([[True, True, False]])).tolist() == [1]


@given(st.lists(st.booleans(), min_size=1, max_size=24))
def test_a_step_sees_an_earlier_one_unless_an_episode_begins_in_between(starts: list[bool]) -> None:
    mask = episode_causal_mask(torch.tensor([starts]))[0]
    for query in range(len(starts)):
        for key in range(len(starts)):
            visible = key <= query and not any(starts[key + 1 : query + 1])
            assert bool(mask[query, key]) == visible
