"""Loss and gradients of the small Llama models of llama.py under torch.autocast in bfloat16. Writes llama_autocast.json.

    python3 -m venv VENV
    VENV/bin/pip install torch transformers
    VENV/bin/python test/golden/llama_autocast.py
"""

import json
import pathlib

import torch

from llama import small_llama, summary, summed_loss, tokens, variants

cases = {}
for name, tied, theta in variants:
    model = small_llama(tied, theta)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = summed_loss(model(tokens).logits.float())
    loss.backward()
    cases[name] = {"loss": loss.item(), "gradients": summary(model)}
path = pathlib.Path(__file__).with_suffix(".json")
path.write_text(json.dumps({"torch": torch.__version__, "cases": cases}, indent=1) + "\n")
