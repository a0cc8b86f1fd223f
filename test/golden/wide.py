"""Golden logits, losses and gradients of small Llama models whose layers share feed-forwards or have none, by
transformers on PyTorch in float64. Writes wide.json beside itself.

    python3 -m venv VENV
    VENV/bin/pip install torch transformers
    VENV/bin/python test/golden/wide.py

Layers that share hold the same module. Weights follow the formula of llama.py, which the test repeats.
"""

import json
import pathlib

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from llama import fill, ids, summed_loss, tokens


def norm(self, x):
    """As transformers has it, but in float64 throughout."""
    return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


LlamaRMSNorm.forward = norm


class Nothing(torch.nn.Module):
    """A feed-forward that adds nothing: the residual stream goes on."""

    def forward(self, x):
        return torch.zeros_like(x)


wide = {"kind": "wide", "width": None, "groups": 1, "tie": "sequence", "from": None}
# What the configuration says, and which shared feed-forward each layer then uses: "own" for its own, None for none.
cases = {
    "one of the own width": {"ffn": wide, "uses": [0, 0, 0, 0], "width": 48},
    "one as wide as all": {"ffn": wide | {"width": "all"}, "uses": [0, 0, 0, 0], "width": 192},
    "one wide in the lower half, none above": {
        "ffn": [wide | {"layers": "0..1", "width": "all"}, {"kind": "none", "layers": "2..3"}], "uses": [0, 0, None, None], "width": 192},
    "none at all": {"ffn": {"kind": "none"}, "uses": [None] * 4, "width": 0},
    "two in sequence": {"ffn": wide | {"groups": 2, "width": 20}, "uses": [0, 0, 1, 1], "width": 20},
    "two in a cycle, with biases": {"ffn": wide | {"groups": 2, "tie": "cycle", "width": "all"}, "uses": [0, 1, 0, 1], "width": 96, "bias": True},
    "two in a cycle and back": {"ffn": wide | {"groups": 2, "tie": "cycle-reverse"}, "uses": [0, 1, 1, 0], "width": 48},
    "dense below, two ranges that share": {
        "ffn": [{"kind": "dense", "layers": "0..0"}, wide | {"layers": "1..1"}, wide | {"layers": "2..3"}], "uses": ["own", 0, 1, 1], "width": 48},
}


def build(case):
    """The model, and its parameters by palkit's names."""
    sizes = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, vocab_size=61, rms_norm_eps=1e-5,
                 rope_theta=10000.0, tie_word_embeddings=True, max_position_embeddings=128, bos_token_id=0, eos_token_id=1,
                 mlp_bias=case.get("bias", False))
    model = LlamaForCausalLM(LlamaConfig(intermediate_size=48, **sizes)).eval()
    shared = {}
    for layer, use in zip(model.model.layers, case["uses"]):
        if use is None:
            layer.mlp, layer.post_attention_layernorm = Nothing(), torch.nn.Identity()
        elif use != "own":
            shared.setdefault(use, LlamaMLP(LlamaConfig(intermediate_size=case["width"], **sizes)))
            layer.mlp = shared[use]
    places = {id(parameter): f"ffn.shared.{use}.{name}" for use, mlp in shared.items() for name, parameter in mlp.named_parameters()}
    own = {places.get(id(parameter), name): parameter for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(fill(name, list(parameter.shape)))
    return model.double(), own


def main():
    results = {}
    for name, case in cases.items():
        model, own = build(case)
        logits = model(tokens).logits
        loss = summed_loss(logits)
        loss.backward()
        results[name] = {
            **case,
            "logits": [float(f"{value:.9g}") for value in logits.detach().flatten().tolist()[::29]],
            "loss": float(loss.detach()),
            "gradients": {key: {"norm": float(value.grad.norm()), "every199": [float(f"{x:.9g}") for x in value.grad.flatten().tolist()[::199]]}
                          for key, value in own.items()},
        }
    path = pathlib.Path(__file__).with_suffix(".json")
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(result)}" for name, result in results.items())
    path.write_text(f'{{\n "ids": {json.dumps(ids)},\n "cases": {{\n{lines}\n }}\n}}\n')


if __name__ == "__main__":
    main()
