"""Write the fixtures of golden.rs: logits and greedy tokens of small random Qwen3 models, by transformers.

    pip install torch transformers tokenizers numpy
    python make_golden.py            # rewrites the JSON files beside this script, and demo/loss.json

No weights are stored. Both sides make them from the same formula: element i of a tensor is
scale * (n - 2^23) / 2^23, where n is the upper 24 bits of splitmix64(fnv1a(name) + (i + 1) * 0x9e3779b97f4a7c15),
and norms add an offset. Each model is run in float32 over its weights, and in float32 over its weights rounded to
bfloat16 (the reference for bf16 weights, whose sums are f32 here too). How far transformers' own bfloat16 run is from
that is recorded for comparison.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

NEW_TOKENS = 24
LOGIT_STEPS = 3
MASK = (1 << 64) - 1

# name, hidden, intermediate, layers, query heads, KV heads, head_dim, vocabulary, tied, bias, theta, eps, prompt
MODELS = [
    ("gqa-6-2-dim-64-tied", 64, 160, 2, 6, 2, 64, 203, True, False, 1e4, 1e-6, 40),
    ("gqa-5-1-dim-80-untied", 80, 200, 3, 5, 1, 80, 199, False, False, 1e6, 1e-6, 33),
    ("gqa-3-3-dim-128-tied", 96, 224, 2, 3, 3, 128, 211, True, False, 1e6, 1e-5, 17),
    ("gqa-8-4-dim-64-bias", 96, 176, 3, 8, 4, 64, 208, False, True, 1e4, 1e-6, 64),
    ("gqa-4-2-dim-128-long", 72, 136, 2, 4, 2, 128, 197, True, False, 5e5, 1e-6, 1100),
    ("gqa-7-7-dim-80-bias-tied", 88, 152, 2, 7, 7, 80, 200, True, True, 1e4, 1e-6, 5),
]


def fnv1a(name):
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    return h


def noise(name, count):
    """float32 values in [-1, 1), exact."""
    with np.errstate(over="ignore"):
        x = np.uint64(fnv1a(name)) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return ((x >> np.uint64(40)).astype(np.float32) - np.float32(2**23)) / np.float32(2**23)


def make_tensor(name, shape):
    values = noise(name, math.prod(shape))
    if name.endswith("norm.weight"):
        values = np.float32(1.25) + np.float32(0.5) * values
    elif name.endswith(".bias"):
        values = np.float32(0.75) * values
    else:
        # Uniform noise has a variance of 1/3: 3 makes logits, 2 the layers' sums, of that deviation.
        gain = 3.0 if "embed" in name or "lm_head" in name else 2.0
        values = np.float32(gain * math.sqrt(3.0 / shape[-1])) * values
    return torch.from_numpy(values.reshape(shape))


def make_config(row):
    _, hidden, inner, layers, heads, kv_heads, head_dim, vocab, tied, bias, theta, eps, _ = row
    return Qwen3Config(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim, max_position_embeddings=4096,
        tie_word_embeddings=tied, attention_bias=bias, rms_norm_eps=eps,
        rope_parameters={"rope_type": "default", "rope_theta": theta}, bos_token_id=None, eos_token_id=None,
        architectures=["Qwen3ForCausalLM"])


def make_model(config, dtype, rounded):
    model = Qwen3ForCausalLM(config).eval()
    state = {}
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        tensor = make_tensor(name, tuple(parameter.shape))
        state[name] = tensor.to(torch.bfloat16).float() if rounded else tensor
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model.to(dtype)


@torch.no_grad()
def run(model, prompt):
    ids, logits, margin = list(prompt), [], math.inf
    for step in range(NEW_TOKENS):
        row = model(torch.tensor([ids])).logits[0, -1].float()
        top = row.topk(2).values
        margin = min(margin, float(top[0] - top[1]))
        if step < LOGIT_STEPS:
            logits.append(row)
        ids.append(int(row.argmax()))
    return ids[len(prompt):], torch.stack(logits), margin


@torch.no_grad()
def run_forced(model, prompt, tokens):
    ids, logits = list(prompt), []
    for step in range(LOGIT_STEPS):
        logits.append(model(torch.tensor([ids])).logits[0, -1].float())
        ids.append(tokens[step])
    return torch.stack(logits)


@torch.no_grad()
def demo_loss(folder, windows=4, window=512):
    """Mean loss of the repository's trained model over the first windows of its held-out text."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode((folder / "heldout.txt").read_text(), add_special_tokens=False).ids
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    losses = []
    for start in range(0, windows * window, window):
        x = torch.tensor([ids[start:start + window]])
        losses.append(torch.nn.functional.cross_entropy(model(x).logits[0, :-1].double(), x[0, 1:]).item())
    return {"windows": windows, "window": window, "loss": sum(losses) / windows}


def main():
    torch.manual_seed(0)
    here = Path(__file__).parent
    (here / "demo").mkdir(exist_ok=True)
    loss = demo_loss(here.parents[3] / "models" / "demo")
    (here / "demo" / "loss.json").write_text(json.dumps(loss) + "\n")
    for row in MODELS:
        name, vocab, length = row[0], row[7], row[12]
        config = make_config(row)
        # The first prompt whose greedy tokens do not hang on a rounding.
        for attempt in range(100):
            prompt = [int(n) for n in (noise(f"{name} prompt {attempt}", length) + 1) * vocab // 2]
            runs = {}
            for dtype, rounded in [("f32", False), ("bf16", True)]:
                tokens, logits, margin = run(make_model(config, torch.float32, rounded), prompt)
                runs[dtype] = (tokens, logits, margin)
            if min(margin for _, _, margin in runs.values()) > 0.01:
                break
        else:
            raise SystemExit(f"{name}: every prompt leads to a near tie")
        own = run_forced(make_model(config, torch.bfloat16, True), prompt, runs["bf16"][0])
        fields = ["architectures", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                  "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps",
                  "tie_word_embeddings", "attention_bias", "rope_parameters", "hidden_act", "use_sliding_window",
                  "sliding_window", "eos_token_id", "model_type"]
        written = config.to_dict()
        fixture = {
            "made_by": f"make_golden.py with torch {torch.__version__}, transformers {transformers.__version__}",
            "config": {key: written[key] for key in fields if key in written},
            "prompt": prompt,
            "runs": {
                dtype: {"min_margin": round(margin, 4), "tokens": tokens,
                        "logits": [[round(float(x), 5) for x in step] for step in logits]}
                for dtype, (tokens, logits, margin) in runs.items()
            },
            "transformers_bf16_max_abs_diff": round(float((own - runs["bf16"][1]).abs().max()), 4),
        }
        text = json.dumps(fixture, separators=(",", ":"))
        (here / f"{name}.json").write_text(text.replace('],"', '],\n"').replace("],[", "],\n[") + "\n")
        margins = [round(margin, 3) for _, _, margin in runs.values()]
        spread = float(runs["f32"][1].std())
        print(f"{name}: attempt {attempt}, margins {margins}, logits' deviation {spread:.2f}, "
              f"distinct tokens {len(set(runs['f32'][0]))}, own bf16 off by {fixture['transformers_bf16_max_abs_diff']}")


if __name__ == "__main__":
    main()
