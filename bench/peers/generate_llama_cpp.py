"""Greedy decoding of bench/generate in llama.cpp, float32.

    python bench/peers/generate_llama_cpp.py --shape smollm2-135m --prompt 64 --tokens 64

Writes an F32 GGUF file with random weights, which does not change the work, and removes it. Prints one JSON line:
milliseconds of the prompt and of each new token, the peak resident memory, the version.
"""
import argparse
import json
import os
import resource
import tempfile
import time

import gguf
import llama_cpp
import numpy

SHAPES = {
    "tiny": dict(hidden=192, intermediate=512, layers=8, heads=6, kv_heads=2, width=32, vocabulary=4096),
    "smollm2-135m": dict(hidden=576, intermediate=1536, layers=30, heads=9, kv_heads=3, width=64, vocabulary=49152),
}


def write_model(path, hidden, intermediate, layers, heads, kv_heads, width, vocabulary):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(intermediate)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(vocabulary)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("no_vocab")
    draw = numpy.random.default_rng(0)
    matrix = lambda rows, columns: (0.02 * draw.standard_normal((rows, columns), dtype=numpy.float32))
    norm = lambda: numpy.ones(hidden, dtype=numpy.float32)
    writer.add_tensor("token_embd.weight", matrix(vocabulary, hidden))
    writer.add_tensor("output_norm.weight", norm())
    for layer in range(layers):
        tensors = {
            "attn_norm": norm(), "ffn_norm": norm(),
            "attn_q": matrix(heads * width, hidden), "attn_k": matrix(kv_heads * width, hidden),
            "attn_v": matrix(kv_heads * width, hidden), "attn_output": matrix(hidden, heads * width),
            "ffn_gate": matrix(intermediate, hidden), "ffn_up": matrix(intermediate, hidden),
            "ffn_down": matrix(hidden, intermediate),
        }
        for name, values in tensors.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


parser = argparse.ArgumentParser()
parser.add_argument("--shape", default="smollm2-135m")
parser.add_argument("--prompt", type=int, default=64)
parser.add_argument("--tokens", type=int, default=64)
options = parser.parse_args()

shape = SHAPES[options.shape]
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "f32.gguf")
    write_model(path, **shape)
    model = llama_cpp.Llama(path, n_ctx=options.prompt + options.tokens + 8, n_threads=2, n_threads_batch=2,
                            type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, verbose=False)
    ids = numpy.random.default_rng(1).integers(0, shape["vocabulary"], options.prompt).tolist()
    times, last = [], time.perf_counter()
    model.eval(ids)
    for _ in range(options.tokens + 1):
        # Greedy over the logits as they lie in memory, as palkit does; the package's sampler copies them several times.
        logits = numpy.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model.ctx, -1), shape=(shape["vocabulary"],))
        token = int(logits.argmax())
        now = time.perf_counter()
        times.append(1000 * (now - last))
        last = now
        model.eval([token])
print(json.dumps({
    "times": times, "peakMB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
    "version": f"llama.cpp by llama-cpp-python {llama_cpp.__version__}",
}))
