"""Which tokens transformers lets be drawn, and how likely. Writes sampling.json beside itself.

    python3 -m venv VENV
    VENV/bin/pip install torch==2.15.0 transformers==5.24.0
    VENV/bin/python test/golden/sampling.py
"""

import json
import math
import pathlib

import torch
from transformers import (
    LogitsProcessorList, MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper,
    TopPLogitsWarper,
)

logits = torch.tensor([[4 * math.sin(1 + 1.7 * at) for at in range(40)]])
seen = [3, 7, 7, 12, 30]
cases = [
    {}, {"temperature": 0.5}, {"topK": 5}, {"topP": 0.6}, {"topP": 0.0001}, {"minP": 0.2},
    {"temperature": 1.5, "topK": 12, "topP": 0.8, "minP": 0.3},
    {"repetitionPenalty": 1.3}, {"temperature": 0.7, "topP": 0.9, "repetitionPenalty": 1.2},
]


def distribution(case):
    steps = LogitsProcessorList()
    if "repetitionPenalty" in case:
        steps.append(RepetitionPenaltyLogitsProcessor(case["repetitionPenalty"]))
    if "temperature" in case:
        steps.append(TemperatureLogitsWarper(case["temperature"]))
    if "topK" in case:
        steps.append(TopKLogitsWarper(case["topK"]))
    if "topP" in case:
        steps.append(TopPLogitsWarper(case["topP"]))
    if "minP" in case:
        steps.append(MinPLogitsWarper(case["minP"]))
    probabilities = torch.softmax(steps(torch.tensor([seen]), logits.clone()), -1)[0]
    return {at: float(f"{p:.7g}") for at, p in enumerate(probabilities.tolist()) if p > 0}


path = pathlib.Path(__file__).with_suffix(".json")
written = [{"settings": case, "probabilities": distribution(case)} for case in cases]
path.write_text(json.dumps({"seen": seen, "cases": written}, indent=1) + "\n")
