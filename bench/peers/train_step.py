"""The training step of bench/train-step in PyTorch: a Llama decoder, forward, backward, all gradients, AdamW.

    python bench/peers/train_step.py --shape smollm2-135m --steps 5 [--optimizer] [--compile]

Prints one JSON line: milliseconds of each step, the peak resident memory, the loss, the version.
"""
import argparse
import json
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

SHAPES = {
    "tiny": dict(hidden=192, intermediate=512, layers=8, heads=6, kv_heads=2, vocabulary=4096),
    "smollm2-135m": dict(hidden=576, intermediate=1536, layers=30, heads=9, kv_heads=3, vocabulary=49152),
}


class Layer(nn.Module):
    def __init__(self, hidden, intermediate, heads, kv_heads, **_):
        super().__init__()
        self.heads, self.kv_heads, self.width = heads, kv_heads, hidden // heads
        linear = lambda i, o: nn.Linear(i, o, bias=False)
        self.norm1, self.norm2 = nn.RMSNorm(hidden, eps=1e-5), nn.RMSNorm(hidden, eps=1e-5)
        self.q, self.o = linear(hidden, hidden), linear(hidden, hidden)
        self.k, self.v = linear(hidden, kv_heads * self.width), linear(hidden, kv_heads * self.width)
        self.gate, self.up = linear(hidden, intermediate), linear(hidden, intermediate)
        self.down = linear(intermediate, hidden)

    def forward(self, x, cos, sin):
        batch, rows, _ = x.shape
        split = lambda y, heads: y.view(batch, rows, heads, self.width).transpose(1, 2)
        normed = self.norm1(x)
        q, k, v = split(self.q(normed), self.heads), split(self.k(normed), self.kv_heads), split(self.v(normed), self.kv_heads)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(batch, rows, -1))
        normed = self.norm2(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Decoder(nn.Module):
    def __init__(self, layers, hidden, vocabulary, **sizes):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.layers = nn.ModuleList(Layer(hidden=hidden, **sizes) for _ in range(layers))
        self.norm = nn.RMSNorm(hidden, eps=1e-5)
        self.width = hidden // sizes["heads"]

    def forward(self, ids, targets):
        rows = ids.shape[1]
        frequency = 10000 ** (-torch.arange(0, self.width, 2) / self.width)
        angles = torch.outer(torch.arange(rows).float(), frequency).repeat(1, 2)
        cos, sin = angles.cos(), angles.sin()
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits = self.norm(x) @ self.embedding.weight.T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def peak_megabytes():
    with open("/proc/self/status") as status:
        return round(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024 / 1e6)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--optimizer", action="store_true")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shape = SHAPES[args.shape]
    model = Decoder(**shape)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02)
    step_model = torch.compile(model) if args.compile else model
    ids = torch.randint(shape["vocabulary"], (4, 128))
    targets = torch.randint(shape["vocabulary"], (4, 128))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.01)
    times = []
    for _ in range(args.steps):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = step_model(ids, targets)
        loss.backward()
        if args.optimizer:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        times.append(1000 * (time.perf_counter() - start))
    print(json.dumps({"times": times, "peakMB": peak_megabytes(), "loss": loss.item(), "version": torch.__version__}))


if __name__ == "__main__":
    main()
