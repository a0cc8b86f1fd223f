"""An adapter that PEFT made of a small Llama, what the model says with it, and its gradients. Writes lora/ beside itself.

    python3 -m venv VENV
    VENV/bin/pip install torch transformers==5.24.0 peft==0.21.2
    VENV/bin/python test/golden/lora.py                   # writes the golden values
    VENV/bin/python test/golden/lora.py check FOLDER      # loads what palkit wrote, and compares

FOLDER holds `llm` (a model's folder), `adapter` (one of PEFT's), `merged` (a model's folder) and logits.json: token
ids, and palkit's logits of `llm` with the adapter. The base model's weights follow the formula of llama.py.
"""

import json
import pathlib
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from llama import fill, ids, small_llama, summed_loss

here = pathlib.Path(__file__).parent / "lora"


def generate():
    model = small_llama(True, 10000.0)
    config = LoraConfig(r=3, lora_alpha=12, lora_dropout=0.1, target_modules=["q_proj", "v_proj", "down_proj"],
                        layers_to_transform=[0, 2], task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.5 * fill(name, list(parameter.shape)))
    logits = adapted(torch.tensor(ids)).logits
    loss = summed_loss(logits)
    loss.backward()
    gradients = {name: {"norm": float(parameter.grad.norm()), "every7": rounded(parameter.grad)}
                 for name, parameter in adapted.named_parameters() if "lora_" in name}
    adapted.save_pretrained(here)
    (here / "README.md").unlink(missing_ok=True)
    golden = {"ids": ids, "logits": rounded(logits), "loss": loss.item(), "gradients": gradients}
    (here / "logits.json").write_text(json.dumps(golden) + "\n")


def rounded(values):
    return [float(f"{value:.7g}") for value in values.detach().flatten().tolist()[::7]]


def check(folder):
    expected = json.loads((folder / "logits.json").read_text())
    tokens = torch.tensor(expected["ids"])
    wanted = torch.tensor(expected["logits"])
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(folder / "llm").eval()
        plain = base(tokens).logits
        adapted = PeftModel.from_pretrained(base, folder / "adapter").eval()(tokens).logits
        merged = AutoModelForCausalLM.from_pretrained(folder / "merged").eval()(tokens).logits
    report = {
        "adapterMoves": float((plain - adapted).abs().max()),
        "adapterDiffers": float((adapted.flatten() - wanted).abs().max()),
        "mergedDiffers": float((merged.flatten() - wanted).abs().max()),
    }
    print(json.dumps(report))
    return report["adapterMoves"] > 1e-2 and report["adapterDiffers"] < 1e-4 and report["mergedDiffers"] < 1e-4


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "check":
        sys.exit(0 if check(pathlib.Path(sys.argv[2])) else 1)
    generate()
