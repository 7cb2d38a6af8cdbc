"""A model that says one thing: Qwen3's own tokenizer and chat template, and weights that make a chain of tokens.

The residual stream of a token is the token's embedding, since attention and feed-forward layers add nothing: their output
matrices are zero. Each token of the script has an element of its own, by which the output matrix finds the next one.
"""

import json
import pathlib
import shutil
import struct

HIDDEN = 64
# What is generated after each token; the last token of a prompt comes first.
THINKS = ["\n", "<think>", "hm", "</think>", "Hello", " world", "!", "<|im_end|>"]
SAYS = ["\n\n", "Hello"]


def write_tensors(path, tensors):
    """A safetensors file of names, shapes and bytes in f32."""
    header, offset = {}, 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    head = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for _, data in tensors.values():
            file.write(data)


def token_ids(tokenizer):
    ids = dict(tokenizer["model"]["vocab"])
    ids.update({token["content"]: token["id"] for token in tokenizer["added_tokens"]})
    # Byte-level tokens write a space and a line break as other characters.
    return lambda text: ids[text.replace(" ", "Ġ").replace("\n", "Ċ")]


def write_model(source, folder):
    """The folder of the model; `source` has Qwen3's tokenizer."""
    folder = pathlib.Path(folder)
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(pathlib.Path(source) / name, folder)
    of = token_ids(json.loads((folder / "tokenizer.json").read_text()))
    vocabulary = 151936
    embedding, output = bytearray(4 * vocabulary * HIDDEN), bytearray(4 * vocabulary * HIDDEN)
    places = {}
    for chain in [THINKS, SAYS]:
        for token, following in zip(chain, chain[1:]):
            place = places.setdefault(token, len(places))
            struct.pack_into("<f", embedding, 4 * (of(token) * HIDDEN + place), 1.0)
            struct.pack_into("<f", output, 4 * (of(following) * HIDDEN + place), 4.0)
    square = ([HIDDEN, HIDDEN], bytes(4 * HIDDEN * HIDDEN))
    ones = ([HIDDEN], struct.pack(f"<{HIDDEN}f", *[1.0] * HIDDEN))
    head = ([16], struct.pack("<16f", *[1.0] * 16))
    layer = "model.layers.0."
    tensors = {
        "model.embed_tokens.weight": ([vocabulary, HIDDEN], bytes(embedding)),
        "lm_head.weight": ([vocabulary, HIDDEN], bytes(output)),
        "model.norm.weight": ones,
        layer + "input_layernorm.weight": ones,
        layer + "post_attention_layernorm.weight": ones,
        layer + "self_attn.q_norm.weight": head,
        layer + "self_attn.k_norm.weight": head,
    }
    tensors |= {f"{layer}self_attn.{name}_proj.weight": square for name in "qkvo"}
    tensors |= {f"{layer}mlp.{name}_proj.weight": square for name in ["gate", "up", "down"]}
    write_tensors(folder / "model.safetensors", tensors)
    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", "vocab_size": vocabulary,
        "hidden_size": HIDDEN, "intermediate_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 16, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "tie_word_embeddings": False, "eos_token_id": of("<|im_end|>"), "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder
