"""Golden linear CKA and local neighbourhood similarity, by numpy on whole matrices. Writes similarity.json beside itself.

    python3 -m venv VENV
    VENV/bin/pip install numpy torch transformers
    VENV/bin/python test/golden/similarity.py

The representations follow the formula of llama.py, which the test repeats.
"""

import json
import pathlib

import numpy as np

from llama import fill


def cka(a, b):
    """Of features, as printed by Kornblith et al. 2019: |B'A|^2 / (|A'A| |B'B|)."""
    a, b = a - a.mean(0), b - b.mean(0)
    return np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))


def neighbours(x, count):
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    return [set(row) for row in np.argsort(-cosine, axis=1, kind="stable")[:, :count].tolist()]


def lns(a, b, count):
    return np.mean([len(one & two) / len(one | two) for one, two in zip(neighbours(a, count), neighbours(b, count))])


def main():
    results = []
    for items, left, right in [(12, 5, 7), (64, 9, 9), (100, 24, 16)]:
        a = fill("left_embed", [items, left]).double().numpy() + 0.3
        b = fill("right_embed", [items, right]).double().numpy()
        b[:, :5] += 2.5 * a[:, :5]
        # As float32 holds them.
        a, b = a.astype(np.float32).astype(np.float64), b.astype(np.float32).astype(np.float64)
        count = max(1, round(0.05 * items))
        results.append({"items": items, "left": left, "right": right, "neighbours": count, "cka": float(cka(a, b)), "lns": float(lns(a, b, count))})
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text("[\n" + ",\n".join(f"  {json.dumps(result)}" for result in results) + "\n]\n")


if __name__ == "__main__":
    main()
