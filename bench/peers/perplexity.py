"""The perplexity of a text by transformers, on the dequantised weights of a GGUF file, and the token ids of some texts.

    echo '{"texts": ["Some text.", "More."], "tokenizer": "FOLDER"}' | python bench/peers/perplexity.py FILE.gguf

The perplexity is that of the first text. `ids` are those of the tokenizer that transformers makes of the file, which
leaves out how the file says words are cut; `folderIds` those of the folder's tokenizer.json; `llamaIds` those of
llama.cpp, null where llama-cpp-python is not installed. Prints one JSON line.
"""
import json
import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def llama_ids(path, texts):
    try:
        from llama_cpp import Llama
    except ImportError:
        return None
    model = Llama(path, vocab_only=True, verbose=False)
    return [model.tokenize(text.encode(), add_bos=False, special=True) for text in texts]


def main():
    asked = json.load(sys.stdin)
    folder, name = os.path.split(os.path.abspath(sys.argv[1]))
    torch.set_num_threads(2)

    def ids_of(tokenizer):
        return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in asked["texts"]]

    ids = ids_of(AutoTokenizer.from_pretrained(folder, gguf_file=name))
    folder_ids = ids_of(AutoTokenizer.from_pretrained(asked["tokenizer"]))
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    tokens = torch.tensor([folder_ids[0]])
    with torch.inference_mode():
        logits = model(tokens).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, tokens[0, 1:])
    print(json.dumps({
        "ids": ids, "folderIds": folder_ids, "llamaIds": llama_ids(sys.argv[1], asked["texts"]),
        "perplexity": float(loss.double().exp()),
    }))


main()
