"""Operations counted by dispatch, against counts made by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from stormlit.cli.bench.counting import OperationCounter


def counted(code: Callable[[], object]) -> OperationCounter:
    with OperationCounter() as counter:
        code()
    return counter


def matrix(rows: int = 4, columns: int = 4) -> Tensor:
    return torch.arange(rows * columns, dtype=torch.float32).reshape(rows, columns)


def test_forward_and_backward_of_a_linear_layer() -> None:
    weight = matrix().requires_grad_()
    with OperationCounter() as counter:
        torch.relu(matrix() @ weight).sum().backward()
    # arange and its reshape came from matrix(); ones_like is the gradient that backward begins with; the first factor
    # wants no gradient, so there is one product more.
    expected = {"arange": 1, "mm": 2, "relu": 1, "sum": 1, "ones_like": 1, "threshold_backward": 1}
    assert counter.operations == expected
    assert not counter.syncs
    assert weight.grad is not None


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t(),
        lambda x: x.view(2, 8),
        lambda x: x.reshape(16),
        lambda x: x.detach(),
        lambda x: x[1:, None, ::2],
        lambda x: x.unbind(0),
        lambda x: x.chunk(2, dim=-1),
        lambda x: x.expand(3, 4, 4).permute(2, 0, 1),
        lambda x: x.squeeze().unflatten(0, (2, 2)).unsqueeze(-1),
        lambda x: x.contiguous().float(),
        lambda x: x.is_same_size(x),
    ],
)
def test_views_count_nothing(view: Callable[[Tensor], object]) -> None:
    x = matrix()
    assert counted(lambda: view(x)).operations.total() == 0


def test_a_reshape_that_copies_counts_once() -> None:
    x = matrix()
    assert counted(lambda: x.t().reshape(16)).operations == {"clone": 1}


def test_fused_and_foreach_operations_count_once() -> None:
    tensors = [matrix(), matrix(), matrix()]
    assert counted(lambda: torch._foreach_mul_(tensors, 2.0)).operations == {"_foreach_mul_": 1}
    module = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters(), fused=True)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    # The steps of both parameters are counted up, then both are moved.
    assert counted(optimizer.step).operations == {"_foreach_add_": 1, "_fused_adam_": 1}


@pytest.mark.parametrize(
    ("code", "syncs"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: bool((x > 0).all()), 1),
        (lambda x: float(x.mean()) + int(x[0, 0]), 2),
        (lambda x: x.nonzero(), 1),
        (lambda x: x.masked_select(x > 2), 1),
        (lambda x: x[x[0] > 1], 1),
        (lambda x: x.index_put_((x > 1,), torch.zeros(())), 1),
        (lambda x: torch.equal(x, x), 1),
        (lambda x: torch.allclose(x, x), 1),
        (lambda x: x.unique(), 1),
        (lambda x: torch.multinomial(x, 1), 1),
        (lambda x: x.repeat_interleave(torch.tensor([1, 2, 0, 1]), dim=0), 1),
        (lambda x: x.repeat_interleave(torch.tensor([1, 2, 0, 1]), dim=0, output_size=4), 0),
        (lambda x: x[torch.tensor([0, 2])], 0),
        (lambda x: x.gather(0, torch.zeros(1, 4, dtype=torch.long)), 0),
        (lambda x: torch.where(x > 1, x, -x), 0),
        (lambda x: x.masked_fill(x > 1, 0.0).double(), 0),
        (lambda x: x.to("meta", non_blocking=True), 0),
        (lambda x: x.to("meta"), 1),
        (lambda x: torch.empty(4, 4, device="meta").copy_(x), 1),
        (lambda x: torch.empty(4, 4, device="meta").copy_(x, non_blocking=True), 0),
        (lambda x: torch.empty(4, 4, device="meta").copy_(torch.empty(4, 4, device="meta")), 0),
    ],
)
def test_what_makes_the_host_wait_is_counted(code: Callable[[Tensor], object], syncs: int) -> None:
    x = matrix()
    counter = counted(lambda: code(x))
    assert counter.syncs.total() == syncs, counter.breakdown()


def test_the_breakdown_names_totals_syncs_and_the_largest() -> None:
    x = matrix()
    text = counted(lambda: [x + 1, x + 2, x * 3, x.sum().item()]).breakdown(largest=1)
    assert text.splitlines() == [
        "5 operations, 1 host syncs",
        "  sync     1  _local_scalar_dense",
        "           2  add",
        "           3  others",
    ]


def test_autograd_threads_are_as_before_afterwards() -> None:
    before = torch.autograd.is_multithreading_enabled()
    counted(matrix)
    assert torch.autograd.is_multithreading_enabled() == before
