"""A one-layer transformer that adds modulo p, with cross-entropy in float64, gradients by hand.

The input is [x, y, =], the answer x + y mod p is read at the last position, and there is no LayerNorm. The
last token is always "=", which saves most of the arithmetic and changes nothing else:

* Only the last position needs a query, a feed-forward layer and logits, and its query is the same for
  every pair.
* Scores and values depend on one token and its place, so they are computed once for each of the p tokens
  in either place, and gathered for the pairs.
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
    """All members side by side; parameters by the names of `ModularTransformer`.

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
        # every view with its member axis, also for one member
        lead = (lambda t: t.unsqueeze(0)) if self.members == 1 else (lambda t: t)
        self._w = {name.removesuffix(".weight"): lead(t) for name, t in self.params.items()}
        self._g = {name.removesuffix(".weight"): lead(t) for name, t in self.grads.items()}
        self._train = self._pairs([x.x_train for x in self._data], [x.y_train for x in self._data])
        self._test = self._pairs([x.x_test for x in self._data], [x.y_test for x in self._data])

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

    def batch(self, number: int) -> dict[str, torch.Tensor]:
        return self._train

    def gathered(self, indices: torch.Tensor | None) -> dict[str, torch.Tensor]:
        return self._train

    def _pairs(self, tokens: list[np.ndarray], answers: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """Pairs of all members: positions of x and y in the members' stacked tables, and the answers."""
        stacked = torch.from_numpy(np.stack(tokens)).to(self.device)
        first = self.config.p * torch.arange(self.members, device=self.device)[:, None]
        x, y = stacked[..., 0], stacked[..., 1]
        onehot = torch.nn.functional.one_hot
        return {
            "x": x + first, "y": y + first, "answer": torch.from_numpy(np.stack(answers)).to(self.device),
            # sums over pairs with the same token as matrix products: the same bits every time, on CUDA too
            "sum_x": onehot(x, self.config.p).to(self.dtype).mT,
            "sum_y": onehot(y, self.config.p).to(self.dtype).mT,
        }  # fmt: skip

    def _forward(self, pairs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        c, w = self.config, self._w
        S, n, H = self.members, pairs["x"].shape[1], c.n_heads
        P = w["position"]
        t0 = w["embed"][:, : c.p] + P[:, 0:1]  # tokens in the first place, (S, p, d)
        t1 = w["embed"][:, : c.p] + P[:, 1:2]
        end = w["embed"][:, c.p :] + P[:, 2:3]  # "=" in the last place, (S, 1, d)
        q = end @ w["q_proj"].mT
        # scores are linear in the token: U holds, for each head, what a token is projected on, (S, d, H)
        wk = w["k_proj"].view(S, H, c.d_model // H, c.d_model)
        U = torch.einsum("shkd,shk->sdh", wk, q.view(S, H, -1)) * (c.d_model // H) ** -0.5
        s0, s1, s2 = t0 @ U, t1 @ U, end @ U
        v0, v1, v2 = (t @ w["v_proj"].mT for t in (t0, t1, end))

        def pick(table: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
            return table.reshape(S * c.p, -1).index_select(0, places.reshape(-1)).view(S, n, H, -1)

        scores = torch.stack(
            [pick(s0, pairs["x"]), pick(s1, pairs["y"]), s2.view(S, 1, H, 1).expand(S, n, H, 1)]
        )
        a = torch.softmax(scores, dim=0)  # (3, S, n, H, 1)
        vx, vy, v2 = pick(v0, pairs["x"]), pick(v1, pairs["y"]), v2.view(S, 1, H, -1)
        z = (a[0] * vx + a[1] * vy + a[2] * v2).view(S, n, -1)
        r = end + z @ w["out_proj"].mT
        h = torch.baddbmm(w["fc1.bias"].unsqueeze(1), r, w["fc1"].mT).relu_()
        o = torch.baddbmm(w["fc2.bias"].unsqueeze(1), h, w["fc2"].mT).add_(r)
        return dict(t0=t0, t1=t1, end=end, q=q, wk=wk, U=U, a=a, vx=vx, vy=vy, v2=v2, z=z, r=r, h=h, o=o)

    def gradients(self, batch: dict[str, torch.Tensor]) -> None:
        """Gradient of the mean cross-entropy over all pairs (`torch.nn.CrossEntropyLoss` in float64)."""
        c, w, g, f = self.config, self._w, self._g, self._forward(batch)
        S, n, H = self.members, batch["x"].shape[1], c.n_heads
        a, z, r, h, o, end = f["a"], f["z"], f["r"], f["h"], f["o"], f["end"]

        error = torch.softmax((o @ w["unembed"].mT).double(), dim=-1)
        minus = torch.full_like(batch["answer"], -1).unsqueeze(-1).to(error.dtype)
        error = error.scatter_add_(-1, batch["answer"].unsqueeze(-1), minus).div_(n).to(self.dtype)

        torch.bmm(error.mT, o, out=g["unembed"])
        do = error @ w["unembed"]
        torch.bmm(do.mT, h, out=g["fc2"])
        torch.sum(do, dim=1, out=g["fc2.bias"])
        dh = do @ w["fc2"]
        torch.ops.aten.threshold_backward.grad_input(dh, h, 0, grad_input=dh)  # zero where the ReLU was
        torch.bmm(dh.mT, r, out=g["fc1"])
        torch.sum(dh, dim=1, out=g["fc1.bias"])
        dr = torch.baddbmm(do, dh, w["fc1"])
        torch.bmm(dr.mT, z, out=g["out_proj"])
        dz = (dr @ w["out_proj"]).view(S, n, H, -1)
        dend = dr.sum(dim=1, keepdim=True)

        # attention: dz to the values, and through the softmax to the scores
        da = torch.stack([(dz * v).sum(-1, keepdim=True) for v in (f["vx"], f["vy"], f["v2"])])
        ds = a * (da - (a * da).sum(dim=0))
        dv0 = batch["sum_x"] @ (a[0] * dz).view(S, n, -1)
        dv1 = batch["sum_y"] @ (a[1] * dz).view(S, n, -1)
        dv2 = (a[2] * dz).sum(dim=1).view(S, 1, -1)
        ds0 = batch["sum_x"] @ ds[0].view(S, n, H)
        ds1 = batch["sum_y"] @ ds[1].view(S, n, H)
        ds2 = ds[2].sum(dim=1).view(S, 1, H)

        t0, t1, U, wk, q = f["t0"], f["t1"], f["U"], f["wk"], f["q"]
        g["v_proj"].copy_(dv0.mT @ t0 + dv1.mT @ t1 + dv2.mT @ end)
        dt0 = dv0 @ w["v_proj"] + ds0 @ U.mT
        dt1 = dv1 @ w["v_proj"] + ds1 @ U.mT
        dend += dv2 @ w["v_proj"] + ds2 @ U.mT
        dU = (t0.mT @ ds0 + t1.mT @ ds1 + end.mT @ ds2) * (c.d_model // H) ** -0.5
        g["k_proj"].view_as(wk).copy_(torch.einsum("shk,sdh->shkd", q.view(S, H, -1), dU))
        dq = torch.einsum("shkd,sdh->shk", wk, dU).reshape(S, 1, -1)
        torch.bmm(dq.mT, end, out=g["q_proj"])
        dend += dq @ w["q_proj"]

        g["embed"][:, : c.p].copy_(dt0 + dt1)
        g["embed"][:, c.p :].copy_(dend)
        g["position"][:, 0].copy_(dt0.sum(dim=1))
        g["position"][:, 1].copy_(dt1.sum(dim=1))
        g["position"][:, 2].copy_(dend[:, 0])

    # -- evaluation ------------------------------------------------------------------------------------------

    def evaluate(self) -> list[dict[str, float]]:
        train, test = self._scores(self._train), self._scores(self._test)
        return [
            {"train_accuracy": a, "train_loss": b, "test_accuracy": c, "test_loss": d}
            for (a, b), (c, d) in zip(train, test, strict=True)
        ]

    def _scores(self, pairs: Mapping[str, torch.Tensor]) -> list[tuple[float, float]]:
        """(accuracy, mean cross-entropy) of each member."""
        count = pairs["x"].shape[1]
        right = torch.zeros(self.members, dtype=torch.float64, device=self.device)
        loss = torch.zeros_like(right)
        for start in range(0, count, _EVAL_PAIRS):
            part = {k: pairs[k][:, start : start + _EVAL_PAIRS] for k in ("x", "y", "answer")}
            logits = (self._forward(part)["o"] @ self._w["unembed"].mT).double()
            answer = part["answer"]
            right += (logits.argmax(-1) == answer).sum(-1)
            flat = torch.nn.functional.cross_entropy(logits.flatten(0, 1), answer.flatten(), reduction="none")
            loss += flat.view(self.members, -1).sum(-1)
        return list(zip((right / count).tolist(), (loss / count).tolist(), strict=True))


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
