"""The progress measures by their two definitions, against sums written out, and the controls."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from grokutils.spectra import baselines as b
from grokutils.spectra.measure import weight_statistics


@pytest.fixture
def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)
    ).double()


@pytest.fixture
def x():
    return 3 * torch.randn(300, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_activation_sparsity(net, x):
    first = net[1](net[0](x)).detach().numpy()
    second = net[3](net[2](torch.from_numpy(first))).detach().numpy()
    assert b.activation_sparsity_notebook(net, x) == pytest.approx((first < 1).mean())
    expected = ((first < 0.3).mean() + (second < 0.3).mean()) / 2
    assert b.activation_sparsity_text(net, x, tau=0.3) == pytest.approx(expected)
    assert b.activation_sparsity_text(net, x) != b.activation_sparsity_notebook(net, x)


def test_no_relu_no_sparsity(x):
    with pytest.raises(ValueError, match="must contain torch.nn.ReLU"):
        b.activation_sparsity_text(torch.nn.Linear(6, 2).double(), x)


def test_entropy():
    weights = {"fc1.weight": np.array([[0.5, -2.0], [0.0, 1.0]]), "fc1.bias": np.ones(2), "fc2.weight": np.array([[3.0]])}
    first = -(0.5 * np.log(0.5) + 2 * np.log(2))
    assert b.absolute_weight_entropy_text(weights) == pytest.approx(first - 3 * np.log(3))
    assert b.absolute_weight_entropy_notebook(weights) == pytest.approx(first, abs=1e-6)
    with pytest.raises(ValueError, match="at least one"):
        b.absolute_weight_entropy_text({})


def test_circuit_complexity_by_hand(net, x):
    """One draw, the same masks, the sums written out."""
    spread = [3 * i // 2 for i in range(200)]  # 200 of the 300 images
    for function, share, scale, images, reduce in (
        (b.circuit_complexity_text, 0.1, 1.0, range(300), np.sum),
        (b.circuit_complexity_notebook, 0.5, 2.0, spread, np.mean),
    ):
        generator = torch.Generator().manual_seed(7)
        other = torch.nn.Sequential(
            torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)
        ).double()
        other.load_state_dict(net.state_dict())
        with torch.no_grad():
            for name, p in other.named_parameters():
                if name.endswith("weight"):
                    p.mul_((torch.rand(p.shape, generator=generator) >= share) * scale)
            p, q = (torch.softmax(m(x[list(images)]), -1).numpy() for m in (net, other))
        expected = reduce(np.sum(p * np.log(p / q), axis=1))
        assert function(net, x, draws=1, seed=7) == pytest.approx(expected)


def test_circuit_complexity_is_seeded_and_leaves_the_network_alone(net, x):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.random.get_rng_state()
    values = [b.circuit_complexity_text(net, x, seed=s) for s in (3, 3, 4)]
    assert values[0] == values[1] != values[2] and min(values) > 0
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert b.circuit_complexity_text(net, x, share=0.0) == 0.0
    with pytest.raises(ValueError, match="share must be between 0 and 1; got 1.5"):
        b.circuit_complexity_text(net, x, share=1.5)
    with pytest.raises(ValueError, match="draws must be at least 1; got 0"):
        b.circuit_complexity_text(net, x, draws=0)


matrices = hnp.arrays(
    np.float64, hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=6), elements=st.floats(-1e3, 1e3, width=32)
)


@given(matrices, st.floats(0.01, 100))
def test_controls_do_not_depend_on_the_scale(w, factor):
    if np.ptp(w) < 1e-3:
        return
    mine, scaled = b.weight_controls(w), b.weight_controls(w * factor)
    for name in ("max_over_std", "kurtosis", "mean_over_std", "effective_rank"):
        assert scaled[name] == pytest.approx(mine[name], rel=1e-6, abs=1e-9)
    assert scaled["spectral_norm"] == pytest.approx(mine["spectral_norm"] * factor, rel=1e-9)
    assert 1 - 1e-9 <= mine["effective_rank"] <= min(w.shape) + 1e-9


def test_controls_of_known_matrices():
    gaussian = b.weight_controls(np.random.default_rng(0).normal(size=(400, 400)))
    assert gaussian["kurtosis"] == pytest.approx(3, abs=0.1)
    assert 4 < gaussian["max_over_std"] < 6 and abs(gaussian["mean_over_std"]) < 0.01
    assert gaussian["spectral_norm"] == pytest.approx(2 * 20, rel=0.05)
    constant = b.weight_controls(np.ones((3, 4)))
    assert np.isnan(constant["kurtosis"]) and np.isnan(constant["max_over_std"])
    assert constant["effective_rank"] == pytest.approx(1)


@pytest.mark.parametrize(
    "bad", [np.ones(3), np.ones((2, 0)), np.array([[np.nan, 1]]), np.array([[np.inf, 1]]), np.eye(2) * 1j]
)
def test_no_matrix(bad):
    with pytest.raises((ValueError, TypeError), match="^weight must "):
        b.weight_controls(bad)


def test_effective_rank():
    assert np.isnan(b.effective_rank(np.zeros(3)))
    for bad in ([], [-1.0], [np.nan], [[1.0]]):
        with pytest.raises(ValueError, match="^singular_values must be a vector of finite numbers"):
            b.effective_rank(bad)


def test_controls_agree_with_the_moments_that_training_records():
    w = np.random.default_rng(3).standard_t(3, size=(50, 40)) + 0.2
    mine, recorded = b.weight_controls(w), weight_statistics(w)
    assert mine["kurtosis"] == pytest.approx(recorded["kurtosis"], rel=1e-12)
    assert mine["mean_over_std"] == pytest.approx(recorded["mean"] / recorded["std"], rel=1e-12)
    assert mine["max_over_std"] == pytest.approx(np.abs(w - w.mean()).max() / recorded["std"], rel=1e-12)


@pytest.mark.parametrize("scale", [1e-150, 1e100])
def test_controls_of_very_small_and_very_large_weights(scale):
    w = np.random.default_rng(0).normal(size=(20, 30))
    mine, scaled = b.weight_controls(w), b.weight_controls(w * scale)
    for name in ("max_over_std", "kurtosis", "mean_over_std", "effective_rank"):
        assert scaled[name] == pytest.approx(mine[name], rel=1e-9)
