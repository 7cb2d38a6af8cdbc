"""Train a small Qwen3-architecture language model in plain PyTorch.

    python train.py --data DIR --out RUN                               # the main model
    python train.py --data DIR --out RUN --hidden 128 ... --teacher MAIN   # a draft model, distilled

Writes config.json, model.safetensors (bf16, Hugging Face names), loss.csv and
run.json to --out. The kept weights are those with the lowest validation loss;
validation runs on an exponential moving average of the weights.
"""

import argparse
import csv
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

EOT = 0


# ---------------------------------------------------------------- model

class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        f = x.float()
        f = f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight.to(x.dtype) * f.to(x.dtype)


def rope_table(length, head_dim, theta, device):
    freq = theta ** -(torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angle = torch.outer(torch.arange(length, device=device, dtype=torch.float32), freq)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-b, a], dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, hd = c["hidden_size"], c["head_dim"]
        self.heads, self.kv_heads, self.head_dim = c["num_attention_heads"], c["num_key_value_heads"], hd
        self.q_proj = nn.Linear(d, self.heads * hd, bias=False)
        self.k_proj = nn.Linear(d, self.kv_heads * hd, bias=False)
        self.v_proj = nn.Linear(d, self.kv_heads * hd, bias=False)
        self.o_proj = nn.Linear(self.heads * hd, d, bias=False)
        self.q_norm = RMSNorm(hd, c["rms_norm_eps"])
        self.k_norm = RMSNorm(hd, c["rms_norm_eps"])

    def forward(self, x, cos, sin, dropout):
        b, t, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(b, t, self.heads, self.head_dim)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(b, t, self.kv_heads, self.head_dim)).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, i = c["hidden_size"], c["intermediate_size"]
        self.gate_proj = nn.Linear(d, i, bias=False)
        self.up_proj = nn.Linear(d, i, bias=False)
        self.down_proj = nn.Linear(i, d, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.mlp = MLP(c)

    def forward(self, x, cos, sin, dropout):
        x = x + F.dropout(self.self_attn(self.input_layernorm(x), cos, sin, dropout), dropout, self.training)
        return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), dropout, self.training)


class Body(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])


class Qwen3(nn.Module):
    """Parameter names are those of Hugging Face's Qwen3ForCausalLM with tied embeddings."""

    def __init__(self, config, dropout=0.0):
        super().__init__()
        self.config, self.dropout = config, dropout
        self.model = Body(config)
        out_std = 0.02 / math.sqrt(2 * config["num_hidden_layers"])
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=out_std if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02)

    def hidden(self, ids):
        c = self.config
        p = self.dropout if self.training else 0.0
        cos, sin = rope_table(ids.shape[1], c["head_dim"], c["rope_theta"], ids.device)
        x = F.dropout(self.model.embed_tokens(ids), p, self.training)
        for layer in self.model.layers:
            x = layer(x, cos, sin, p)
        return self.model.norm(x)

    def head(self, x):
        return F.linear(x, self.model.embed_tokens.weight)

    def forward(self, ids):
        return self.head(self.hidden(ids))


def load_model(folder, device="cpu"):
    folder = Path(folder)
    model = Qwen3(json.loads((folder / "config.json").read_text()))
    weights = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    model.load_state_dict(weights)
    return model.to(device).eval()


# ---------------------------------------------------------------- optimizer

class Muon:
    """Momentum whose matrix updates are orthogonalized by a Newton-Schulz iteration.

    Matrices of one shape are handled as one batch, so a step is few kernels.
    """

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.1, steps=5):
        self.lr, self.momentum, self.weight_decay, self.steps = lr, momentum, weight_decay, steps
        shapes = {}
        for p in params:
            shapes.setdefault(tuple(p.shape), []).append(p)
        self.groups = [(ps, torch.zeros(len(ps), *shape, device=ps[0].device)) for shape, ps in shapes.items()]

    @staticmethod
    def orthogonalize(g, steps):
        x = g.bfloat16()
        x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
        flip = x.shape[-2] > x.shape[-1]
        x = x.mT if flip else x
        for _ in range(steps):
            a = x @ x.mT
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
        return x.mT if flip else x

    @torch.no_grad()
    def step(self, scale):
        for params, buf in self.groups:
            g = torch.stack([p.grad for p in params])
            buf.mul_(self.momentum).add_(g)
            u = self.orthogonalize(g + self.momentum * buf, self.steps).float()
            lr = self.lr * scale
            # An update with the root mean square that Adam's would have.
            u *= 0.2 * math.sqrt(max(u.shape[-2:]))
            torch._foreach_mul_(params, 1 - lr * self.weight_decay)
            torch._foreach_add_(params, list(u.unbind(0)), alpha=-lr)


# ---------------------------------------------------------------- data

class Split:
    def __init__(self, folder, name):
        self.tokens = np.fromfile(Path(folder) / f"{name}.bin", dtype="<u2").astype(np.int64)
        self.records = json.loads((Path(folder) / f"{name}.json").read_text())

    def stream(self, records):
        """<|endoftext|> document <|endoftext|> document ... <|endoftext|>"""
        parts = [np.array([EOT])]
        for r in records:
            parts += [self.tokens[r["start"]:r["start"] + r["tokens"]], np.array([EOT])]
        return np.concatenate(parts)

    def epoch(self, rng, context, test_share, dense=1.0):
        """Documents in random order, cut into windows of context + 1 at a random phase.

        Test-suite files with `dense` or more tokens per byte (numbers, escapes) are
        left out; of the others a random share is taken.
        """
        records = [r for r in self.records if r["kind"] != "test"
                   or (r["tokens"] < dense * r["bytes"] and rng.random() < test_share)]
        rng.shuffle(records)
        s = self.stream(records)
        s = s[rng.randrange(context):]
        n = (len(s) - 1) // context
        windows = np.lib.stride_tricks.sliding_window_view(s, context + 1)[: n * context: context].copy()
        order = list(range(n))
        rng.shuffle(order)
        return windows[order]

    def fixed(self, kind, context):
        """Non-overlapping windows over the documents of one kind; padded targets are -1."""
        records = [r for r in self.records if r["kind"] == kind]
        s = self.stream(records)
        n = -(-(len(s) - 1) // context)
        s = np.concatenate([s, np.full(n * context + 1 - len(s), -1)])
        x = np.stack([s[i * context:(i + 1) * context] for i in range(n)])
        y = np.stack([s[i * context + 1:(i + 1) * context + 1] for i in range(n)])
        return torch.from_numpy(np.maximum(x, 0)), torch.from_numpy(y), sum(r["bytes"] for r in records)


@torch.no_grad()
def evaluate(model, data, device, autocast, batch=32):
    """Summed negative log-likelihood in nats, and the number of scored tokens."""
    x, y, _ = data
    total, count = 0.0, 0
    for i in range(0, len(x), batch):
        xb, yb = x[i:i + batch].to(device), y[i:i + batch].to(device)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            logits = model(xb)
        total += F.cross_entropy(logits.float().flatten(0, 1), yb.flatten(), ignore_index=-1, reduction="sum").item()
        count += int((yb >= 0).sum())
    return total, count


# ---------------------------------------------------------------- training

def make_config(a):
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": a.vocab_size,
        "hidden_size": a.hidden,
        "intermediate_size": a.intermediate,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "head_dim": 64,
        "hidden_act": "silu",
        "max_position_embeddings": a.context,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "use_cache": True,
        "initializer_range": 0.02,
        "bos_token_id": EOT,
        "eos_token_id": EOT,
        "torch_dtype": "bfloat16",
    }


def save(folder, config, weights):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {k: v.detach().to(torch.bfloat16).contiguous().cpu() for k, v in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", type=Path, required=True)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--vocab-size", type=int, default=4096)
    ap.add_argument("--hidden", type=int, default=256)
    ap.add_argument("--intermediate", type=int, default=768)
    ap.add_argument("--layers", type=int, default=8)
    ap.add_argument("--heads", type=int, default=4)
    ap.add_argument("--kv-heads", type=int, default=2)
    ap.add_argument("--context", type=int, default=1024)
    ap.add_argument("--epochs", type=int, default=20)
    ap.add_argument("--batch", type=int, default=32, help="windows per step")
    ap.add_argument("--dropout", type=float, default=0.1)
    ap.add_argument("--optimizer", choices=["muon", "adamw"], default="muon")
    ap.add_argument("--lr", type=float, default=3e-3)
    ap.add_argument("--weight-decay", type=float, default=0.1)
    ap.add_argument("--ema", type=float, default=0.998)
    ap.add_argument("--test-share", type=float, default=1.0, help="share of the test-suite files in each epoch")
    ap.add_argument("--teacher", type=Path, help="distil from the model in this folder")
    ap.add_argument("--hard", type=float, default=0.1, help="weight of the plain loss when distilling")
    ap.add_argument("--time-limit", type=float, default=1e9, help="seconds; the schedule shrinks to end in time")
    ap.add_argument("--max-steps", type=int, default=10**9)
    ap.add_argument("--compile", action="store_true")
    ap.add_argument("--seed", type=int, default=1234)
    a = ap.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(a.seed)
    torch.set_float32_matmul_precision("high")
    rng = random.Random(a.seed)
    config = make_config(a)
    model = Qwen3(config, a.dropout).to(device)
    params = sum(p.numel() for p in model.parameters())
    train, valid = Split(a.data, "train"), Split(a.data, "valid")
    fixed = {kind: valid.fixed(kind, a.context) for kind in ("library", "test")}
    teacher = load_model(a.teacher, device).bfloat16() if a.teacher else None
    ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    shadow = Qwen3(config).to(device).eval()

    embedding = model.model.embed_tokens.weight
    matrices = [p for p in model.parameters() if p.dim() == 2 and p is not embedding]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    adam_groups = [{"params": [embedding] + vectors, "weight_decay": 0.0}]
    muon = None
    if a.optimizer == "muon":
        muon = Muon(matrices, a.lr, weight_decay=a.weight_decay)
    else:
        adam_groups.append({"params": matrices, "weight_decay": a.weight_decay})
    adam = torch.optim.AdamW(adam_groups, lr=a.lr, betas=(0.9, 0.95), fused=device == "cuda")
    def loss_fn(x, y):
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = model(x)
        logits = logits.float().flatten(0, 1)
        hard = F.cross_entropy(logits, y.flatten())
        if teacher is None:
            return hard, hard
        with torch.no_grad():
            target = teacher(x).float().flatten(0, 1).softmax(-1)
        soft = F.cross_entropy(logits, target)
        return a.hard * hard + (1 - a.hard) * soft, hard

    if a.compile:
        loss_fn = torch.compile(loss_fn)
    per_epoch = len(train.epoch(random.Random(0), a.context, a.test_share)) // a.batch
    total = min(per_epoch * a.epochs, a.max_steps)
    print(f"{params} parameters, {per_epoch} steps per epoch, {total} steps at most", flush=True)
    rows, best = [], (float("inf"), 0)
    start, step, done, epoch, running = time.time(), 0, False, 0, []
    progress, cooldown = 0.0, 0.6
    while not done:
        epoch += 1
        windows = torch.from_numpy(train.epoch(rng, a.context, a.test_share)).to(device)
        for i in range(len(windows) // a.batch):
            # Progress through the schedule: by steps, or by time where the limit comes first.
            progress = max(step / total, (time.time() - start) / a.time_limit)
            if progress >= 1:
                done = True
                break
            scale = min(1.0, (step + 1) / 100) * min(1.0, (1 - progress) / cooldown)
            for g in adam.param_groups:
                g["lr"] = a.lr * scale
            w = windows[i * a.batch:(i + 1) * a.batch]
            loss, hard = loss_fn(w[:, :-1].contiguous(), w[:, 1:].contiguous())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            if muon:
                muon.step(scale)
            model.zero_grad(set_to_none=True)
            with torch.no_grad():
                decay = min(a.ema, (step + 1) / (step + 10))
                torch._foreach_lerp_(list(ema.values()), list(model.state_dict().values()), 1 - decay)
            running.append(hard.detach())
            step += 1
        if not running:
            break
        shadow.load_state_dict(ema)
        nll = {k: evaluate(shadow, d, device, device == "cuda") for k, d in fixed.items()}
        row = {"epoch": epoch, "step": step, "seconds": round(time.time() - start, 1),
               "train_loss": round(torch.stack(running).mean().item(), 4),
               "valid_library_loss": round(nll["library"][0] / nll["library"][1], 4),
               "valid_test_loss": round(nll["test"][0] / nll["test"][1], 4)}
        running = []
        rows.append(row)
        print(*(f"{k}={v}" for k, v in row.items()), flush=True)
        if row["valid_library_loss"] < best[0]:
            best = (row["valid_library_loss"], epoch)
            save(a.out, config, ema)
        if done or step >= total:
            break

    with open(a.out / "loss.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    summary = {"parameters": params, "steps": step, "epochs": epoch, "best_epoch": best[1],
               "best_valid_library_loss": best[0], "seconds": round(time.time() - start, 1),
               "tokens_per_second": round(step * a.batch * a.context / (time.time() - start)),
               "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(a).items()}}
    (a.out / "run.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
