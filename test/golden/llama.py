"""Golden logits and gradients of small Llama models, by transformers on PyTorch. Writes llama.json beside itself.

    python3 -m venv --system-site-packages VENV     # with a PyTorch, Debian's python3-torch for one
    VENV/bin/pip install transformers==4.35.2
    VENV/bin/python test/golden/llama.py

The weights follow a formula that the test repeats, so the file holds results alone.
"""

import json
import math
import pathlib

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def fill(name, shape):
    """sin of a counter that depends on the name, scaled by the width; norms are around one."""
    size = math.prod(shape)
    start = sum((index + 1) * ord(letter) for index, letter in enumerate(name)) % 1000
    values = torch.tensor([math.sin(start + 1.7 * index) for index in range(size)], dtype=torch.float64)
    if "norm" in name:
        values = 1 + 0.2 * values
    elif "embed" not in name and "lm_head" not in name:
        values = values * 1.5 / math.sqrt(shape[-1])
    return values.to(torch.float32).reshape(shape)


ids = [[0, 5, 17, 44, 9, 33, 60, 2, 21], [0, 8, 8, 31, 50, 12, 3, 3, 40]]
tokens = torch.tensor(ids)
variants = [("tied", True, 10000.0), ("untied", False, 500000.0)]
wanted = ["model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight", "model.layers.1.self_attn.q_proj.weight",
          "model.layers.1.mlp.gate_proj.weight", "model.layers.2.input_layernorm.weight", "model.norm.weight"]


def small_llama(tied, theta):
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=61, rms_norm_eps=1e-5, rope_theta=theta, tie_word_embeddings=tied, max_position_embeddings=128,
        bos_token_id=0, eos_token_id=1,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(fill(key, list(parameter.shape)))
    model.tie_weights()
    return model


def summed_loss(logits):
    return torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 61), tokens[:, 1:].reshape(-1), reduction="sum")


def summary(model):
    gradients = {key: parameter.grad for key, parameter in model.named_parameters() if key in wanted}
    return {key: {"norm": float(value.norm()), "every97": [float(f"{x:.7g}") for x in value.flatten().tolist()[::97]]}
            for key, value in gradients.items()}


def main():
    cases = {}
    for name, tied, theta in variants:
        model = small_llama(tied, theta)
        logits = model(tokens).logits
        loss = summed_loss(logits)
        loss.backward()
        sequence = list(ids[0])
        with torch.no_grad():
            for _ in range(24):
                sequence.append(int(model(torch.tensor([sequence])).logits[0, -1].argmax()))
        cases[name] = {
            "ropeTheta": theta,
            "tied": tied,
            "logits": [float(f"{value:.7g}") for value in logits.detach().flatten().tolist()[:: 7]],
            "loss": float(loss),
            "greedy": sequence[len(ids[0]):],
            "gradients": summary(model),
        }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps({"ids": ids, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
