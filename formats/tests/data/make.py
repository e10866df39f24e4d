"""Makes the golden container files of this folder with the reference writers.

    python make.py LLAMA_GGUF_SPLIT

Needs the Python packages mlx[cpu], gguf and numpy, and llama.cpp's llama-gguf-split.
README.md records the versions and the checksums of the files that were made.
"""

import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np

HERE = Path(__file__).parent


def header(path):
    """Everything in front of the tensor bytes of a safetensors file."""
    data = Path(path).read_bytes()
    return data[: 8 + struct.unpack("<Q", data[:8])[0]]


def fnv1a(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def layer_name(index):
    """The names of the tests' synthetic models: they repeat this formula."""
    return f"model.layers.{index // 7}.mlp.switch_mlp.part{index % 7}.weight"


def make_mlx(tmp):
    tensors = {
        "model.norm.weight": mx.array([1.5, -2.0, 0.25], mx.bfloat16),
        "lm_head.weight": mx.array([[1, 2], [3, 4]], mx.uint32),
        "A": mx.array(7.0, mx.float32),
        'odd "name"/\u00fc\n\u0001': mx.array([1, 2, 3], mx.uint8),
        "zz.scales": mx.array([[0.5]], mx.float16),
    }
    mx.save_safetensors(str(HERE / "mlx_small.safetensors"), tensors, metadata={"format": "mlx", "a": "b\\c"})
    mx.save_safetensors(str(HERE / "mlx_no_metadata.safetensors"), {"x": mx.array([1.0])})
    # One growth step of the hash map before and after: a digest of each header is enough.
    for count in [1, 13, 14, 29, 30, 60, 128, 541, 542, 1110, 2358, 5088, 10274]:
        path = str(tmp / "layers.safetensors")
        one = mx.array([1], mx.uint8)
        tensors = {layer_name(index): one for index in range(count)}
        mx.save_safetensors(path, tensors, metadata={"format": "mlx"})
        print(f"({count}, 0x{fnv1a(header(path)):016x}),")


def make_gguf(tmp, split_tool):
    source = tmp / "source.gguf"
    writer = gguf.GGUFWriter(source, "deepseek2")
    writer.add_uint8("test.u8", 255)
    writer.add_int8("test.i8", -128)
    writer.add_uint16("test.u16", 65535)
    writer.add_int16("test.i16", -32768)
    writer.add_uint32("test.u32", 4294967295)
    writer.add_int32("test.i32", -2147483648)
    writer.add_float32("test.f32", 1e-6)
    writer.add_bool("test.bool", True)
    writer.add_string("test.string", "caf\u00e9 \u2581")
    writer.add_uint64("test.u64", 2**64 - 1)
    writer.add_int64("test.i64", -(2**63))
    writer.add_float64("test.f64", 0.1)
    writer.add_array("test.strings", ["<s>", "", "\u0120a"])
    writer.add_array("test.i32s", [1, -2, 3])
    writer.add_array("test.f32s", [0.5, -1.0])
    writer.add_array("test.bools", [True, False])
    writer.add_array("test.u8s", b"\x00\xff")
    for name, shape, kind in [
        ("token_embd.weight", (3, 32), "F32"),
        ("blk.0.attn_q.weight", (2, 32), "Q4_0"),
        ("blk.0.attn_k.weight", (1, 256), "Q4_K"),
        ("blk.0.ffn_down_exps.weight", (2, 3, 32), "Q8_0"),
        ("blk.0.exp_probs_b.bias", (5,), "F32"),
        ("output.weight", (1, 256), "Q6_K"),
        ("blk.0.one", (1, 1, 4, 2), "F16"),
    ]:
        kind = gguf.GGMLQuantizationType[kind]
        block_len, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        row_bytes = shape[-1] // block_len * block_bytes
        data = np.arange(np.prod(shape[:-1], dtype=int) * row_bytes, dtype=np.uint8).reshape(*shape[:-1], row_bytes)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    # Splitting and merging makes ggml itself write the file.
    split(split_tool, "--split", "--split-max-tensors", "3", source, tmp / "parts")
    split(split_tool, "--merge", tmp / "parts-00001-of-00003.gguf", HERE / "all_types.gguf")
    for path in sorted(tmp.glob("parts-*")):
        (HERE / path.name).write_bytes(path.read_bytes())


def make_split_by_size(tmp, split_tool):
    """Headers of a set split at 1 MB, with tensors that meet, cross and exceed the limit."""
    source = tmp / "sizes.gguf"
    writer = gguf.GGUFWriter(source, "deepseek2")
    writer.add_string("general.name", "sizes")
    for index, count in enumerate([100_000, 150_000, 1, 249_992, 300_000, 250_000, 7, 9, 249_984]):
        writer.add_tensor(f"t{index}", np.zeros(count, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    split(split_tool, "--split", "--split-max-size", "1M", source, tmp / "sizes")
    sizes = []
    for path in sorted(tmp.glob("sizes-*")):
        reader = gguf.GGUFReader(path)
        (HERE / f"{path.name}.header").write_bytes(path.read_bytes()[: reader.data_offset])
        sizes.append(path.stat().st_size)
    print("file sizes of the set:", json.dumps(sizes))


def split(tool, *arguments):
    subprocess.run([tool, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        make_mlx(tmp)
        make_gguf(tmp, sys.argv[1])
        make_split_by_size(tmp, sys.argv[1])
