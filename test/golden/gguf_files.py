"""Small GGUF files made by the gguf package, and what other programs read in them. Writes into the folder gguf beside itself.

    python3 -m venv VENV
    VENV/bin/pip install torch transformers==5.24.0 gguf==0.19.0 sentencepiece==0.2.3
    VENV/bin/python test/golden/gguf_files.py

quants.gguf      every type of tensor, made of random bytes, and beside it `<name>.expected`: what gguf.dequantize gives
llama.gguf       a model with Llama 3's scaled positions, a byte-level tokenizer and a chat template
qwen2.gguf       biases, a head of its own
qwen3.gguf       normalised queries and keys
pieces.gguf      a SentencePiece vocabulary alone
files.json       configurations and token ids by transformers, tokenizers and sentencepiece

The weights follow a formula that the test repeats (the one of llama.py).
"""

import io
import json
import math
import pathlib

import gguf
import numpy as np
import sentencepiece
import torch
from gguf import GGMLQuantizationType as Type
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from llama import fill

folder = pathlib.Path(__file__).parent / "gguf"

corpus = """A bell rings, then a drum is struck 12 times; it's louder than the siren we've heard in 2024.
The dog isn't barking any more, and they'll say that nothing else was recorded: 3.14159 seconds of silence.
    for (let i = 0; i < 10; i++) { total += samples[i] * weights[i]; }
Die Glocke läutet, der Hund bellt; où est la musique ? 音楽はどこですか。 Колокол звонит.
""" * 3

texts = [
    "A bell rings, then a drum.",
    " leading and trailing spaces  ",
    "it's IT'S we'VE they'll don't 'tis",
    "12 345 6789 1,000,000.50 3x4 v2.0",
    "tabs\tand\n\nnew lines \r\n  \n   indented   code: x+=1;",
    "    for (int i=0;i<10;i++) { a[i] = b[i] * 0x1F; } // done!",
    "naïve café Ünïcödé ǅ ﬁ ½ ² ٣٤ Ⅷ",
    "音楽 は 楽しい。 Привет, мир! שלום عالم",
    "emoji 👩‍👩‍👧 🎵🎶 and ​zero width﻿ marks\u0085next",
    "e\u0301 combining a\u0308",
    "<|im_start|>user\nhello<|im_end|>\n",
    "",
]
contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
rest = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
llama3 = contractions + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + rest
qwen2 = contractions + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + rest
special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level(False)])


# As the tokenizer.json files of SmolLM2, GPT-2, Llama 3 and Qwen2 have them.
splitting = {
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(True)]),
    "gpt-2": byte_level(True),
    "llama-bpe": split(llama3),
    "qwen2": split(qwen2),
}


def train_bytes():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitting["smollm"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([corpus], trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_ids(trained):
    model = json.loads(trained.to_str())["model"]
    ids = {}
    for pre, splits in splitting.items():
        merges = [tuple(merge) for merge in model["merges"]]
        tokenizer = Tokenizer(models.BPE(model["vocab"], merges, ignore_merges=pre == "llama-bpe"))
        tokenizer.add_special_tokens(special)
        tokenizer.pre_tokenizer = splits
        if pre == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
        ids[pre] = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    return ids


def add_byte_tokenizer(writer, trained):
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for message in messages %}{{ message.content }}{% endfor %}")


configs = {
    "llama": LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=400, rms_norm_eps=1e-5, tie_word_embeddings=True, max_position_embeddings=16384, bos_token_id=1,
        eos_token_id=2, pad_token_id=2,
        rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
    "qwen2": Qwen2Config(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=61, rms_norm_eps=1e-6, tie_word_embeddings=False, max_position_embeddings=128, bos_token_id=0,
        eos_token_id=1, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
    "qwen3": Qwen3Config(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=61, rms_norm_eps=1e-6, tie_word_embeddings=True, max_position_embeddings=128,
        bos_token_id=0, eos_token_id=1, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
}


def make_model(config):
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(fill(key, list(parameter.shape)))
    model.tie_weights()
    return model


def permuted(weights, heads):
    """Rows as the "llama" architecture has them: those half a head apart beside each other."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def rope_factors(config):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    half = config.head_dim // 2
    plain = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(half) / half)
    return (plain / scaled).numpy().astype(np.float32)


def write_model(arch, config, model, trained):
    path = folder / f"{arch}.gguf"
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if arch == "llama":
        writer.add_rope_dimension_count(config.head_dim)
        add_byte_tokenizer(writer, trained)
        writer.add_tensor("rope_freqs.weight", rope_factors(config))
    if arch == "qwen3":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, arch.upper()), config.num_hidden_layers)
    for key, parameter in model.named_parameters():
        weights = parameter.detach().numpy()
        if arch == "llama" and (".q_proj." in key or ".k_proj." in key):
            weights = permuted(weights, config.num_attention_heads if ".q_proj." in key else config.num_key_value_heads)
        writer.add_tensor(names.get_name(key, (".weight", ".bias")), np.ascontiguousarray(weights))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if arch == "llama":
        again = AutoModelForCausalLM.from_pretrained(folder, gguf_file=path.name)
        for (key, own), (_, theirs) in zip(model.named_parameters(), again.named_parameters()):
            assert torch.equal(own, theirs), key
    keys = ["model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "vocab_size", "rms_norm_eps", "tie_word_embeddings",
            "max_position_embeddings", "hidden_act", "attention_bias", "mlp_bias", "use_sliding_window",
            "bos_token_id", "eos_token_id", "rope_parameters"]
    described = config.to_dict()
    return {key: described[key] for key in keys if key in described}


def write_quants():
    random = np.random.default_rng(7)
    writer = gguf.GGUFWriter(folder / "quants.gguf", "none")
    half_at = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
               "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
    for name in ["F16", "BF16", *half_at]:
        kind = Type[name]
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        if elements == 1:
            numbers = np.concatenate([random.normal(size=500), [0, -0.0, 1e-7, -6e-8, 65504, 1e-5, 2, -3, 0.1, 7e-6, 1, -1]])
            stored = gguf.quantize(numbers.astype(np.float32).reshape(2, 256), kind)
        else:
            blocks = random.integers(0, 256, size=(512 // elements, size), dtype=np.uint8)
            for at in half_at[name]:
                scales = (random.normal(size=len(blocks)) * 0.1).astype(np.float16)
                blocks[:, at:at + 2] = scales.view(np.uint8).reshape(-1, 2)
            stored = blocks.reshape(2, -1)
        writer.add_tensor(name, stored, raw_dtype=kind)
        writer.add_tensor(f"{name}.expected", gguf.dequantize(stored, kind).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_pieces():
    """A vocabulary as Llama 2 has it: SentencePiece's BPE with bytes for what it does not know."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus.split("\n")), model_writer=trained, model_type="bpe", vocab_size=420,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True,
        character_coverage=0.98, minloglevel=2)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    count = range(pieces.vocab_size())
    kind = lambda at: (gguf.TokenType.UNKNOWN if pieces.is_unknown(at) else gguf.TokenType.CONTROL if pieces.is_control(at)
                       else gguf.TokenType.BYTE if pieces.is_byte(at) else gguf.TokenType.NORMAL)
    writer = gguf.GGUFWriter(folder / "pieces.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([pieces.id_to_piece(at) for at in count])
    writer.add_token_scores([pieces.get_score(at) for at in count])
    writer.add_token_types([kind(at) for at in count])
    writer.add_bos_token_id(pieces.bos_id())
    writer.add_eos_token_id(pieces.eos_id())
    writer.add_unk_token_id(pieces.unk_id())
    writer.add_add_bos_token(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return [pieces.encode(text) for text in texts]


def main():
    folder.mkdir(exist_ok=True)
    write_quants()
    trained = train_bytes()
    golden = {
        "texts": texts,
        "bytes": byte_ids(trained),
        "pieces": write_pieces(),
        "configs": {arch: write_model(arch, config, make_model(config), trained) for arch, config in configs.items()},
    }
    (folder / "files.json").write_text(json.dumps(golden, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    main()
