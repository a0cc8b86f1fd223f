"""Golden outputs, auxiliary losses and gradients of sparse feed-forward layers, token by token and choice by choice, in
PyTorch. Writes sffn.json beside itself.

    python3 -m venv VENV
    VENV/bin/pip install torch transformers
    VENV/bin/python test/golden/sffn.py

Weights follow the formula of llama.py, which the test repeats, so the file holds results alone.
"""

import json
import math
import pathlib

import torch
from torch.nn.functional import silu

from llama import fill

WIDTH, MEMORY, TOKENS = 6, 16, 9


def parameters(case):
    """Every parameter of the layer by name, in float64."""
    mlp = "model.layers.0.mlp"
    shapes = {f"{mlp}.gate_proj.weight": [MEMORY, WIDTH], f"{mlp}.up_proj.weight": [MEMORY, WIDTH],
              f"{mlp}.down_proj.weight": [WIDTH, MEMORY]}
    if case.get("bias"):
        shapes |= {f"{mlp}.gate_proj.bias": [MEMORY], f"{mlp}.up_proj.bias": [MEMORY], f"{mlp}.down_proj.bias": [WIDTH]}
    own = "ffn.layers.0"
    blocks = MEMORY // case.get("blockSize", 1)
    if case["select"] in ("switch", "topk"):
        shapes[f"{own}.router.weight"] = [blocks, WIDTH]
    if case["select"] == "lowrank-memory":
        shapes |= {f"{own}.query.weight": [case["rank"], WIDTH], f"{own}.keys.weight": [blocks, case["rank"]]}
    if case["select"] == "pkm":
        shapes |= {f"{own}.query.weight": [case["heads"] * case["queryWidth"], WIDTH],
                   f"{own}.query_norm.weight": [case["queryWidth"]],
                   f"{own}.keys.weight": [2 * case["heads"], math.isqrt(blocks), case["queryWidth"] // 2]}
    made = {name: fill(name, shape).double() for name, shape in shapes.items()}
    for name, to, source, rows in case.get("copies", []):
        made[name][to:to + rows] = made[name][source:source + rows]
    return {name: value.requires_grad_() for name, value in made.items()}


def highest(scores, count):
    """Places of the highest scores; the lower place wins a tie."""
    return sorted(range(len(scores)), key=lambda at: (-float(scores[at].detach()), at))[:count]


def gated(scores, gate):
    return {"indicator": torch.ones_like, "sigmoid": torch.sigmoid, "softmax": lambda s: s.softmax(0)}[gate](scores)


def choose(case, own, x, token):
    """The blocks of one token, what each is multiplied by, and the router's logits where there is one."""
    select, active = case["select"], case["active"]
    blocks = MEMORY // case["blockSize"]
    gate, bias = own["model.layers.0.mlp.gate_proj.weight"], own.get("model.layers.0.mlp.gate_proj.bias")
    part = lambda name: own[f"ffn.layers.0.{name}"]
    if select in ("switch", "topk"):
        logits = part("router.weight") @ x
        probabilities = logits.softmax(0)
        chosen = highest(probabilities, active)
        weights = probabilities[chosen]
        if case.get("normalize") == "chosen":
            weights = weights / weights.sum()
        return chosen, weights, logits
    if select == "hash":
        return case["table"][token], torch.ones(active, dtype=torch.float64), None
    if select == "pkm":
        each, side, half = active // case["heads"], math.isqrt(blocks), case["queryWidth"] // 2
        queries = (part("query.weight") @ x).reshape(case["heads"], case["queryWidth"])
        chosen, weights = [], []
        for head, query in enumerate(queries):
            query = query / (query.pow(2).mean() + 1e-6).sqrt() * part("query_norm.weight")
            first, second = part("keys.weight")[2 * head] @ query[:half], part("keys.weight")[2 * head + 1] @ query[half:]
            scores = (first[:, None] + second[None, :]).reshape(-1)
            places = highest(scores, each)
            chosen += places
            weights.append(gated(scores[places], case["gate"]))
        return chosen, torch.cat(weights), None
    if select == "lowrank-memory":
        scores = part("keys.weight") @ (part("query.weight") @ x)
    else:
        cells = (gate @ x + (0 if bias is None else bias)).reshape(blocks, -1)
        aggregate = case.get("aggregate", "mean")
        scores = {"mean": lambda: cells.mean(1), "max": lambda: cells.max(1).values,
                  "activation": lambda: silu(cells).mean(1), "magnitude": lambda: cells.abs().mean(1)}[aggregate]()
    chosen = highest(scores, active)
    return chosen, gated(scores[chosen], case["gate"]), None


def layer(case, own, xs):
    size = case["blockSize"]
    blocks = MEMORY // size
    mlp = {part: (own[f"model.layers.0.mlp.{part}_proj.weight"], own.get(f"model.layers.0.mlp.{part}_proj.bias"))
           for part in ("gate", "up", "down")}
    valid = case.get("valid", [1] * len(xs))
    choices = [choose(case, own, x, case.get("tokens", [0] * len(xs))[at]) for at, x in enumerate(xs)]
    factor = case.get("capacityFactor")
    # Padding takes its place in what a batch has room for: shapes do not know it.
    capacity = math.inf if factor is None else math.ceil(factor * len(xs) * case["active"] / blocks)
    load, taken, ys = [0] * blocks, [0] * blocks, []
    for at, x in enumerate(xs):
        y = torch.zeros(WIDTH, dtype=torch.float64)
        for block, weight in zip(*choices[at][:2]):
            if not valid[at]:
                continue
            load[block] += 1
            if taken[block] >= capacity:
                continue
            taken[block] += 1
            rows = slice(block * size, (block + 1) * size)
            pre = [mlp[part][0][rows] @ x + (0 if mlp[part][1] is None else mlp[part][1][rows]) for part in ("gate", "up")]
            y = y + weight * (mlp["down"][0][:, rows] @ (silu(pre[0]) * pre[1]))
        ys.append(y + (0 if mlp["down"][1] is None else mlp["down"][1]))
    auxiliary = None
    if choices[0][2] is not None:
        logits = torch.stack([logits for (_, _, logits), real in zip(choices, valid) if real])
        share = torch.tensor(load, dtype=torch.float64) / sum(load)
        balance = blocks * (share * logits.softmax(1).mean(0)).sum()
        z = logits.logsumexp(1).pow(2).mean()
        auxiliary = case["balanceLoss"] * balance + case["zLoss"] * z
    return torch.stack(ys), auxiliary, load, sum(load) - sum(taken)


def channels(case, own, xs):
    """Mixture of channels: SwiGLU times a mask that is a constant to the backward pass."""
    weight = lambda part: own[f"model.layers.0.mlp.{part}_proj.weight"]
    bias = lambda part: own.get(f"model.layers.0.mlp.{part}_proj.bias", torch.zeros(1, dtype=torch.float64))
    gates = xs @ weight("gate").T + bias("gate")
    mask = torch.zeros_like(gates)
    for at, gate in enumerate(gates):
        if case["select"] == "structured":
            kept = [start + place for start in range(0, MEMORY, 8) for place in highest(gate[start:start + 8], 2)]
        else:
            kept = highest(gate if case["select"] == "gate" else silu(gate).abs(), case["active"])
        mask[at, kept] = 1
    activated = silu(gates) * mask * (xs @ weight("up").T + bias("up"))
    real = torch.tensor(case.get("valid", [1] * len(xs)), dtype=torch.float64)
    return activated @ weight("down").T + bias("down"), None, (mask * real[:, None]).sum(0).tolist(), 0


router = {"balanceLoss": 0.3, "zLoss": 0.2}
same = [["ffn.layers.0.router.weight", 2, 1, 1]]
cases = {
    "switch": {"select": "switch", "blockSize": 4, "active": 1, **router},
    "switch, ties and an empty block": {"select": "switch", "blockSize": 4, "active": 1, "copies": same, **router},
    "switch, overflow": {"select": "switch", "blockSize": 4, "active": 1, "capacityFactor": 0.5, **router},
    "switch, room for more": {"select": "switch", "blockSize": 4, "active": 1, "capacityFactor": 1.25, **router},
    "switch, one token": {"select": "switch", "blockSize": 4, "active": 1, "rows": 1, "capacityFactor": 1.25, **router},
    "switch, padding": {"select": "switch", "blockSize": 4, "active": 1, "valid": [1, 1, 0, 1, 1, 1, 0, 1, 0], **router},
    "topk of all": {"select": "topk", "blockSize": 2, "active": 3, "normalize": "all", **router},
    "topk of the chosen": {"select": "topk", "blockSize": 2, "active": 3, "normalize": "chosen", **router},
    "topk, overflow and padding": {"select": "topk", "blockSize": 2, "active": 2, "normalize": "chosen", "capacityFactor": 0.75,
                                   "valid": [1, 1, 1, 1, 1, 0, 1, 0, 0], **router},
    "topk of one cell blocks": {"select": "topk", "blockSize": 1, "active": 5, "normalize": "all", **router},
    "hash": {"select": "hash", "blockSize": 4, "active": 2, "tokens": [0, 2, 1, 1, 0, 2, 2, 2, 1], "table": [[0, 1], [3, 1], [1, 2]]},
    "hash, one token": {"select": "hash", "blockSize": 4, "active": 2, "rows": 1, "tokens": [1], "table": [[0, 1], [3, 1], [1, 2]]},
    "avg-k": {"select": "avg-k", "blockSize": 4, "active": 2, "gate": "indicator"},
    "avg-k, ties": {"select": "avg-k", "blockSize": 4, "active": 2, "gate": "softmax",
                    "copies": [["model.layers.0.mlp.gate_proj.weight", 8, 4, 4]]},
    "avg-k, sigmoid and biases": {"select": "avg-k", "blockSize": 2, "active": 3, "gate": "sigmoid", "bias": True},
    "avg-k, overflow": {"select": "avg-k", "blockSize": 2, "active": 4, "gate": "indicator", "capacityFactor": 0.6},
    "avg-k, one cell blocks": {"select": "avg-k", "blockSize": 1, "active": 6, "gate": "indicator"},
    "vanilla memory": {"select": "vanilla-memory", "blockSize": 1, "active": 6, "aggregate": "mean", "gate": "indicator"},
    "vanilla memory, max": {"select": "vanilla-memory", "blockSize": 4, "active": 2, "aggregate": "max", "gate": "softmax"},
    "vanilla memory, activation": {"select": "vanilla-memory", "blockSize": 4, "active": 2, "aggregate": "activation",
                                   "gate": "sigmoid", "bias": True},
    "vanilla memory, magnitude": {"select": "vanilla-memory", "blockSize": 2, "active": 3, "aggregate": "magnitude", "gate": "softmax"},
    "product keys": {"select": "pkm", "blockSize": 1, "active": 6, "heads": 2, "queryWidth": 4, "gate": "softmax"},
    "product keys, one token": {"select": "pkm", "blockSize": 4, "active": 2, "heads": 1, "queryWidth": 4, "gate": "sigmoid", "rows": 1},
    "low-rank memory": {"select": "lowrank-memory", "blockSize": 1, "active": 5, "rank": 3, "gate": "softmax"},
    "channels by gate": {"kind": "moc", "select": "gate", "active": 5},
    "channels by gate, again in the backward pass": {"kind": "moc", "select": "gate", "active": 5, "recompute": True},
    "channels by gate, biases": {"kind": "moc", "select": "gate", "active": 3, "bias": True},
    "channels by gate, ties": {"kind": "moc", "select": "gate", "active": 4, "recompute": True,
                               "copies": [["model.layers.0.mlp.gate_proj.weight", 8, 0, 8]]},
    "channels by gate, more than are positive": {"kind": "moc", "select": "gate", "active": 15},
    "channels by gate, one token": {"kind": "moc", "select": "gate", "active": 1, "rows": 1},
    "channels by gate, padding": {"kind": "moc", "select": "gate", "active": 5, "valid": [1, 1, 0, 1, 1, 1, 0, 1, 0]},
    "channels by magnitude": {"kind": "moc", "select": "magnitude", "active": 5, "bias": True},
    "channels by structure": {"kind": "moc", "select": "structured", "active": None},
    "channels by structure, again in the backward pass": {"kind": "moc", "select": "structured", "active": None,
                                                          "recompute": True, "bias": True},
    "low-rank memory of blocks": {"select": "lowrank-memory", "blockSize": 4, "active": 2, "rank": 3, "gate": "sigmoid"},
}


def rounded(tensor):
    return [float(f"{value:.9g}") for value in tensor.detach().flatten().tolist()]


def main():
    results = {}
    for name, case in cases.items():
        own = parameters(case)
        x = (2 * fill("hidden_states_embed", [case.get("rows", TOKENS), WIDTH]).double()).requires_grad_()
        y, auxiliary, load, dropped = (channels if case.get("kind") == "moc" else layer)(case, own, x)
        loss = (y * fill("targets_embed", list(y.shape)).double()).sum()
        (loss if auxiliary is None else loss + auxiliary).backward()
        gradients = {key: rounded(value.grad) for key, value in own.items() if value.grad is not None}
        # Gradients of matrices by every fifth element: enough to tell.
        results[name] = {"case": case, "output": rounded(y), "auxiliaryLoss": None if auxiliary is None else float(auxiliary.detach()),
                         "load": load, "dropped": dropped, "gradients": {"x": rounded(x.grad)} | {key: value[::5] for key, value in gradients.items()}}
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text("{\n" + ",\n".join(f"  {json.dumps(name)}: {json.dumps(result)}" for name, result in results.items()) + "\n}\n")


if __name__ == "__main__":
    main()
