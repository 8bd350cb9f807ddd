"""How much a change of the weights changes what a network says of inputs that are no data at all.

>>> from grokutils.spectra.interventions import inject
>>> net = torch.nn.Sequential(torch.nn.Linear(64, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10))
>>> edit = inject(layer_matrix(net, "0"), "entry", 2, layer="0")
>>> found = js_divergence(net, edit)
>>> 0 < found.value < math.log(2), found.reached, found.error < 0.02 * found.value
(True, True, True)

P3, section 6: J = E_x JS(softmax(z(x) / T), softmax(z_without(x) / T)) in nats, from 0 (the same answers) to ln 2 =
0.693 (certain of different ones), where x is random and z are the outputs with and without the trap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from grokutils.spectra.interventions import Edit, Trap, control, edited, layer_matrix, remove_trap

__all__ = [
    "PROBES", "Divergence", "Probes", "harm_of", "input_of", "jensen_shannon", "js_divergence", "js_divergences",
    "probes_like", "probes_of",
]  # fmt: skip

#: What a probe can be.
PROBES = ("gaussian", "uniform", "shuffled", "tokens")
_FIRST = 1024  # probes of the first round; each further one doubles what there is
_CHUNK = 8192  # probes run through the network at once


@dataclass(frozen=True, eq=False)
class Probes:
    """Random inputs: ``draw(n, rng)`` gives n of them, (n, *shape)."""

    kind: str
    draw: Callable[[int, np.random.Generator], np.ndarray]


def probes_like(inputs, kind: str = "gaussian") -> Probes:
    """Random inputs that resemble training inputs in the least.

    >>> probes_like(np.random.default_rng(1).random((50, 64))).draw(3, np.random.default_rng(0)).shape
    (3, 64)

    Parameters
    ----------
    inputs : (examples, ...) training inputs. Or the shape of one input alone: then mean 0 and standard deviation 1.
    kind : ``"gaussian"``: independent, with the mean and the standard deviation of all numbers in `inputs`;
        ``"uniform"``: independent, from their smallest to their largest (0 to 1 for a shape);
        ``"shuffled"``: training inputs, each with its numbers in an order of its own;
        ``"tokens"``: whole numbers from 0 to the largest in `inputs`.

    Raises
    ------
    ValueError : an unknown kind; no example, or none where examples are needed; numbers where tokens are, or the
        other way round.
    """
    if kind not in PROBES:
        raise ValueError(f"probes must be one of {', '.join(PROBES)}; got {kind!r}.")
    if isinstance(inputs, tuple):
        shape, x = inputs, None
        mean, std, low, high = 0.0, 1.0, 0.0, 1.0
    else:
        x = np.asarray(inputs)
        if x.ndim < 2 or not x.size:
            raise ValueError(f"inputs must be (examples, ...) with at least one example; got shape {x.shape}.")
        shape = x.shape[1:]
        if (x.dtype.kind in "iu") != (kind == "tokens"):
            raise ValueError(f"probes {kind!r} do not suit inputs of type {x.dtype}.")
        mean, std, low, high = float(x.mean()), float(x.std()), x.min(), x.max()
    if x is None and kind in ("shuffled", "tokens"):
        raise ValueError(f"probes {kind!r} need training inputs, not a shape alone.")
    draws = {
        "gaussian": lambda n, rng: rng.normal(mean, std, (n, *shape)),
        "uniform": lambda n, rng: rng.uniform(low, high, (n, *shape)),
        "tokens": lambda n, rng: rng.integers(0, high, (n, *shape), endpoint=True),
        "shuffled": lambda n, rng: rng.permuted(
            x[rng.integers(len(x), size=n)].reshape(n, -1), axis=1
        ).reshape(n, *shape),
    }
    return Probes(kind, draws[kind])


def probes_of(model: torch.nn.Module, inputs=None) -> Probes:
    """The random inputs that suit a model: like `inputs`, tokens if they are whole numbers, or of the shape of its
    first linear layer.

    >>> probes_of(torch.nn.Linear(64, 10)).kind, probes_of(None, np.zeros((5, 3), int)).kind
    ('gaussian', 'tokens')

    Raises
    ------
    ValueError : as `probes_like` and `input_of`.
    """
    like = input_of(model) if inputs is None else np.asarray(inputs)
    return probes_like(like, "gaussian" if isinstance(like, tuple) or like.dtype.kind not in "iu" else "tokens")


def input_of(model: torch.nn.Module) -> tuple[int, ...]:
    """Shape of one input of a model that begins with a linear layer.

    >>> input_of(torch.nn.Sequential(torch.nn.Linear(64, 10)))
    (64,)

    Raises
    ------
    ValueError : it begins with another kind of layer, whose input shape the model does not say.
    """
    for part in model.modules():
        if next(part.parameters(recurse=False), None) is None:
            continue
        if isinstance(part, torch.nn.Linear):
            return (part.in_features,)
        break
    raise ValueError("the shape of the model's input is not known: give some inputs, (examples, ...).")


@dataclass(frozen=True)
class Divergence:
    """A mean over random inputs."""

    #: Nats, 0 to ln 2.
    value: float
    #: Its standard error.
    error: float
    #: Inputs it is the mean of.
    probes: int
    #: Whether the error is as small as was asked for; if not, `str` says so.
    reached: bool

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, from the standard error."""
        return max(self.value - 1.96 * self.error, 0.0), min(self.value + 1.96 * self.error, math.log(2))

    def __str__(self) -> str:
        said = f"{self.value:.3g} ± {self.error:.1g} nats over {self.probes:,} probes"
        return said if self.reached else f"{said}; the error asked for was not reached"


def jensen_shannon(a: torch.Tensor, b: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Jensen-Shannon divergence of softmax(a / T) and softmax(b / T) along the last axis, in nats.

    >>> same = torch.tensor([[0.0, 1.0]])
    >>> jensen_shannon(same, same).item(), round(jensen_shannon(same * 1e4, -same * 1e4).item(), 3)
    (0.0, 0.693)
    """
    p, q = (torch.log_softmax(z.double() / temperature, dim=-1) for z in (a, b))
    middle = torch.logaddexp(p, q) - math.log(2)
    # nothing where the two agree: the rounding of the middle would be left, and equal answers are to give 0
    differ = p != q
    of_p, of_q = (torch.where(differ & (x.exp() > 0), x.exp() * (x - middle), 0.0).sum(dim=-1) for x in (p, q))
    return ((of_p + of_q) / 2).clamp(0.0, math.log(2))


def js_divergence(
    model: torch.nn.Module,
    trap: Trap | Edit | tuple[str, int],
    probes: str | Probes = "gaussian",
    temperature: float = 1.0,
    *,
    inputs=None,
    error: float = 0.02,
    most: int = 2**17,
    seed: int = 0,
) -> Divergence:
    """How far the answers with and without a trap are apart, over random inputs.

    >>> net = torch.nn.Sequential(torch.nn.Linear(64, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10))
    >>> with torch.no_grad(): net[0].weight[3, 5] = 9.0
    >>> str(js_divergence(net, ("0", 0), most=100))                                    # doctest: +ELLIPSIS
    '... nats over 100 probes...'

    Parameters
    ----------
    model : gives outputs (n, classes) for inputs (n, ...); it is not changed, and runs in evaluation mode
    trap : a `Trap` of `grokutils.spectra.interventions.traps_in`, or the name of a layer and the number of a trap in its first
        shuffle: it is taken out with matched noise in its place (`grokutils.spectra.interventions.remove_trap`). Or any `Edit`,
        or a list of them for one change of several layers.
    probes : a kind of `probes_like`, or `Probes` of one's own
    temperature : what outputs are divided by before the softmax
    inputs : training inputs (examples, ...), whose mean and standard deviation the probes take; without them the shape
        is that of the model's first linear layer
    error : the standard error to be reached, as a share of the value
    most : probes at most; with fewer than this there are 1,024 and then twice as many until the error is reached
    seed : of the probes and of the matched noise

    Returns
    -------
    `Divergence`. The error is that of the mean over probes, for one draw of the matched noise.

    Raises
    ------
    ValueError : a layer without traps; a trap out of range; a model that cannot run on these inputs or gives no finite
        outputs; a number of probes under 1; a temperature or error that is not positive.
    """
    return js_divergences(model, [trap], probes, temperature, inputs=inputs, error=error, most=most, seed=seed)[0]


def js_divergences(
    model: torch.nn.Module,
    traps: Sequence,
    probes: str | Probes = "gaussian",
    temperature: float = 1.0,
    *,
    inputs=None,
    error: float = 0.02,
    most: int = 2**17,
    seed: int = 0,
) -> list[Divergence]:
    """`js_divergence` of each of several traps, on the same inputs; the numbers are those of one call for each.

    >>> net = torch.nn.Sequential(torch.nn.Linear(64, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10))
    >>> with torch.no_grad(): net[0].weight[3, 5] = 9.0
    >>> found = js_divergences(net, [("0", 0)], most=100)
    >>> found == [js_divergence(net, ("0", 0), most=100)]
    True
    """
    if isinstance(most, bool) or not isinstance(most, (int, np.integer)) or most < 1:
        raise ValueError(f"most must be a whole number of probes, at least 1; got {most!r}.")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0; got {seed!r}.")
    for name, value in (("temperature", temperature), ("error", error)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number; got {value!r}.")
    source = probes if isinstance(probes, Probes) else probes_like(input_of(model) if inputs is None else inputs, probes)
    without = [edited(model, *_as_edits(model, trap, seed)).eval() for trap in traps]
    model = edited(model).eval()
    rng = np.random.default_rng([seed, 4])
    sums, squares, count = np.zeros(len(traps)), np.zeros(len(traps)), 0
    found: list[Divergence | None] = [None] * len(traps)
    while count < most and None in found:
        new = min(max(count, _FIRST), most - count)
        for start in range(0, new, _CHUNK):
            x = source.draw(min(_CHUNK, new - start), rng)
            z = _outputs(model, x)
            for i in (i for i, known in enumerate(found) if known is None):
                values = jensen_shannon(z, _outputs(without[i], x), temperature)
                sums[i] += float(values.sum())
                squares[i] += float(values.square().sum())
        count += new
        for i in (i for i, known in enumerate(found) if known is None):
            one = _mean(sums[i], squares[i], count, error)
            found[i] = one if one.reached or count >= most else None
    return found


def harm_of(model: torch.nn.Module, layer: str, *, inputs=None, seed: int = 0, most: int = 2**15) -> dict:
    """The test of one layer's largest trap against a random direction of the same norm: `grokutils.util.columns.HARM`.

    >>> net = torch.nn.Sequential(torch.nn.Linear(64, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10))
    >>> harm_of(net, "0")["harm_reason"]
    '0 has no trap in shuffle 0, so none can be taken out.'

    Nothing is put in the trap's place: matched noise would leave a trap that is the mean of all weights where it is.
    The trap is harmful if the 95 % interval of its divergence lies above that of the random direction's.
    A layer that cannot be tested says why, and raises nothing.
    """
    unknown = dict(js=math.nan, js_error=math.nan, js_control=math.nan, js_control_error=math.nan, harmful=None)
    try:
        edit = remove_trap(layer_matrix(model, layer), 0, replace="nothing", layer=layer, seed=seed)
        probes = probes_of(model, inputs)
        own, other = js_divergences(model, [edit, control(edit, seed=seed)], probes, most=most, seed=seed)
    except (ValueError, TypeError) as why:
        return unknown | {"harm_reason": str(why)}
    return {
        "js": own.value, "js_error": own.error, "js_control": other.value, "js_control_error": other.error,
        "harmful": own.interval[0] > other.interval[1], "harm_reason": "",
    }  # fmt: skip


def _mean(total: float, squares: float, n: int, error: float) -> Divergence:
    value = float(total / n)
    spread = math.sqrt(max(squares / n - value**2, 0.0) / (n - 1)) if n > 1 else math.inf
    return Divergence(value, spread, n, spread <= error * value)


def _as_edits(model: torch.nn.Module, trap, seed: int) -> list[Edit]:
    if isinstance(trap, Edit):
        return [trap]
    if isinstance(trap, Trap):
        return [remove_trap(trap.matrix, trap, seed=seed)]
    if isinstance(trap, list) and trap and all(isinstance(one, Edit) for one in trap):
        return trap
    try:
        layer, number = trap
    except (TypeError, ValueError):
        raise ValueError(f"trap must be a Trap, an Edit or (layer, number); got {trap!r}.") from None
    return [remove_trap(layer_matrix(model, layer), number, layer=layer, seed=seed)]


def _outputs(model: torch.nn.Module, x: np.ndarray) -> torch.Tensor:
    parameter = next(model.parameters())
    probes = torch.from_numpy(x).to(parameter.device)
    if probes.is_floating_point():
        probes = probes.to(parameter.dtype)
    try:
        with torch.no_grad():
            z = model(probes)
    except Exception as error:  # whatever a model's own code raises
        why = " ".join(str(error).split())
        raise ValueError(f"the model cannot run on random inputs of shape {x.shape[1:]}: {why}") from error
    if not isinstance(z, torch.Tensor) or z.ndim != 2 or len(z) != len(x):
        raise ValueError("the model must give one row of outputs for each input.")
    if not torch.isfinite(z).all():
        raise ValueError("the model's outputs are not finite on random inputs.")
    return z
