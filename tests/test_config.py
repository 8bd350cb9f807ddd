"""Every hyperparameter is checked, the recipes are what they say, and names tell runs apart."""

import dataclasses
import hashlib
import itertools
import json
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from grokutils import ConfigError, RunConfig, load_record
from grokutils.experiment.config import MAX_STEPS, RECIPES, Member
from grokutils.util import paths

FIELDS = {f.name: f for f in dataclasses.fields(RunConfig)}
INTEGERS = [n for n, f in FIELDS.items() if type(f.default) is int]
FLOATS = [n for n, f in FIELDS.items() if type(f.default) is float]
CHOICES = [n for n, f in FIELDS.items() if f.metadata.get("choices")]


def refusal(**values) -> str:
    """The message with which a configuration is refused, checked to be one sentence."""
    with pytest.raises(ConfigError) as caught:
        RunConfig.recipe("paper").replace(**values)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message and len(message) < 250, message
    return message


def test_every_field_is_of_a_kind_tested_here():
    assert set(INTEGERS + FLOATS + CHOICES) | {"members", "intervention", "own"} == set(FIELDS)
    assert INTEGERS and FLOATS and CHOICES


# -- the recipes ------------------------------------------------------------------------------------------


def test_the_paper_recipe_is_table_3():
    """Table 3 of arXiv 2506.04434; the order of the batches is that of the authors' published notebook."""
    assert {name: value for name, value, _ in RunConfig.recipe("paper").describe()} == {
        "recipe_name": "paper",
        "dataset": "mnist",
        "per_class": 100,  # 1,000 images
        "random_labels": 0.0,
        "model": "mlp",
        "depth": 3,  # 784-200-200-10
        "width": 200,
        "init_scale": 8.0,
        "learning_rate": 5e-4,
        "weight_decay": 0.0,
        "optimizer": "adamw",
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "batch_size": 200,
        "batch_order": "fixed",
        "steps": 10_000_000,
        "dtype": "float64",
        "seed": 0,
        "members": None,
    }
    assert RunConfig() == RunConfig.recipe("paper")


def test_the_modular_recipe_is_the_published_notebook():
    """The network and p of P2's appendix H; the rest as in Omnigrok's notebook after Nanda et al. (2023)."""
    assert {name: value for name, value, _ in RunConfig.recipe("modular").describe()} == {
        "recipe_name": "modular",
        "dataset": "modular-addition",
        "p": 113,
        "fraction": 0.3,
        "random_labels": 0.0,
        "model": "transformer",
        "d_model": 128,
        "n_heads": 4,
        "d_mlp": 512,
        "init_scale": 1.0,
        "learning_rate": 1e-3,
        "weight_decay": 1.0,
        "optimizer": "adamw",
        "beta1": 0.9,
        "beta2": 0.98,
        "eps": 1e-8,
        "batch_size": 0,
        "batch_order": "fixed",
        "steps": 100_000,
        "dtype": "float32",
        "loss_dtype": "float64",
        "seed": 0,
        "members": None,
    }
    assert RunConfig.recipe("modular").train_size == 3831


def test_the_express_recipe_is_the_paper_scaled_down():
    paper, express = RunConfig.recipe("paper").to_dict(), RunConfig.recipe("express").to_dict()
    assert {name: value for name, value in express.items() if value != paper[name]} == {
        "recipe_name": "express",
        "dataset": "digits",
        "per_class": 16,
        "width": 100,
        "learning_rate": 1e-2,
        "batch_size": 0,
        "steps": 250_000,
        "dtype": "float32",
    }
    assert RunConfig.recipe("express").batch == RunConfig.recipe("express").train_size == 160  # full batch
    assert RunConfig.recipe() == RunConfig.recipe("express")


def test_short_names_and_none():
    short = RunConfig.recipe("express", wd=0.01, lr=0.1, steps=None, width=None)
    assert short == RunConfig.recipe("express", weight_decay=0.01, learning_rate=0.1)


@pytest.mark.parametrize("name", ["nonsense", "Paper", "", None, 5, ["paper"], float("nan")])
def test_a_recipe_that_is_not_there(name):
    with pytest.raises(ConfigError, match=r"^recipe must be one of 'express', 'paper', 'modular'; got .+\.$"):
        RunConfig.recipe(name)


# -- values taken -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "steps", [100_000, 1e5, "1e5", "100000", " 1e5 ", np.int64(100_000), np.float32(1e5), Fraction(100_000)]
)
def test_whole_numbers_in_all_forms(steps):
    found = RunConfig(steps=steps).steps
    assert found == 100_000 and type(found) is int


@pytest.mark.parametrize("decay", [0.5, "0.5", "5e-1", np.float32(0.5), Fraction(1, 2)])
def test_numbers_in_all_forms(decay):
    found = RunConfig(weight_decay=decay).weight_decay
    assert found == 0.5 and type(found) is float
    assert type(RunConfig(weight_decay=0).weight_decay) is float


def test_the_bounds_themselves_are_allowed():
    allowed = dict(
        steps=(1, MAX_STEPS),
        seed=(0, 2**32 - 1),
        depth=(2, 8),
        width=(1, 8192),
        weight_decay=(0, 10),
        random_labels=(0, 1),
        learning_rate=(1e-300, 10),
        init_scale=(1e-300, 1000),
        beta1=(0, 0.999999),
        beta2=(0, 0.99999999),
        eps=(1e-300, 1),
        batch_size=(0, 1000),
    )
    for name, values in allowed.items():
        for value in values:
            assert getattr(RunConfig(**{name: value}), name) == value
    assert RunConfig(per_class=850, batch_size=500).train_size == 8500
    assert RunConfig(dataset="digits", per_class=150, batch_size=1500).train_size == 1500
    assert RunConfig(per_class=1, batch_size=10).train_size == 10


# -- values refused ---------------------------------------------------------------------------------------

NOT_NUMBERS = [
    None,
    True,
    np.True_,
    "",
    "many",
    "1e5 steps",
    b"5",
    [5],
    (5,),
    {},
    np.array([5]),
    5j,
    Decimal("NaN"),
    object,
]
NOT_WHOLE = [0.5, "2.5", 1e-9, Fraction(7, 2), float("nan"), float("inf"), "nan", "inf", "-inf", "1e400"]


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=repr)
@pytest.mark.parametrize("name", INTEGERS + FLOATS)
def test_what_is_no_number_is_refused(name, value):
    kind = "whole number" if name in INTEGERS else "number"
    message = refusal(**{name: value})
    assert message.startswith(f"{name} must be a {kind} ") and message.endswith(f"; got {value!r}."), message


@pytest.mark.parametrize("value", NOT_WHOLE, ids=repr)
@pytest.mark.parametrize("name", INTEGERS)
def test_what_is_not_whole_is_refused(name, value):
    message = refusal(**{name: value})
    assert message.startswith(f"{name} must be a whole number of at least "), message
    assert message.endswith(f"; got {value!r}."), message


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), "nan", "inf", "-1e-9", -1, -1e-300, 1e300]
)
@pytest.mark.parametrize("name", FLOATS)
def test_what_is_out_of_bounds_is_refused(name, value):
    message = refusal(**{name: value})
    assert f"{name} must be a number" in message and message.endswith(f"; got {value!r}."), message


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(weight_decay=-0.1), "weight_decay must be a number of at least 0 and at most 10; got -0.1."),
        (dict(weight_decay=10.1), "weight_decay must be a number of at least 0 and at most 10; got 10.1."),
        (dict(learning_rate=0), "learning_rate must be a number greater than 0 and at most 10; got 0."),
        (dict(init_scale=0.0), "init_scale must be a number greater than 0 and at most 1,000; got 0.0."),
        (dict(eps="0"), "eps must be a number greater than 0 and at most 1; got '0'."),
        (dict(beta1=1), "beta1 must be a number of at least 0 and at most 0.999999; got 1."),
        (dict(beta2=1.0), "beta2 must be a number of at least 0 and at most 0.99999999; got 1.0."),
        (dict(random_labels=1.01), "random_labels must be a number of at least 0 and at most 1; got 1.01."),
        (dict(steps=0), "steps must be a whole number of at least 1 and at most 16,777,216; got 0."),
        (
            dict(steps=1e9),
            "steps must be a whole number of at least 1 and at most 16,777,216; got 1000000000.0.",
        ),
        (dict(steps=2.5), "steps must be a whole number of at least 1 and at most 16,777,216; got 2.5."),
        (dict(seed=-1), "seed must be a whole number of at least 0 and at most 4,294,967,295; got -1."),
        (
            dict(seed=2**32),
            "seed must be a whole number of at least 0 and at most 4,294,967,295; got 4294967296.",
        ),
        (dict(depth=1), "depth must be a whole number of at least 2 and at most 8; got 1."),
        (dict(width=0), "width must be a whole number of at least 1 and at most 8,192; got 0."),
        (dict(batch_size=-1), "batch_size must be a whole number of at least 0; got -1."),
        (dict(batch_size=300), "batch_size must divide the training set of 1000 images; got 300."),
        (dict(batch_size=2000), "batch_size must divide the training set of 1000 images; got 2000."),
        (dict(per_class=30), "batch_size must divide the training set of 300 images; got 200."),
        (dict(per_class=0), "per_class must be a whole number of at least 1; got 0."),
        (dict(per_class=851), "per_class must be between 1 and 850 for mnist; got 851."),
        (dict(dataset="digits", per_class=151), "per_class must be between 1 and 150 for digits; got 151."),
        (dict(dataset="cifar"), "dataset must be one of 'mnist', 'digits', 'modular-addition', 'fashion-mnist', 'breast-cancer'; got 'cifar'."),
        (dict(dtype="float16"), "dtype must be one of 'float64', 'float32'; got 'float16'."),
        (dict(batch_order="random"), "batch_order must be one of 'fixed', 'reshuffle'; got 'random'."),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, dict) else None,
)
def test_messages_name_the_value_and_what_is_allowed(values, message):
    assert refusal(**values) == message


@pytest.mark.parametrize(
    "value", ["nonsense", "", None, 5, True, float("nan"), ["mnist"], np.array(["mnist"]), b"mlp"], ids=repr
)
@pytest.mark.parametrize("name", CHOICES)
def test_what_is_no_choice_is_refused(name, value):
    message = refusal(**{name: value})
    assert message.startswith(f"{name} must be one of '") and message.endswith(f"; got {value!r}.")


@pytest.mark.parametrize("name", INTEGERS + FLOATS)
@pytest.mark.parametrize(
    "value", [10**400, -(10**400), 10**5000, "9" * 5000, np.zeros((500, 500))], ids=range(5)
)
def test_huge_values_do_not_fill_the_message(name, value):
    assert refusal(**{name: value}).startswith(f"{name} must ")


@pytest.mark.parametrize(
    "members",
    [5, "01", "ab", ["01"], [b"01"], [5], [None], [(1,)], [(1, 2, 3)], [{"seed": 1}], [{}], True],
    ids=repr,
)
def test_members_that_are_no_pairs_are_refused(members):
    assert refusal(members=members) == f"members must be (seed, weight_decay) pairs; got {members!r}."


@pytest.mark.parametrize(
    "members, said",
    [
        ([], "members must name at least one"),
        ([(0, 0), (1, 0), (0, 0.0)], "a (seed, weight_decay) pair is there twice"),
        ([(0, -1)], "weight_decay must be a number of at least 0 and at most 10; got -1."),
        ([(0.5, 0)], "seed must be a whole number of at least 0"),
        ([Member(-1, 0)], "seed must be a whole number of at least 0"),
        ([(True, 0)], "got True."),
    ],
)
def test_members_are_checked(members, said):
    assert said in refusal(members=members)


@pytest.mark.parametrize("values", [5, "12", b"12", None])
def test_an_ensemble_needs_several_seeds(values):
    config = RunConfig.recipe("express")
    with pytest.raises(ConfigError, match=r"^seeds must be several numbers, such as \(0, 1\); got .+\.$"):
        config.ensemble(values)
    if values is not None:
        with pytest.raises(ConfigError, match=r"^weight_decays must be several numbers"):
            config.ensemble([0], values)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RunConfig.recipe("paper", stepz=5),
        lambda: RunConfig.recipe("paper").replace(stepz=5),
        lambda: RunConfig.from_dict({"stepz": 5}),
    ],
)
def test_unknown_hyperparameters_are_refused(make):
    with pytest.raises(
        ConfigError, match=r"^there is no hyperparameter 'stepz'; there are recipe_name, dataset, "
    ):
        make()


@pytest.mark.parametrize("values", [5, None, ["steps"], "steps"])
def test_a_configuration_is_a_mapping(values):
    with pytest.raises(ConfigError, match="a configuration must map names to values"):
        RunConfig.from_dict(values)


def test_a_configuration_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().steps = 5


# -- properties -------------------------------------------------------------------------------------------


def floats(low, high, **options):
    return st.floats(low, high, **options).map(lambda x: x + 0.0)


seeds = st.integers(0, 2**32 - 1)
decays = floats(0, 10)


@st.composite
def configs(draw) -> RunConfig:
    recipe = draw(st.sampled_from(["express", "paper"]))
    dataset = draw(st.sampled_from(["mnist", "digits"]))
    per_class = draw(st.integers(1, 150))
    divisors = [n for n in range(1, 10 * per_class + 1) if 10 * per_class % n == 0]
    values = dict(
        random_labels=floats(0, 1),
        depth=st.integers(2, 8),
        width=st.integers(1, 8192),
        init_scale=floats(0, 1000, exclude_min=True),
        learning_rate=floats(0, 10, exclude_min=True),
        weight_decay=decays,
        beta1=floats(0, 0.999999),
        beta2=floats(0, 0.99999999),
        eps=floats(0, 1, exclude_min=True),
        optimizer=st.sampled_from(["adamw", "amsgrad", "sgd"]),
        intervention=st.sampled_from(["", "clip(k=4)"]),
        batch_order=st.sampled_from(["fixed", "reshuffle"]),
        steps=st.integers(1, MAX_STEPS),
        dtype=st.sampled_from(["float64", "float32"]),
        seed=seeds,
        members=st.none()
        | st.lists(st.builds(Member, seeds, decays), min_size=1, max_size=4, unique=True).map(tuple),
    )
    chosen = draw(st.fixed_dictionaries({}, optional=values))
    if draw(st.booleans()):
        chosen |= dict(dataset=dataset, per_class=per_class, batch_size=draw(st.sampled_from([0, *divisors])))
    return RunConfig.recipe(recipe, **chosen)


@given(configs())
def test_a_configuration_survives_json(config):
    again = RunConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and hash(again) == hash(config)
    assert again.name == config.name and again.identity == config.identity
    aside = {"own", "loss", "loss_dtype", "p", "fraction", "d_model", "n_heads", "d_mlp"}  # of others, or nothing to say
    aside |= set() if config.intervention else {"intervention"}
    assert [name for name, _, _ in config.describe()] == [name for name in FIELDS if name not in aside]


@pytest.mark.parametrize("value", [None, 5, True, b"clip", ["clip"]], ids=repr)
def test_an_intervention_is_text(value):
    assert refusal(intervention=value) == f"intervention must be text; got {value!r}."


@given(configs(), st.integers(1, MAX_STEPS))
def test_identity_and_name_do_not_depend_on_steps(config, steps):
    other = config.replace(steps=steps)
    assert other.identity == config.identity and other.name == config.name


@given(configs())
def test_a_name_is_a_folder_everywhere(config):
    assert set(config.name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.+-_=")
    assert 0 < len(config.name) <= 200 and config.name[0].isalpha() and config.name[-1] != "."


@given(configs(), configs())
def test_different_runs_have_different_names_and_identities(a, b):
    if a.name == b.name:
        assert a.identity == b.identity
    determines = [{k: v for k, v in c.to_dict().items() if k not in ("steps", "recipe_name")} for c in (a, b)]
    for values, whole in zip(determines, (a, b), strict=True):
        values["batch_size"] = whole.batch
        if values["members"] is not None:
            del values["seed"], values["weight_decay"]
    assert (a.identity == b.identity) == (determines[0] == determines[1])


@given(configs(), st.sampled_from(FLOATS), st.booleans())
@example(RunConfig(), "weight_decay", True)
def test_the_nearest_other_value_is_another_run(config, name, up):
    value = getattr(config, name)
    other = float(np.nextafter(value, np.inf if up else -np.inf))
    try:
        changed = config.replace(**{name: other})
    except ConfigError:
        assume(False)
    alike = name == "weight_decay" and config.members is not None
    assert (changed.identity == config.identity) == alike
    assert (changed.name == config.name) == alike


@given(st.sampled_from(sorted(RECIPES)), st.sampled_from(FLOATS))
def test_equal_values_are_one_run(recipe, name):
    config = RunConfig.recipe(recipe)
    for zero in (0, 0.0, -0.0, "0", "-0"):
        try:
            found = config.replace(**{name: zero})
        except ConfigError:
            continue
        reference = config.replace(**{name: 0.0})
        assert found == reference and found.identity == reference.identity and found.name == reference.name


@given(configs(), st.sampled_from(sorted(FIELDS)), st.sampled_from([-1, 0.5, "nonsense", float("nan")]))
def test_replace_keeps_the_checks(config, name, value):
    try:
        changed = config.replace(**{name: value})
    except ConfigError as error:
        assert str(error).endswith(f"got {value!r}.")
    else:
        assert getattr(changed, name) == value
        assert RunConfig.from_dict(changed.to_dict()) == changed


@given(
    st.lists(seeds, min_size=1, max_size=4, unique=True),
    st.lists(decays, min_size=1, max_size=3, unique=True),
)
def test_an_ensemble_has_every_pair_once(many_seeds, many_decays):
    config = RunConfig.recipe("express").ensemble(iter(many_seeds), iter(many_decays))
    pairs = [(m.seed, m.weight_decay) for m in config.networks]
    assert sorted(pairs) == sorted(itertools.product(many_seeds, many_decays))
    assert len(pairs) == len(many_seeds) * len(many_decays)
    assert config.name.startswith(f"express-{len(pairs)}members-")


def test_the_whole_set_is_one_run_however_it_is_said():
    config = RunConfig.recipe("express")
    assert config.batch_size == 0 and config.batch == config.train_size
    assert config.replace(batch_size=config.train_size).identity == config.identity
    assert config.replace(per_class=7).batch == 70
    assert config.replace(batch_size=20).batch == 20


def test_identities_stay_what_they_are():
    """Records carry them: were one to change, a run could no longer be gone on with."""
    paper = RunConfig.recipe("paper")
    assert paper.identity == "10fc0fa51bf3c3992b5f700d999a4a79af1ff74cfd31d4488138017bfdee88de"
    assert (
        RunConfig.recipe("paper", wd=0.01, seed=1, steps=5).identity
        == "d9945daaf9cf6920834a55d67f12be0261a08b96f6a8ddcaca61a426eafadf8e"
    )
    # what has its default value does not count, so that a hyperparameter of a later version changes nothing
    plain = {"batch_size": 200}
    assert paper.identity == hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def test_names_in_full():
    express = RunConfig.recipe("express")
    assert express.name == "express-wd0-seed0"
    assert RunConfig.recipe("paper", wd=1e-2, seed=7, steps=5).name == "paper-wd0.01-seed7"
    changed = express.replace(learning_rate=1e-5, width=50, batch_order="reshuffle", init_scale=4)
    assert changed.name == "express-wd0-seed0-width=50-init_scale=4-learning_rate=1e-05-batch_order=reshuffle"


def test_a_member_does_not_share_the_single_runs_seed_and_decay():
    a = RunConfig.recipe("express", seed=5, wd=0.5).ensemble([0, 1], [0.0])
    b = RunConfig.recipe("express", seed=6, wd=0.1).ensemble([0, 1], [0.0])
    assert a.identity == b.identity and a.name == b.name
    assert a.identity != RunConfig.recipe("express").ensemble([1, 0], [0.0]).identity


@pytest.mark.parametrize("folder", [file.parent for file in sorted(paths.results_dir().glob("**/config.json"))], ids=str)
def test_every_record_in_results_is_still_the_run_it_was(folder):
    """A new hyperparameter must not change the identity of what was trained before there was one."""
    record = load_record(folder)
    assert record.config.identity == record.provenance["identity"]
