"""Greedy decoding of bench/generate in transformers on the CPU, float32.

    python bench/peers/generate_transformers.py --shape smollm2-135m --prompt 64 --tokens 64

Prints one JSON line: milliseconds of the prompt and of each new token, the peak resident memory, the versions.
"""
import argparse
import json
import resource
import time

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = {
    "tiny": dict(hidden_size=192, intermediate_size=512, num_hidden_layers=8, num_attention_heads=6,
                 num_key_value_heads=2, vocab_size=4096),
    "smollm2-135m": dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
                         num_key_value_heads=3, vocab_size=49152),
}


class Clock(transformers.generation.streamers.BaseStreamer):
    """Is called with the prompt at once, and with each token as it is made."""

    def __init__(self):
        self.times, self.last = [], None

    def put(self, _):
        now = time.perf_counter()
        if self.last is not None:
            self.times.append(1000 * (now - self.last))
        self.last = now

    def end(self):
        pass


parser = argparse.ArgumentParser()
parser.add_argument("--shape", default="smollm2-135m")
parser.add_argument("--prompt", type=int, default=64)
parser.add_argument("--tokens", type=int, default=64)
options = parser.parse_args()

torch.set_num_threads(2)
torch.manual_seed(0)
config = LlamaConfig(**SHAPES[options.shape], tie_word_embeddings=True, max_position_embeddings=2048)
model = LlamaForCausalLM(config).eval()
ids = torch.randint(0, config.vocab_size, (1, options.prompt))
clock = Clock()
with torch.inference_mode():
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=options.tokens + 1, do_sample=False,
                   streamer=clock, eos_token_id=None, pad_token_id=0)
print(json.dumps({
    "times": clock.times, "peakMB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
    "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
}))
