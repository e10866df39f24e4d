#!/usr/bin/env python3
"""Makes a slice of DeepSeek-V3 at its real dimensions, filled with seeded noise.

    make_slice.py OUT [--experts 32] [--moe-layers 1] [--seed 0] [--tokenizer DIR]

One dense layer and some MoE layers: hidden 7168, 128 heads, experts of 2048, FP8 E4M3 in blocks of
128 x 128 with F32 scales, as the hub stores the model; shards of about 1 GB; no prediction layer.
With 32 experts: 2.3 G parameters. The tokenizer (and so the vocabulary, padded to 4096) is copied
from DIR, the repository's fixture by default. Standard library only, no download.

The weights follow a normal distribution: a random byte is looked up in a table of its 256
quantiles as E4M3 codes. That is all a converter can notice of a real model's weights.
"""

import argparse
import json
import pathlib
import random
import shutil
import statistics
import struct

HIDDEN, HEADS, Q_LORA, KV_LORA, NOPE, ROPE, V = 7168, 128, 1536, 512, 128, 64, 128
DENSE, EXPERT, VOCAB, BLOCK = 18432, 2048, 4096, 128
SHARD_BYTES = 1 << 30
TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"]


def e4m3_code(value):
    """The E4M3 code nearest to `value` (no overflow here: |value| < 448)."""
    best = min(range(127), key=lambda code: abs(e4m3_value(code) - abs(value)))
    return best | (0x80 if value < 0 else 0)


def e4m3_value(code):
    exponent, mantissa = code >> 3, code & 7
    return mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)


def normal_codes():
    """E4M3 codes of the 256 quantiles of a normal distribution whose largest is near 448."""
    normal = statistics.NormalDist()
    return bytes(e4m3_code(150 * normal.inv_cdf((i + 0.5) / 256)) for i in range(256))


def bf16_high_bytes():
    """Upper bytes of BF16 numbers around +-0.02."""
    return bytes((0x3C if i % 2 else 0xBC) - (i >> 6) // 2 for i in range(256))


class Writer:
    """Writes safetensors shards and the index."""

    def __init__(self, out, seed):
        self.out, self.random = out, random.Random(seed)
        self.codes, self.high = normal_codes(), bf16_high_bytes()
        self.pending, self.pending_bytes, self.shards, self.index = [], 0, [], {}

    def fp8(self, name, rows, cols):
        self.add(name, "F8_E4M3", [rows, cols], rows * cols)
        blocks = [-(-rows // BLOCK), -(-cols // BLOCK)]
        self.add(name + "_scale_inv", "F32", blocks, 4 * blocks[0] * blocks[1])

    def bf16(self, name, *shape):
        size = 2
        for dimension in shape:
            size *= dimension
        self.add(name, "BF16", list(shape), size)

    def add(self, name, dtype, shape, size):
        if self.pending and self.pending_bytes + size > SHARD_BYTES:
            self.flush()
        self.pending.append((name, dtype, shape, size))
        self.pending_bytes += size

    def flush(self):
        header, offset = {}, 0
        for name, dtype, shape, size in self.pending:
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path = self.out / f"shard-{len(self.shards)}.tmp"
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name, dtype, _, size in self.pending:
                self.write_data(file, name, dtype, size)
        self.shards.append((path, [tensor[0] for tensor in self.pending]))
        self.pending, self.pending_bytes = [], 0

    def write_data(self, file, name, dtype, size):
        step = 1 << 24
        for start in range(0, size, step):
            n = min(step, size - start)
            if dtype == "F8_E4M3":
                file.write(self.random.randbytes(n).translate(self.codes))
            elif dtype == "BF16":
                data = bytearray(self.random.randbytes(n))
                data[1::2] = bytes(data[1::2]).translate(self.high)
                file.write(data)
            elif name.endswith("e_score_correction_bias"):
                file.write(struct.pack(f"<{n // 4}f", *(self.random.uniform(-1, 1) for _ in range(n // 4))))
            else:
                scales = (self.random.uniform(0.5e-4, 2e-4) for _ in range(n // 4))
                file.write(struct.pack(f"<{n // 4}f", *scales))

    def finish(self):
        self.flush()
        weight_map, total = {}, 0
        for number, (path, names) in enumerate(self.shards, 1):
            final = f"model-{number:05}-of-{len(self.shards):06}.safetensors"
            total += path.stat().st_size
            path.rename(self.out / final)
            weight_map.update(dict.fromkeys(names, final))
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (self.out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def write_layer(writer, layer, experts):
    prefix = f"model.layers.{layer}."
    attention = prefix + "self_attn."
    writer.bf16(prefix + "input_layernorm.weight", HIDDEN)
    writer.fp8(attention + "q_a_proj.weight", Q_LORA, HIDDEN)
    writer.bf16(attention + "q_a_layernorm.weight", Q_LORA)
    writer.fp8(attention + "q_b_proj.weight", HEADS * (NOPE + ROPE), Q_LORA)
    writer.fp8(attention + "kv_a_proj_with_mqa.weight", KV_LORA + ROPE, HIDDEN)
    writer.bf16(attention + "kv_a_layernorm.weight", KV_LORA)
    writer.fp8(attention + "kv_b_proj.weight", HEADS * (NOPE + V), KV_LORA)
    writer.fp8(attention + "o_proj.weight", HIDDEN, HEADS * V)
    writer.bf16(prefix + "post_attention_layernorm.weight", HIDDEN)
    if experts == 0:
        write_ffn(writer, prefix + "mlp.", DENSE)
        return
    writer.bf16(prefix + "mlp.gate.weight", experts, HIDDEN)
    writer.add(prefix + "mlp.gate.e_score_correction_bias", "F32", [experts], 4 * experts)
    for expert in range(experts):
        write_ffn(writer, f"{prefix}mlp.experts.{expert}.", EXPERT)
    write_ffn(writer, prefix + "mlp.shared_experts.", EXPERT)


def write_ffn(writer, prefix, width):
    writer.fp8(prefix + "gate_proj.weight", width, HIDDEN)
    writer.fp8(prefix + "up_proj.weight", width, HIDDEN)
    writer.fp8(prefix + "down_proj.weight", HIDDEN, width)


def config(experts, moe_layers):
    groups = 8 if experts % 8 == 0 else 1
    return {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "attention_bias": False,
        "bos_token_id": 0, "eos_token_id": 1, "first_k_dense_replace": 1, "hidden_act": "silu",
        "hidden_size": HIDDEN, "initializer_range": 0.02, "intermediate_size": DENSE, "kv_lora_rank": KV_LORA,
        "max_position_embeddings": 163840, "moe_intermediate_size": EXPERT, "moe_layer_freq": 1,
        "n_group": groups, "n_routed_experts": experts, "n_shared_experts": 1, "norm_topk_prob": True,
        "num_attention_heads": HEADS, "num_experts_per_tok": min(8, experts),
        "num_hidden_layers": 1 + moe_layers, "num_key_value_heads": HEADS, "num_nextn_predict_layers": 0,
        "q_lora_rank": Q_LORA, "qk_nope_head_dim": NOPE, "qk_rope_head_dim": ROPE, "v_head_dim": V,
        "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                                "weight_block_size": [BLOCK, BLOCK]},
        "rms_norm_eps": 1e-06, "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
        "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                         "original_max_position_embeddings": 4096, "type": "yarn"},
        "tie_word_embeddings": False, "topk_group": min(4, groups), "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16", "vocab_size": VOCAB,
    }  # fmt: skip


def main():
    fixture = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "tiny-deepseek-v3"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--moe-layers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=pathlib.Path, default=fixture)
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True)
    writer = Writer(arguments.out, arguments.seed)
    writer.bf16("model.embed_tokens.weight", VOCAB, HIDDEN)
    for layer in range(1 + arguments.moe_layers):
        write_layer(writer, layer, arguments.experts if layer else 0)
    writer.bf16("model.norm.weight", HIDDEN)
    writer.bf16("lm_head.weight", VOCAB, HIDDEN)
    writer.finish()
    text = json.dumps(config(arguments.experts, arguments.moe_layers), indent=2)
    (arguments.out / "config.json").write_text(text + "\n")
    for name in TOKENIZER_FILES:
        if (arguments.tokenizer / name).exists():
            shutil.copy(arguments.tokenizer / name, arguments.out / name)


if __name__ == "__main__":
    main()
