"""Checks what `palkit export --format hf` wrote with transformers and PEFT.

    VENV/bin/python test/golden/export.py FOLDER          # a VENV as for lora.py

FOLDER holds `kept` and `merged` (exports with --lora keep and merge) and expected.json: token ids with palkit's logits,
and a text with palkit's token ids.
"""

import json
import pathlib
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(folder):
    expected = json.loads((folder / "expected.json").read_text())
    tokens = torch.tensor(expected["ids"])
    wanted = torch.tensor(expected["logits"])
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(folder / "kept").eval()
        kept = PeftModel.from_pretrained(base, folder / "kept" / "adapter").eval()(tokens).logits
        merged = AutoModelForCausalLM.from_pretrained(folder / "merged").eval()(tokens).logits
    encoded = AutoTokenizer.from_pretrained(folder / "merged")(expected["text"], add_special_tokens=False)["input_ids"]
    report = {
        "keptDiffers": float((kept.flatten() - wanted).abs().max()),
        "mergedDiffers": float((merged.flatten() - wanted).abs().max()),
        "tokenizerAgrees": encoded == expected["textIds"],
    }
    print(json.dumps(report))
    return report["keptDiffers"] < 1e-4 and report["mergedDiffers"] < 1e-4 and report["tokenizerAgrees"]


if __name__ == "__main__":
    sys.exit(0 if main(pathlib.Path(sys.argv[1])) else 1)
