"""The floor of any model: its products, and nothing else."""

import pytest
import torch
from benchmarks.heavy import is_heavy, recorded
from torch import nn

from mixerflow.nets import GatedAttentionNet


@pytest.mark.parametrize(
    ("name", "heavy"),
    [
        ("aten::addmm", True),
        ("aten::convolution_backward", True),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", True),
        ("aten::add", False),
        ("aten::native_layer_norm", False),
        ("aten::comm", False),
    ],
)
def test_what_counts(name, heavy):
    assert is_heavy(name) == heavy


def test_operators_are_recorded_forward_and_backward_with_their_shapes():
    net, x = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)), torch.randn(5, 3)
    runs = []

    def run():
        runs.append(net(x).sum().backward())

    again, operators = recorded(run)
    # two products forward; backward two weights, and one input: the images need no gradient
    assert operators == 5 and len(runs) == 1
    before = [p.grad.clone() for p in net.parameters()]
    again()
    assert len(runs) == 1
    assert all(map(torch.equal, before, (p.grad for p in net.parameters())))


def test_attention_and_convolutions_of_a_net_count():
    net = GatedAttentionNet(2, 4, sides=(4, 4), width=8, depth=2, heads=2)
    x = torch.randn(3, 2, 4, 4)
    with torch.no_grad():
        again, operators = recorded(lambda: net(x))
    # enter, leave; in each block a convolution, three maps of rows, and attention
    assert operators == 2 + 2 * 5
    again()
