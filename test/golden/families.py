"""Golden logits of small models of every family, by transformers on PyTorch. Writes families.json beside itself.

    python3 -m venv VENV
    VENV/bin/pip install torch==2.15.0 transformers==5.24.0
    VENV/bin/python test/golden/families.py

The weights follow the formula of llama.py, which the test repeats; each config is the config.json that transformers writes.
"""

import json
import pathlib
import tempfile

import torch
from llama import fill
from transformers import (
    LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config,
    Qwen3ForCausalLM,
)

sizes = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=61, max_position_embeddings=128, bos_token_id=0, eos_token_id=1,
)
llama3 = dict(
    rope_type="llama3", rope_theta=500000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
yarn = dict(rope_type="yarn", rope_theta=1000000.0, factor=4.0, original_max_position_embeddings=32)

cases = {
    "llama2": (LlamaForCausalLM, LlamaConfig(**{**sizes, "num_key_value_heads": 4, "rms_norm_eps": 1e-5})),
    "llama3": (LlamaForCausalLM, LlamaConfig(**sizes, rope_parameters=llama3, rms_norm_eps=1e-5, head_dim=16)),
    "llama-linear-biases": (LlamaForCausalLM, LlamaConfig(
        **sizes, rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.0), attention_bias=True,
        mlp_bias=True)),
    "smollm2": (LlamaForCausalLM, LlamaConfig(
        **{**sizes, "hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3},
        rope_parameters=dict(rope_type="default", rope_theta=100000.0), rms_norm_eps=1e-5, tie_word_embeddings=True)),
    "mistral": (MistralForCausalLM, MistralConfig(**sizes, sliding_window=7)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**sizes, tie_word_embeddings=True)),
    "qwen2-window": (Qwen2ForCausalLM, Qwen2Config(
        **sizes, use_sliding_window=True, sliding_window=6, max_window_layers=1)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**sizes, head_dim=16, tie_word_embeddings=True)),
    "qwen3-yarn": (Qwen3ForCausalLM, Qwen3Config(**sizes, head_dim=16, rope_parameters=yarn)),
}

ids = [[(7 * at * at + 3 * at + row) % 61 for at in range(20)] for row in (0, 5)]
tokens = torch.tensor(ids)


def greedy(model, sequence, count):
    for _ in range(count):
        sequence = sequence + [int(model(torch.tensor([sequence]), use_cache=False).logits[0, -1].argmax())]
    return sequence[-count:]


def main():
    written = {}
    for name, (kind, config) in cases.items():
        config._attn_implementation = "eager"
        config.architectures = [kind.__name__]
        model = kind(config).eval()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                parameter.copy_(fill(key, list(parameter.shape)))
            model.tie_weights()
            with tempfile.TemporaryDirectory() as folder:
                config.save_pretrained(folder)
                config_json = json.loads((pathlib.Path(folder) / "config.json").read_text())
            logits = model(tokens).logits
            written[name] = {
                "config": config_json,
                "logits": [float(f"{value:.7g}") for value in logits.flatten().tolist()[::11]],
                "greedy": greedy(model, ids[0], 64),
            }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps({"ids": ids, "cases": written}, indent=1) + "\n")


if __name__ == "__main__":
    main()
