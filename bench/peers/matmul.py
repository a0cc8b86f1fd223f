"""The products of bench/matmul in PyTorch, each alone, on two threads.

    python bench/peers/matmul.py --runs 5 --products '[{"a": [512, 576], "b": [1536, 576], "transposeA": false, "transposeB": true}]'

Prints one JSON line: milliseconds of each run of each product.
"""
import argparse
import json
import time

import torch


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--products", type=json.loads, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    times = []
    with torch.inference_mode():
        for product in args.products:
            a, b = torch.randn(product["a"]), torch.randn(product["b"])
            a = a.transpose(-1, -2) if product["transposeA"] else a
            b = b.transpose(-1, -2) if product["transposeB"] else b
            out = torch.empty_like(torch.matmul(a, b))
            own = []
            for _ in range(args.runs):
                start = time.perf_counter()
                torch.matmul(a, b, out=out)
                own.append(1000 * (time.perf_counter() - start))
            times.append(own)
    print(json.dumps(times))


main()
