"""The divergence on random inputs: its bounds, its error, its seed; a harmful trap told from a harmless one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from torch.nn.utils import prune

from grokutils import RunConfig, diagnose, train
from grokutils.cli import main
from grokutils.experiment import data
from grokutils.spectra.harm import (
    PROBES,
    Probes,
    harm_of,
    input_of,
    jensen_shannon,
    js_divergence,
    js_divergences,
    probes_like,
    probes_of,
)
from grokutils.spectra.interventions import control, edited, inject, layer_matrix, remove_trap, traps_in
from grokutils.util import columns

DEAD, ALIVE, PIXEL = 7, 8, 36


@pytest.fixture(scope="module")
def digits():
    return data.load(RunConfig.recipe("express"), 0)


@pytest.fixture(scope="module")
def trained(digits) -> nn.Sequential:
    """A network that knows digits, one of whose hidden units nobody listens to."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    x, y = torch.from_numpy(digits.x_train).float(), torch.from_numpy(digits.y_train)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    with torch.no_grad():
        net[2].weight[:, DEAD] = 0
        net[2].weight[:, ALIVE] = torch.linspace(-0.5, 0.5, 10)
    return net


@pytest.fixture(scope="module")
def planted(trained) -> nn.Sequential:
    """The same with one huge weight into that unit, and one into a unit that counts."""
    net = edited(trained)
    with torch.no_grad():
        for unit, size in ((DEAD, 90), (ALIVE, 60)):  # the harmless one is the larger
            net[0].weight[unit, PIXEL] = size * trained[0].weight.std()
    return net


def accuracy(net: nn.Module, digits) -> float:
    with torch.no_grad():
        return float((net(torch.from_numpy(digits.x_test).float()).argmax(1).numpy() == digits.y_test).mean())


# -- synthetic truth ----------------------------------------------------------------------------------------


def test_a_harmful_trap_is_told_from_a_harmless_one(planted, trained, digits):
    traps = {trap.entries[0].row: trap for trap in traps_in(layer_matrix(planted, "0"), "0")}
    assert set(traps) == {DEAD, ALIVE}
    edits = {unit: remove_trap(trap.matrix, trap, replace="nothing") for unit, trap in traps.items()}
    found = {unit: js_divergence(planted, edit, inputs=digits.x_train) for unit, edit in edits.items()}
    assert found[ALIVE].reached and found[ALIVE].interval[0] > found[DEAD].interval[1]
    before = accuracy(planted, digits)
    assert accuracy(edited(planted, edits[ALIVE]), digits) > before + 0.05, "taken out, the harmful one gives back"
    assert abs(accuracy(edited(planted, edits[DEAD]), digits) - before) < 0.02
    assert accuracy(trained, digits) > 0.8
    random = js_divergence(planted, control(edits[ALIVE]), inputs=digits.x_train)
    assert random.interval[1] < found[ALIVE].interval[0], "and it does more than a random direction of its size"


def test_a_weight_on_a_pixel_that_is_never_on_raises_a_false_alarm(trained, digits):
    """Where the data are zero, random inputs are not: a known limit of the test."""
    pixel = int(np.argmin(digits.x_test.max(axis=0)))
    assert digits.x_test[:, pixel].max() == 0
    net = edited(trained)
    with torch.no_grad():
        net[0].weight[ALIVE, pixel] = 60 * trained[0].weight.std()
    assert accuracy(net, digits) == accuracy(trained, digits)
    assert js_divergence(net, ("0", 0), inputs=digits.x_train).value > 0.05


# -- the divergence -----------------------------------------------------------------------------------------

logits = hnp.arrays(np.float64, (5, 4), elements=st.floats(-1e4, 1e4))


@given(logits, logits, st.floats(0.01, 100))
def test_it_is_symmetric_and_lies_between_0_and_ln_2(a, b, temperature):
    a, b = torch.from_numpy(a), torch.from_numpy(b)
    one, other = jensen_shannon(a, b, temperature), jensen_shannon(b, a, temperature)
    assert torch.allclose(one, other, atol=1e-12)
    assert bool(((one >= 0) & (one <= math.log(2))).all())
    assert torch.equal(jensen_shannon(a, a, temperature), torch.zeros(5, dtype=torch.float64))


def test_it_is_the_definition():
    a, b = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    p, q = torch.softmax(a / 2, 1), torch.softmax(b / 2, 1)
    m = (p + q) / 2
    expected = ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)) / 2
    assert torch.allclose(jensen_shannon(a, b, temperature=2.0), expected)
    certain = torch.tensor([[1e30, 0.0]])
    assert jensen_shannon(certain, certain.flip(1)).item() == pytest.approx(math.log(2))


def test_its_error_is_what_it_says(trained):
    edit = inject(layer_matrix(trained, "0"), "entry", 3, layer="0")
    found = [js_divergence(trained, edit, seed=seed) for seed in range(8)]
    assert all(one.reached and one.error <= 0.02 * one.value for one in found)
    off = [abs(a.value - b.value) / math.hypot(a.error, b.error) for a, b in zip(found[:4], found[4:], strict=True)]
    assert max(off) < 4
    assert js_divergence(trained, edit, seed=3) == found[3] != found[4]
    rough = js_divergence(trained, edit, error=0.2)
    assert rough.probes < found[0].probes or rough.probes == 1024


def test_an_error_that_is_not_reached_is_said(trained):
    found = js_divergence(trained, inject(layer_matrix(trained, "0"), "entry", layer="0"), error=1e-6, most=1500)
    assert found.probes == 1500 and not found.reached and "was not reached" in str(found)
    one = js_divergence(trained, inject(layer_matrix(trained, "0"), "entry", layer="0"), most=1)
    assert one.probes == 1 and math.isinf(one.error)


def test_no_change_is_no_divergence(trained):
    found = js_divergence(trained, inject(layer_matrix(trained, "0"), "mean", 0, layer="0"))
    assert (found.value, found.error, found.reached) == (0, 0, True)


@given(st.integers(0, 50))
@settings(max_examples=5)
def test_several_at_once_are_each_by_itself(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
    edits = [inject(layer_matrix(net, "0"), kind, 2, layer="0", seed=seed) for kind in ("entry", "mean", "rank-one")]
    together = js_divergences(net, [*edits, edits[:2]], seed=seed, most=4000)
    assert together == [js_divergence(net, edit, seed=seed, most=4000) for edit in (*edits, edits[:2])]


def test_temperature_flattens(trained):
    edit = inject(layer_matrix(trained, "0"), "entry", 3, layer="0")
    values = [js_divergence(trained, edit, temperature=t).value for t in (1, 10, 100)]
    assert values[0] > values[1] > values[2] > 0


def test_the_model_stays_as_it_is(trained):
    net = nn.Sequential(nn.Linear(64, 100), nn.Dropout(0.9), nn.ReLU(), nn.Linear(100, 10))
    net[1].eval()
    before = [part.training for part in net.modules()]
    a, b = (js_divergence(net, inject(layer_matrix(net, "0"), "mean", 5, layer="0")) for _ in range(2))
    assert a == b, "dropout is off"
    assert [part.training for part in net.modules()] == before


# -- probes -------------------------------------------------------------------------------------------------


def test_probes_resemble_what_they_should(digits):
    rng = np.random.default_rng(0)
    drawn = {kind: probes_like(digits.x_train, kind).draw(2000, rng) for kind in PROBES if kind != "tokens"}
    assert {x.shape for x in drawn.values()} == {(2000, 64)}
    assert drawn["gaussian"].mean() == pytest.approx(digits.x_train.mean(), abs=0.01)
    assert drawn["gaussian"].std() == pytest.approx(digits.x_train.std(), abs=0.01)
    assert drawn["uniform"].min() >= 0 and drawn["uniform"].max() <= 1
    sums = {round(float(s), 4) for s in digits.x_train.sum(axis=1)}
    assert {round(float(s), 4) for s in drawn["shuffled"].sum(axis=1)} <= sums
    tokens = probes_like(np.array([[0, 5, 3]]), "tokens").draw(500, rng)
    assert tokens.dtype.kind == "i" and set(np.unique(tokens)) == set(range(6))
    assert probes_like((3, 8)).draw(4, rng).shape == (4, 3, 8)


def test_a_transformer_is_given_tokens():
    config = RunConfig.recipe("modular", p=7, d_model=16, d_mlp=16, steps=1)
    record = train(config, "small", progress=False)
    inputs = data.load(config, 0).x_train
    assert probes_of(record.model(), inputs).kind == "tokens"
    edit = inject(record.weights()["fc1.weight"], "mean", 5, layer="fc1")
    found = js_divergence(record.model(), edit, "tokens", inputs=inputs, most=2000)
    assert 0 < found.value < math.log(2)


class Broken(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.fc, self.what = nn.Linear(64, 10), what

    def forward(self, x):
        return self.what(self.fc(x))


def fails(z):
    raise KeyError("nothing here")


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda net: js_divergence(net, ("0", 0)), "0 has no trap in shuffle 0, so none can be taken out."),
        (lambda net: js_divergence(net, ("0", 0), most=0), "most must be a whole number of probes, at least 1; got 0."),
        (lambda net: js_divergence(net, ("fc9", 0)), "layer must be one of 0, 2; got 'fc9'."),
        (lambda net: js_divergence(net, 3), "trap must be a Trap, an Edit or (layer, number); got 3."),
        (lambda net: js_divergence(net, ("0", 0), temperature=0), "temperature must be a positive number; got 0."),
        (lambda net: js_divergence(net, ("0", 0), error=-1), "error must be a positive number; got -1."),
        (lambda net: js_divergence(net, ("0", 0), seed=-1), "seed must be a whole number of at least 0; got -1."),
        (lambda net: js_divergence(net, ("0", 0), "x"), "probes must be one of gaussian, uniform, shuffled, tokens; got 'x'."),
        (lambda net: js_divergence(net, ("0", 0), "shuffled"), "probes 'shuffled' need training inputs"),
        (lambda net: js_divergence(net, ("0", 0), "tokens", inputs=np.ones((3, 64))), "do not suit inputs of type float64"),
        (lambda net: probes_like(np.ones(3)), "inputs must be (examples, ...) with at least one example"),
        (lambda net: probes_like(np.ones((0, 3))), "inputs must be (examples, ...) with at least one example"),
        (lambda net: input_of(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(9, 2))), "the shape of the model's input is not known"),
        (lambda net: js_divergence(net, edit_of(net), inputs=np.ones((5, 3))), "cannot run on random inputs of shape (3,)"),
        (lambda net: js_divergence(Broken(fails), edit_of(Broken(fails), "fc")), "cannot run on random inputs of shape (64,): 'nothing here'"),
        (lambda net: js_divergence(Broken(torch.sum), edit_of(Broken(torch.sum), "fc")), "must give one row of outputs for each input"),
        (lambda net: js_divergence(Broken(lambda z: z * math.nan), edit_of(Broken(fails), "fc")), "outputs are not finite"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, said, trained):
    with pytest.raises(ValueError) as caught:
        call(trained)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def edit_of(net, layer="0"):
    return inject(layer_matrix(net, layer), "entry", 2, layer=layer)


def test_a_trap_out_of_range(planted):
    with pytest.raises(ValueError, match="trap must be between 0 and 1 in 0; got 2"):
        js_divergence(planted, ("0", 2))


def test_probes_of_ones_own(trained):
    zeros = Probes("zeros", lambda n, rng: np.zeros((n, 64)))
    assert js_divergence(trained, inject(layer_matrix(trained, "0"), "mean", 2, layer="0"), zeros).value == 0


# -- in the table of diagnose -------------------------------------------------------------------------------

FAST = dict(shuffles=2, ks_draws=0, progress=False)


def test_diagnose_adds_the_test(planted, digits):
    table = diagnose(planted, harmful=True, **FAST)
    assert list(table.columns[-len(columns.HARM) :]) == list(columns.HARM)
    plain = diagnose(planted, **FAST)
    assert list(plain.columns) == [name for name in table.columns if name not in columns.HARM]
    row, other = table.iloc[0], table.iloc[1]
    assert row.harmful in (True, False) and row.js > 0 and row.js_control > 0 and row.harm_reason == ""
    assert other.harmful is None and math.isnan(other.js) and "has no trap" in other.harm_reason
    assert harm_of(planted, "0", seed=0)["js"] == row.js
    with_inputs = diagnose(planted, harmful=True, inputs=digits.x_train, **FAST)
    assert with_inputs.js[0] != row.js


@pytest.mark.parametrize(
    "source, options, said",
    [
        (np.ones((20, 30)), {}, "needs a model that can be run"),
        ({"a": np.ones((20, 30))}, {}, "needs a model that can be run"),
        (nn.Sequential(nn.Conv2d(1, 20, 5)), {}, "the shape of the model's input is not known"),
        (nn.Linear(20, 30), {"seed": np.random.default_rng(0)}, "the seed must be a whole number"),
    ],
)
def test_diagnose_refuses_what_cannot_be_run(source, options, said):
    with pytest.raises(ValueError, match=said):
        diagnose(source, harmful=True, **FAST, **options)


def test_inputs_without_the_test_are_refused(trained):
    with pytest.raises(ValueError, match="inputs are for harmful=True"):
        diagnose(trained, inputs=np.ones((3, 64)), **FAST)


def test_from_a_shell(capsys, tmp_path):
    record = train(RunConfig.recipe("express", steps=30, width=30, init_scale=1), "x", progress=False)
    with pytest.raises(ValueError, match="record.model"):
        diagnose(record, harmful=True)
    assert main(["diagnose", "x", "--harmful", "--shuffles", "1"]) == 0
    said = capsys.readouterr().out
    assert "Largest trap taken out" in said and "fc1: " in said
    for arguments in (["x", "--all-steps"], [str(record.folder / "checkpoints" / "step_00000030.safetensors")]):
        assert main(["diagnose", *arguments, "--harmful"]) != 0
        assert "--harmful" in capsys.readouterr().err


@pytest.mark.parametrize("hooked", [lambda layer: prune.l1_unstructured(layer, "weight", 0.5), nn.utils.parametrizations.weight_norm,
                                    nn.utils.weight_norm, nn.utils.spectral_norm])  # fmt: skip
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_layer_whose_weights_are_computed_says_why_it_is_not_tested(hooked):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    hooked(net[0])
    net(torch.zeros(1, 64))
    raw = max(net[0].parameters(), key=torch.numel)
    with torch.no_grad():
        raw[3, 5], net[2].weight[2, 7] = 20.0, 20.0
    found = diagnose(net, harmful=True, **FAST)
    assert found.layer.tolist() == ["0", "2"]
    assert "computed from others" in found.harm_reason[0] or "no trap" in found.harm_reason[0]
    assert found.harm_reason[1] == "" and found.harmful.notna()[1]
