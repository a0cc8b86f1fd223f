"""Writes tokenizer.json here: tokenizers made by Hugging Face's own library and the ids they give.

    pip install tokenizers==0.23.3
    python test/golden/tokenizer.py

`documents` are what the first tokenizer was trained on, so that its training can be repeated elsewhere.
"""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

here = Path(__file__).parent

sounds = ["bell", "drum", "whistle", "siren", "rain"]
documents = []
for a in sounds:
    for b in sounds:
        documents.append(f"Question: Is there a {a} before the {b}? Answer: {'yes' if a < b else 'no'}")
        documents.append(f"Question: Which sound is louder? Options: {a}, {b}. Answer: {max(a, b)}")
    documents.append(f"I hear the {a}, and it isn't a {a[::-1]}; they've heard {len(a) * 17} of them.\n\n  aaaa {a * 3}")
documents.append("Сначала звенит звонок, потом звучит сирена. 警笛の音 🔔🔔")

texts = [
    "",
    " ",
    "bell",
    " bell",
    "Question: Is there a bell before the siren? Answer: yes",
    "Answer:",
    " whistle",
    "Answer: whistle",
    "We've heard 1234 BELLS, haven't we?\n\n\ttabs   and spaces  ",
    "Сначала звенит колокол, а затем сирена: да или нет?",
    "naïve café \u00a0 \u2028 🔔👩‍🚒 e\u0301 \u0000 \ufffd",
    "aaaaaaa abcabcabc",
    "<pad>bell<end> <unk>",
]


def case(name, tokenizer, config):
    encodings = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    return {
        "name": name,
        "tokenizer": json.loads(tokenizer.to_str()),
        "config": config,
        "texts": [
            {
                "text": text,
                "ids": ids,
                "decoded": tokenizer.decode(ids, skip_special_tokens=False),
                "plain": tokenizer.decode(ids, skip_special_tokens=True),
            }
            for text, ids in zip(texts, encodings)
        ],
    }


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=368,
        min_frequency=2,
        special_tokens=["<pad>", "<begin>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def template_of_llama_3():
    """Words cut by a pattern of its own, numbers of up to three digits, a begin token in the template."""
    tokenizer = Tokenizer(models.BPE())
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<begin>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<begin> $A", special_tokens=[("<begin>", tokenizer.token_to_id("<begin>"))]
    )
    return tokenizer


def bytes_of_llama_2():
    """SentencePiece's manner: spaces are "▁", unknown characters fall back to byte tokens."""
    symbols = sorted({c for document in documents[:-1] for c in document.replace(" ", "▁")} | {"▁"})
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for symbol in symbols:
        vocab.setdefault(symbol, len(vocab))
    merges = []
    for word in ["▁bell", "▁the", "▁siren", "Answer"]:
        for end in range(1, len(word)):
            pair = (word[:end], word[end])
            if pair not in merges:
                merges.append(pair)
                vocab.setdefault(word[: end + 1], len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


golden = {
    "documents": documents,
    "cases": [
        case("byte-level", byte_level(), {"bos_token": "<begin>", "eos_token": "<end>", "pad_token": "<pad>"}),
        case(
            "Llama 3",
            template_of_llama_3(),
            {"bos_token": {"content": "<begin>", "lstrip": False}, "eos_token": "<end>", "pad_token": None},
        ),
        case("Llama 2", bytes_of_llama_2(), {"bos_token": "<s>", "eos_token": "</s>"}),
    ],
}
(here / "tokenizer.json").write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n")
