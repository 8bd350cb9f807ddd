"""A one-layer transformer that adds modulo p, with cross-entropy, gradients by hand.

The input is [x, y, =], the answer x + y mod p is read at the last position, and there is no LayerNorm. The
last token is always "=", which saves most of the arithmetic and changes nothing else:

* Only the last position needs a query, a feed-forward layer and logits, and its query is the same for
  every pair.
* Scores and values depend on one token and its place, so they are computed once for each of the 2p + 1 distinct
  inputs (p tokens in either place, and "=") and gathered for the pairs.

Small networks spend their time in calls, not in arithmetic. So a step writes to buffers and views made once, and
members follow one another: batched matrix products of these sizes are no faster, and the buffers of one member
stay in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from grokutils.experiment import data
from grokutils.experiment.config import RunConfig
from grokutils.experiment.models.base import ByHand

__all__ = ["ModularTransformer", "Transformer"]

# Pairs evaluated at a time: bounds the memory of the hidden activations.
_EVAL_PAIRS = 4096


class Transformer(ByHand):
    """All members of a run; parameters by the names of `ModularTransformer`.

    >>> model = Transformer(RunConfig.recipe("modular", p=7, fraction=0.5), torch.device("cpu"))
    >>> model.init()
    >>> model.weights()[0]["embed.weight"].shape
    (8, 128)
    """

    def __init__(self, config: RunConfig, device: torch.device):
        super().__init__(config, device)
        c = config
        self._data = [data.load(config, member.seed) for member in config.networks]
        d = c.d_model
        self.shapes = {
            "embed.weight": (c.p + 1, d), "position.weight": (3, d),
            "q_proj.weight": (d, d), "k_proj.weight": (d, d), "v_proj.weight": (d, d),
            "out_proj.weight": (d, d),
            "fc1.weight": (c.d_mlp, d), "fc1.bias": (c.d_mlp,),
            "fc2.weight": (d, c.d_mlp), "fc2.bias": (d,),
            "unembed.weight": (c.p, d),
        }  # fmt: skip
        self._allocate()
        with torch.device("meta"):
            self._module = ModularTransformer(c.p, d, c.n_heads, c.d_mlp)
        self._sets = [
            {
                name: (torch.from_numpy(x).to(device), torch.from_numpy(y).to(device))
                for name, x, y in (("train", d.x_train, d.y_train), ("test", d.x_test, d.y_test))
            }
            for d in self._data
        ]
        self._steps = [
            _Step(config, self.member_view(self.params, i), self.member_view(self.grads, i), *sets["train"])
            for i, sets in enumerate(self._sets)
        ]

    def init(self) -> None:
        """Normal entries with standard deviation 1/sqrt(d_model), biases zero, times `init_scale`; drawn in
        float64 in the order of the parameters' names above."""
        std = self.config.init_scale / math.sqrt(self.config.d_model)
        for member, network in enumerate(self.config.networks):
            generator = torch.Generator().manual_seed(network.seed)
            for name, view in self.member_view(self.params, member).items():
                if name.endswith(".bias"):
                    view.zero_()
                else:
                    view.copy_(torch.randn(view.shape, generator=generator, dtype=torch.float64) * std)

    def weights(self) -> list[dict[str, np.ndarray]]:
        return [
            {name: view.cpu().numpy().copy() for name, view in self.member_view(self.params, member).items()}
            for member in range(self.members)
        ]

    @staticmethod
    def as_module(config: RunConfig, weights: Mapping[str, np.ndarray]) -> ModularTransformer:
        state = {name: torch.from_numpy(np.array(w)) for name, w in weights.items()}
        with torch.random.fork_rng(devices=[]):  # leave the caller's random state alone
            module = ModularTransformer(config.p, config.d_model, config.n_heads, config.d_mlp)
        module = module.to(state["embed.weight"].dtype)
        module.load_state_dict(state)
        return module

    def data_summary(self) -> list[dict[str, Any]]:
        return [{"source": d.source, "sha256": d.sha256} for d in self._data]

    # -- the step --------------------------------------------------------------------------------------------

    def batch(self, number: int) -> None:
        """None: every step takes the whole training set."""

    def gathered(self, indices: torch.Tensor | None) -> None:
        """None: every step takes the whole training set."""

    def gradients(self, batch: None) -> None:
        """Gradient of the mean cross-entropy over all pairs (`torch.nn.CrossEntropyLoss` of the logits in
        `loss_dtype`)."""
        for step in self._steps:
            step.gradients()

    # -- evaluation ------------------------------------------------------------------------------------------

    def evaluate(self) -> list[dict[str, float]]:
        """Accuracy, loss and margins of each member on either set. A pair's margin is its right logit less the
        largest other: negative where the answer is wrong. All in float64, whatever `loss_dtype` is."""
        return [
            {f"{name}_{key}": value for name, pairs in sets.items() for key, value in self._scores(i, *pairs).items()}
            for i, sets in enumerate(self._sets)
        ]

    def _scores(self, member: int, tokens: torch.Tensor, answers: torch.Tensor) -> dict[str, float]:
        params = self.member_view(self.params, member)
        with torch.no_grad():
            logits = torch.cat(
                [
                    torch.func.functional_call(self._module, params, (part,)).double()
                    for part in tokens.split(_EVAL_PAIRS)
                ]
            )
        margins = _margins(logits, answers)
        return {
            "accuracy": (logits.argmax(-1) == answers).double().mean().item(),
            "loss": torch.nn.functional.cross_entropy(logits, answers).item(),
            "margin_min": margins.min().item(),
            "margin_median": margins.median().item(),
        }


def _margins(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """The right logit less the largest other, (pairs,)."""
    places = answers.unsqueeze(-1)
    return (logits.gather(-1, places) - logits.scatter(-1, places, -math.inf).amax(-1, keepdim=True)).squeeze(-1)


class _Step:
    """The gradient of one member, in buffers and views made once.

    Sizes: n pairs, H heads of k, d = H k. A table has a row for each of the 2p + 1 distinct inputs: tokens in the
    first place, tokens in the second, "=". Weights are (out, in), as in `torch.nn`.
    """

    def __init__(
        self, config: RunConfig, params: Mapping[str, torch.Tensor], grads: Mapping[str, torch.Tensor],
        tokens: torch.Tensor, answers: torch.Tensor,
    ):  # fmt: skip
        c = config
        p, d, n, H = c.p, c.d_model, len(tokens), c.n_heads
        k = d // H
        self.w = {name.removesuffix(".weight"): t for name, t in params.items()}
        self.g = {name.removesuffix(".weight"): t for name, t in grads.items()}
        dtype, device = self.w["embed"].dtype, tokens.device
        self.n, self.p, self.scale = n, p, k**-0.5

        def new(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        x, y, end = tokens[:, 0], tokens[:, 1] + p, torch.full_like(tokens[:, 0], 2 * p)
        self.rows = torch.cat([x, y, end])  # of the tables, in which the pairs' three inputs lie
        onehot = torch.nn.functional.one_hot
        self.answer = onehot(answers, p).to(getattr(torch, c.loss_dtype))
        # sums over pairs with the same token as matrix products: the same bits every time, on CUDA too
        self.sum_x, self.sum_y = (onehot(tokens[:, i], p).to(dtype).mT for i in (0, 1))

        self.t, self.v, self.s, self.q = new(2 * p + 1, d), new(2 * p + 1, d), new(2 * p + 1, H), new(d)
        self.dt, self.dv, self.ds = new(2 * p + 1, d), new(2 * p + 1, d), new(2 * p + 1, H)
        self.u, self.du, self.dq = new(H, d), new(H, d), new(d)
        self.inputs, self.products, self.dinputs = new(3 * n, d), new(3 * n, d), new(3 * n, H)
        self.scores = new(3 * n, H)
        self.z, self.r, self.h, self.o = new(n, d), new(n, d), new(n, c.d_mlp), new(n, d)
        self.logits, self.error, self.dend = new(n, p), new(n, p), new(d)
        self.dh, self.do, self.dr, self.dz = new(n, c.d_mlp), new(n, d), new(n, d), new(n, d)
        self.by_head = {name: t.view(H, 1, -1) for name, t in dict(q=self.q, u=self.u, du=self.du).items()}
        self.wk, self.gk = self.w["k_proj"].view(H, k, d), self.g["k_proj"].view(H, k, d)

    def gradients(self) -> None:
        """Write the gradient at the current parameters."""
        w, g, p, n = self.w, self.g, self.p, self.n
        H, k = self.wk.shape[:2]

        # -- attention: the tables, then what the pairs take from them
        t, end = self.t, self.t[2 * p]
        torch.add(w["embed"][:p], w["position"][0], out=t[:p])
        torch.add(w["embed"][:p], w["position"][1], out=t[p : 2 * p])
        torch.add(w["embed"][p], w["position"][2], out=end)
        torch.mv(w["q_proj"], end, out=self.q)
        self.q.mul_(self.scale)
        # scores are linear in the input: u holds, for each head, what it is projected on
        torch.bmm(self.by_head["q"], self.wk, out=self.by_head["u"])
        torch.mm(t, self.u.mT, out=self.s)
        torch.mm(t, w["v_proj"].mT, out=self.v)
        torch.index_select(self.s, 0, self.rows, out=self.scores)
        torch.index_select(self.v, 0, self.rows, out=self.inputs)
        a = torch.softmax(self.scores.view(3, n * H), 0)
        a4, v4, products = a.view(3, n, H, 1), self.inputs.view(3, n, H, k), self.products.view(3, n, H, k)
        torch.mul(a4, v4, out=products)
        torch.sum(self.products.view(3, n, -1), 0, out=self.z)

        # -- the rest of the network, at the last position
        z, r, h, o, dh, do, dr = self.z, self.r, self.h, self.o, self.dh, self.do, self.dr
        torch.addmm(end, z, w["out_proj"].mT, out=r)
        torch.addmm(w["fc1.bias"], r, w["fc1"].mT, out=h).relu_()
        torch.addmm(w["fc2.bias"], h, w["fc2"].mT, out=o).add_(r)
        torch.mm(o, w["unembed"].mT, out=self.logits)
        error = torch.softmax(self.logits.to(self.answer.dtype), dim=-1).sub_(self.answer).div_(n)
        self.error.copy_(error)

        # -- backwards
        torch.mm(self.error.mT, o, out=g["unembed"])
        torch.mm(self.error, w["unembed"], out=do)
        torch.mm(do.mT, h, out=g["fc2"])
        torch.sum(do, 0, out=g["fc2.bias"])
        torch.mm(do, w["fc2"], out=dh)
        torch.ops.aten.threshold_backward.grad_input(dh, h, 0, grad_input=dh)  # zero where the ReLU was
        torch.mm(dh.mT, r, out=g["fc1"])
        torch.sum(dh, 0, out=g["fc1.bias"])
        torch.addmm(do, dh, w["fc1"], out=dr)
        torch.mm(dr.mT, z, out=g["out_proj"])
        torch.mm(dr, w["out_proj"], out=self.dz)
        torch.sum(dr, 0, out=self.dend)

        # to the weights of the attention, through its softmax to the scores, and to the values
        dz = self.dz.view(1, n, H, k)
        torch.mul(v4, dz, out=products)
        torch.sum(products, -1, out=self.dinputs.view(3, n, H))
        dscores = torch._softmax_backward_data(self.dinputs.view(3, n * H), a, 0, a.dtype).view(3, n, H)
        torch.mul(a4, dz, out=products)
        for pairs, table in ((self.products.view(3, n, -1), self.dv), (dscores, self.ds)):
            torch.mm(self.sum_x, pairs[0], out=table[:p])
            torch.mm(self.sum_y, pairs[1], out=table[p : 2 * p])
            torch.sum(pairs[2], 0, out=table[2 * p])

        torch.mm(self.dv.mT, t, out=g["v_proj"])
        torch.mm(self.ds.mT, t, out=self.du)
        torch.bmm(self.by_head["q"].mT, self.by_head["du"], out=self.gk)
        torch.bmm(self.wk, self.by_head["du"].mT, out=self.dq.view(H, k, 1))
        self.dq.mul_(self.scale)
        torch.mm(self.dq.unsqueeze(1), end.unsqueeze(0), out=g["q_proj"])

        dt, dend = self.dt, self.dt[2 * p]
        torch.mm(self.dv, w["v_proj"], out=dt).addmm_(self.ds, self.u)
        dend.add_(self.dend).addmv_(w["q_proj"].mT, self.dq)
        torch.add(dt[:p], dt[p : 2 * p], out=g["embed"][:p])
        g["embed"][p].copy_(dend)
        torch.sum(dt[:p], 0, out=g["position"][0])
        torch.sum(dt[p : 2 * p], 0, out=g["position"][1])
        g["position"][2].copy_(dend)


class ModularTransformer(torch.nn.Module):
    """The same network written plainly: tokens (pairs, 3) to logits (pairs, p) at the last position.

    >>> ModularTransformer(7, 16, 4, 32)(torch.tensor([[1, 2, 7]])).shape
    torch.Size([1, 7])
    """

    def __init__(self, p: int, d_model: int, n_heads: int, d_mlp: int):
        super().__init__()
        self.n_heads = n_heads
        self.embed = torch.nn.Embedding(p + 1, d_model)
        self.position = torch.nn.Embedding(3, d_model)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            torch.nn.Linear(d_model, d_model, bias=False) for _ in range(4)
        )
        self.fc1 = torch.nn.Linear(d_model, d_mlp)
        self.relu = torch.nn.ReLU()
        self.fc2 = torch.nn.Linear(d_mlp, d_model)
        self.unembed = torch.nn.Linear(d_model, p, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens) + self.position.weight

        def heads(t: torch.Tensor) -> torch.Tensor:  # (pairs, heads, 3, d_model / heads)
            return t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

        q, k, v = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        z = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out_proj(z.transpose(1, 2).flatten(-2))
        x = x + self.fc2(self.relu(self.fc1(x)))
        return self.unembed(x[:, -1])
