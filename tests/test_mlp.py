"""The hand-derived step is the one that torch.nn and torch.optim.AdamW take, to rounding."""

import numpy as np
import pytest
import torch

from grokutils import RunConfig
from grokutils.experiment import data, models
from grokutils.experiment.models.mlp import _blocks


def reference(config: RunConfig, member: int, batches: list[np.ndarray]) -> torch.nn.Sequential:
    """The plain way: nn.Sequential as torch initialises it, autograd, torch.optim.AdamW."""
    network = config.networks[member]
    dataset = data.load(config, network.seed)
    sizes = [dataset.x_train.shape[1]] + [config.width] * (config.depth - 1) + [10]
    torch.manual_seed(network.seed)
    layers = []
    for k in range(config.depth):
        layers += [torch.nn.ReLU()] if k else []
        layers.append(torch.nn.Linear(sizes[k], sizes[k + 1], dtype=torch.float64))
    net = torch.nn.Sequential(*layers)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(config.init_scale)
    lr = config.learning_rate
    if config.optimizer == "sgd":  # torch's decay is not decoupled, so ours is done by hand
        optimiser = torch.optim.SGD(net.parameters(), lr=lr, momentum=config.beta1)
        shrink = 1 - lr * network.weight_decay
    else:
        optimiser = torch.optim.AdamW(
            net.parameters(), lr=lr, betas=(config.beta1, config.beta2), eps=config.eps,
            weight_decay=network.weight_decay, amsgrad=config.optimizer == "amsgrad",
        )  # fmt: skip
        shrink = 1.0
    x = torch.from_numpy(dataset.x_train)
    y = torch.nn.functional.one_hot(torch.from_numpy(dataset.y_train), 10).double()
    for chosen in batches:
        optimiser.zero_grad()
        torch.nn.functional.mse_loss(net(x[chosen]), y[chosen]).backward()
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(shrink)
        optimiser.step()
    return net


def batches_of(model, member: int, steps: int) -> list[np.ndarray]:
    return [model._positions(t)[member].copy() for t in range(steps)]


def express(**changes) -> RunConfig:
    return RunConfig.recipe("express", dtype="float64", **changes)


CASES = {
    "full batch": express(),
    "full batch, decay": express(wd=0.01),
    "fixed batches": express(batch_size=40),
    "fixed batches, decay": express(batch_size=40, wd=0.1),
    "reshuffled": express(batch_size=40, batch_order="reshuffle"),
    "reshuffled, decay": express(batch_size=40, batch_order="reshuffle", wd=0.01),
    "deeper, narrower": express(depth=5, width=17, batch_size=80),
    "two layers": express(depth=2, wd=0.5),
    "other AdamW": express(beta1=0.8, beta2=0.99, eps=1e-4, lr=1e-3),
    "AMSGrad": express(optimizer="amsgrad", batch_size=40, wd=0.01),
    "SGD with momentum": express(optimizer="sgd", lr=1e-3, wd=0.1, init_scale=1),
    "SGD, decays side by side": express(optimizer="sgd", lr=1e-3, init_scale=1).ensemble([0], [0.0, 0.5]),
    "AMSGrad, decays side by side": express(optimizer="amsgrad").ensemble([0], [0.0, 0.1]),
    "seeds side by side": express(batch_size=40).ensemble([0, 1, 2]),
    "seeds and decays side by side": express(batch_size=40, batch_order="reshuffle").ensemble([3, 4], [0.0, 0.1]),
}


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_equals_autograd_and_adamw(config):
    steps = 300
    model = models.build(config)
    model.init()
    model.step(0, steps)
    for member, mine in enumerate(model.weights()):
        net = reference(config, member, batches_of(model, member, steps))
        for (name, ours), theirs in zip(mine.items(), net.parameters(), strict=True):
            np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=0, atol=1e-10, err_msg=name)
        scores = model.evaluate()[member]
        dataset = data.load(config, config.networks[member].seed)
        for kind, x, y in (("train", dataset.x_train, dataset.y_train), ("test", dataset.x_test, dataset.y_test)):
            with torch.no_grad():
                out = net(torch.from_numpy(x))
            target = torch.nn.functional.one_hot(torch.from_numpy(y), 10).double()
            loss = torch.nn.functional.mse_loss(out, target)
            assert scores[f"{kind}_loss"] == pytest.approx(loss.item(), rel=1e-8)
            hits = (out.argmax(1).numpy() == y).mean()
            assert scores[f"{kind}_accuracy"] == pytest.approx(hits, abs=1e-12)


@pytest.mark.parametrize(
    "config",
    [
        RunConfig.recipe("paper"),
        RunConfig.recipe("paper", wd=0.01, batch_order="reshuffle"),
        RunConfig.recipe("paper").ensemble([0, 1], [0.0, 0.01]),
    ],
    ids=["paper", "decay, reshuffled", "four members"],
)
def test_paper_recipe_equals_autograd_and_adamw(config, mnist_root):
    steps = 60
    model = models.build(config)
    model.init()
    model.step(0, steps)
    for member, mine in enumerate(model.weights()):
        net = reference(config, member, batches_of(model, member, steps))
        for (name, ours), theirs in zip(mine.items(), net.parameters(), strict=True):
            np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=0, atol=1e-10, err_msg=name)


def test_plain_module_computes_the_same_function():
    config = express(batch_size=40)
    model = models.build(config)
    model.init()
    model.step(0, 20)
    module = models.as_module(config, model.weights()[0])
    assert [name for name, _ in module.named_children()] == ["fc1", "relu1", "fc2", "relu2", "fc3"]
    dataset = data.load(config, 0)
    with torch.no_grad():
        hits = (module(torch.from_numpy(dataset.x_test)).argmax(1).numpy() == dataset.y_test).mean()
    assert hits == pytest.approx(model.evaluate()[0]["test_accuracy"])


def test_making_a_module_leaves_the_random_state_alone():
    config = express()
    model = models.build(config)
    model.init()
    before = torch.random.get_rng_state()
    models.as_module(config, model.weights()[0])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("order", ["fixed", "reshuffle"])
def test_chunks_of_steps_do_not_matter(order):
    config = express(batch_size=20, batch_order=order)
    one, many = models.build(config), models.build(config)
    for model in (one, many):
        model.init()
    one.step(0, 60)
    for start in range(0, 60, 7):
        many.step(start, min(7, 60 - start))
    assert torch.equal(one.state_dict()["parameters"], many.state_dict()["parameters"])


def test_fixed_batches_repeat_and_reshuffled_ones_do_not():
    for order, repeats in (("fixed", True), ("reshuffle", False)):
        model = models.build(express(batch_size=40, batch_order=order))
        epochs = [np.concatenate(batches_of(model, 0, 12)[4 * e : 4 * e + 4]) for e in range(3)]
        for epoch in epochs:
            assert sorted(epoch) == list(range(160)), "an epoch is the whole training set, once"
        assert np.array_equal(epochs[0], epochs[1]) == repeats


def test_gradient_is_exact_where_a_batch_uses_few_pixels():
    """Columns that the batch before reached and this one does not must get a zero gradient."""
    config = express(batch_size=20, batch_order="reshuffle")
    model = models.build(config)
    model.init()
    model._edges = [*range(0, len(model._columns), 4), len(model._columns)]  # many narrow blocks
    model.step(0, 100)
    wide = models.build(config)
    wide.init()
    wide._edges = [0, len(wide._columns)]
    wide.step(0, 100)
    np.testing.assert_allclose(
        model.weights()[0]["fc1.weight"], wide.weights()[0]["fc1.weight"], rtol=0, atol=1e-12
    )


def test_blocks_cover_every_nonzero_once():
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows, columns = rng.integers(1, 40), int(rng.integers(2, 60))
        rarest = np.sort(rng.integers(-1, columns, rows))[::-1]
        edges = sorted({0, columns, *rng.integers(1, columns, 4).tolist()})
        blocks = _blocks(edges, rarest)
        covered = np.zeros((rows, columns), int)
        for start, end, reach in blocks:
            covered[:reach, start:end] += 1
        assert blocks[0][2] == rows and [b[1] for b in blocks[:-1]] == [b[0] for b in blocks[1:]]
        assert covered.max() == 1
        for row, last in enumerate(rarest):
            assert covered[row, : last + 1].all()


def test_state_of_another_network_is_refused():
    model, other = models.build(express()), models.build(express(width=50))
    model.init()
    other.init()
    with pytest.raises(ValueError, match="parameters must be"):
        model.load_state_dict(other.state_dict(), 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("order", ["fixed", "reshuffle"])
def test_cuda_equals_cpu(order):
    config = express(batch_size=40, batch_order=order).ensemble([0, 1], [0.0, 0.01])
    cpu, cuda = models.build(config), models.build(config, "cuda")
    for model in (cpu, cuda):
        model.init()
        model.step(0, 173)  # whole graphs and single steps
    np.testing.assert_allclose(
        cpu.state_dict()["parameters"], cuda.state_dict()["parameters"], rtol=0, atol=1e-9
    )
