"""Clipping and AdamW over the parameters of a shape in PyTorch.

    python bench/peers/optimizer_step.py --shape smollm2-135m --kind foreach|fused --steps 8

Prints one JSON line: milliseconds of each step, the peak resident memory, the version.
"""
import argparse
import json
import time

import torch

from train_step import SHAPES, Decoder, peak_megabytes

parser = argparse.ArgumentParser()
parser.add_argument("--shape", choices=SHAPES, default="tiny")
parser.add_argument("--kind", choices=["foreach", "fused"], default="foreach")
parser.add_argument("--steps", type=int, default=8)
args = parser.parse_args()
torch.set_num_threads(2)
model = Decoder(**SHAPES[args.shape])
for parameter in model.parameters():
    parameter.grad = parameter.detach().clone()
options = {"foreach": True} if args.kind == "foreach" else {"fused": True}
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.01, **options)
times = []
for _ in range(args.steps):
    start = time.perf_counter()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    times.append(1000 * (time.perf_counter() - start))
print(json.dumps({"times": times, "peakMB": peak_megabytes(), "version": torch.__version__}))
