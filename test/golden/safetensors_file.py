"""Writes mixed.safetensors with the reference implementation, and reads files of ours with it.

    pip install safetensors==0.8.0 numpy
    python test/golden/safetensors_file.py             # writes test/golden/mixed.safetensors
    python test/golden/safetensors_file.py read FILE   # prints name, dtype, shape and sum of a file of ours

numpy has no bfloat16, so that tensor is written from its bit patterns.
"""

import sys
from pathlib import Path

import numpy as np
from safetensors import TensorSpec, safe_open, serialize_file

here = Path(__file__).parent


arrays = []  # the specifications hold bare addresses


def entry(array, dtype):
    arrays.append(array)
    return TensorSpec(
        dtype=dtype, shape=list(array.shape), data_ptr=array.ctypes.data, data_len=array.nbytes
    )


def write():
    tensors = {
        "weights.f32": entry(np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "float32"),
        "weights.f16": entry(np.array([0, -0.0, 1, 65504, 6e-8, np.inf], dtype=np.float16), "float16"),
        "weights.bf16": entry(np.array([0x0000, 0x3F80, 0xC040, 0x7F80], dtype=np.uint16), "bfloat16"),
        "weights.f64": entry(np.array([np.pi, -np.e], dtype=np.float64), "float64"),
        "counts.i32": entry(np.array([[-(2**31)], [2**31 - 1]], dtype=np.int32), "int32"),
        "counts.i64": entry(np.array([-(2**63), 2**63 - 1], dtype=np.int64), "int64"),
        "mask.bool": entry(np.array([True, False, True], dtype=np.bool_), "bool"),
        "scalar": entry(np.array(0.5, dtype=np.float32), "float32"),
        "empty": entry(np.zeros((0, 4), dtype=np.float32), "float32"),
    }
    serialize_file(tensors, str(here / "mixed.safetensors"), metadata={"format": "np", "note": "звук"})


def read(path):
    with safe_open(path, framework="np") as file:
        print("metadata", file.metadata())
        for name in sorted(file.keys()):
            piece = file.get_slice(name)
            dtype = piece.get_dtype()
            total = "-" if dtype == "BF16" else file.get_tensor(name).astype(np.float64).sum()
            print(name, dtype, piece.get_shape(), total)


if sys.argv[1:2] == ["read"]:
    read(sys.argv[2])
else:
    write()
