"""The transformer's hand-derived step is the one that autograd and torch.optim.AdamW take, to rounding."""

import numpy as np
import pytest
import torch

from grokutils import ConfigError, RunConfig, train
from grokutils.experiment import data, models
from grokutils.records.files import read_parquet, write_parquet
from grokutils.util import columns


def small(**changes) -> RunConfig:
    values = dict(p=13, fraction=0.5, d_model=32, n_heads=4, d_mlp=48, steps=100, dtype="float64")
    return RunConfig.recipe("modular", **{**values, **changes})


CASES = {
    "default decay": small(),
    "no decay, one head": small(wd=0.0, n_heads=1),
    "other sizes": small(p=7, d_model=24, n_heads=3, d_mlp=20, fraction=0.7, lr=1e-2),
    "side by side": small().ensemble([0, 1], [0.0, 1.0]),
    "PyTorch's beta2": small(beta2=0.999),
    "loss in float32": small(loss_dtype="float32"),
}


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_equals_autograd_and_adamw(config):
    steps = 100
    model = models.build(config)
    model.init()
    start = model.weights()
    model.step(0, steps)
    loss_dtype = getattr(torch, config.loss_dtype)
    for member, network in enumerate(config.networks):
        net = models.as_module(config, start[member])
        optimiser = torch.optim.AdamW(
            net.parameters(), lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps,
            weight_decay=network.weight_decay,
        )  # fmt: skip
        dataset = data.load(config, network.seed)
        x, y = torch.from_numpy(dataset.x_train), torch.from_numpy(dataset.y_train)
        for _ in range(steps):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(net(x).to(loss_dtype), y).backward()
            optimiser.step()
        mine = model.weights()[member]
        # a loss in float32 makes its own rounding errors, and Adam divides by small gradients
        atol = 1e-9 if config.loss_dtype == "float64" else 1e-3
        assert set(mine) == {name for name, _ in net.named_parameters()}
        for name, parameter in net.named_parameters():
            np.testing.assert_allclose(mine[name], parameter.detach().numpy(), rtol=0, atol=atol, err_msg=name)
        scores = model.evaluate()[member]
        with torch.no_grad():
            out = net(torch.from_numpy(dataset.x_test))
        answer = torch.from_numpy(dataset.y_test)
        assert scores["test_accuracy"] == pytest.approx((out.argmax(1) == answer).double().mean().item())
        loss = torch.nn.functional.cross_entropy(out, answer).item()
        assert scores["test_loss"] == pytest.approx(loss, rel=1e-6 if atol == 1e-9 else 1e-2)
        margins = [row[a] - np.delete(row, a).max() for row, a in zip(out.numpy(), dataset.y_test, strict=True)]
        for name, expected in (("min", np.min(margins)), ("median", np.median(margins))):
            assert scores[f"test_margin_{name}"] == pytest.approx(expected, rel=1e-5, abs=10 * atol)
        assert (scores["test_margin_min"] > 0) == (scores["test_accuracy"] == 1)


@pytest.mark.parametrize("loss_dtype", ["float32", "float64"])
def test_a_loss_in_float32_forgets_answers_that_are_sure(loss_dtype):
    """With margins above 17 the probability of the right answer is 1 in float32, and nothing pulls at its logit:
    the gradient of the unembedding sums to what the wrong answers push, as in autograd."""
    config = small(loss_dtype=loss_dtype, dtype="float64")
    model = models.build(config)
    model.init()
    model.step(0, 300)
    model.params["unembed.weight"].mul_(20.0 / model.evaluate()[0]["train_margin_min"])
    assert model.evaluate()[0]["train_margin_min"] > 19
    model.gradients(None)
    net = models.as_module(config, model.weights()[0])
    dataset = data.load(config, 0)
    x, y = torch.from_numpy(dataset.x_train), torch.from_numpy(dataset.y_train)
    torch.nn.functional.cross_entropy(net(x).to(getattr(torch, loss_dtype)), y).backward()
    mine, theirs = model.grads["unembed.weight"], net.unembed.weight.grad
    assert theirs.abs().max() > 0
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())
    total = theirs.sum(0).abs().max() / theirs.abs().max()  # logits that all move together change no probability
    assert total > 0.1 if loss_dtype == "float32" else total < 1e-4


def test_margins_are_nan_in_records_that_have_none(tmp_path):
    record = train(small(steps=3), tmp_path / "run", progress=False)
    assert record.metrics[list(columns.MARGINS)].notna().all().all()
    path = record.folder / "metrics.parquet"
    write_parquet(path, read_parquet(path).drop(columns=list(columns.MARGINS)))
    assert record.metrics[list(columns.MARGINS)].isna().all().all()
    assert record.metrics.train_loss.notna().all()


def test_float32_weights_follow_float64_ones():
    """The loss is computed in float64 whatever the weights are."""
    runs = {}
    for dtype in ("float32", "float64"):
        model = models.build(small(dtype=dtype))
        model.init()
        model.step(0, 20)
        runs[dtype] = model.weights()[0]
    for name, w in runs["float64"].items():
        np.testing.assert_allclose(runs["float32"][name], w, rtol=0, atol=1e-3, err_msg=name)


def test_pairs():
    dataset = data.load(small(), seed=3)
    everything = np.concatenate([dataset.x_train, dataset.x_test])
    assert len(dataset.x_train) == round(0.5 * 13 * 13) and len(everything) == 13 * 13
    assert len(np.unique(everything, axis=0)) == 13 * 13, "every pair is in one of the sets, once"
    assert (everything[:, 2] == 13).all()
    answers = np.concatenate([dataset.y_train, dataset.y_test])
    assert np.array_equal(answers, (everything[:, 0] + everything[:, 1]) % 13)
    assert not np.array_equal(dataset.x_train, data.load(small(), seed=4).x_train)


def test_random_answers_are_a_control():
    dataset = data.load(small(random_labels=1.0), seed=3)
    right = (dataset.x_train[:, 0] + dataset.x_train[:, 1]) % 13 == dataset.y_train
    assert 0 < right.mean() < 0.3


def test_the_same_loop_trains_and_resumes_it(tmp_path):
    config = small(steps=60).ensemble([0, 1], [0.0, 1.0])
    whole = train(config, tmp_path / "whole", progress=False)
    train(config.replace(steps=25), tmp_path / "cut", progress=False)
    cut = train(config, tmp_path / "cut", progress=False)
    for member in range(4):
        for name, w in whole.weights(60, member).items():
            assert np.array_equal(cut.weights(60, member)[name], w)
    metrics = whole.metrics
    for layer in ("embed", "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "unembed"):
        assert f"{layer}_l2_norm" in metrics
    assert metrics.train_loss.iloc[-1] < metrics.train_loss.iloc[0]
    module = whole.model(60, member=1)
    assert module(torch.tensor([[1, 2, 13]])).shape == (1, 13)


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(p=12), "p must be a prime from 5 to 257; got 12"),
        (dict(p=3), "p must be"),
        (dict(fraction=1.0), "fraction must"),
        (dict(fraction=0.0), "fraction must"),
        (dict(fraction=0.999), "fraction must leave"),
        (dict(fraction=0.001), "fraction must leave"),
        (dict(n_heads=5), "n_heads must divide d_model"),
        (dict(batch_size=10), "batch_size must be 0"),
        (dict(dataset="digits"), "dataset must be 'modular-addition' for the transformer"),
        (dict(model="mlp"), "dataset must be 'mnist' or 'digits' or 'fashion-mnist' or 'breast-cancer' for the mlp"),
        (dict(d_model=0), "d_model must"),
    ],
)
def test_bad_input(bad, message):
    with pytest.raises(ConfigError, match=message):
        small(**bad)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_equals_cpu():
    config = small().ensemble([0, 1], [0.0, 1.0])
    cpu, cuda = models.build(config), models.build(config, "cuda")
    for model in (cpu, cuda):
        model.init()
        model.step(0, 73)
    np.testing.assert_allclose(
        cpu.state_dict()["parameters"], cuda.state_dict()["parameters"], rtol=0, atol=1e-9
    )
