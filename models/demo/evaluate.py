"""Measure the trained models and check them against Hugging Face transformers.

    python evaluate.py --data DIR --main . --draft draft --out REPORT

Writes report.json (held-out perplexity, draft agreement, samples, agreement
with transformers), expected.json (a fixture for other implementations) and
loss.svg (from loss.csv of both models).
"""

import argparse
import csv
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer

from train import Split, evaluate, load_model

PROMPTS = [
    "def fibonacci(n):\n",
    "import os\nimport sys\n\n\ndef main(",
    "<|im_start|>user\nWrite a Python function `find`: Return the index of the first match, or -1.<|im_end|>\n"
    "<|im_start|>assistant\n",
]
SAMPLES = PROMPTS + [
    "import os\nimport sys\n\n\nclass Config:\n    def __init__(self, path",
    "class Stack:\n    def push(self, item):\n",
    "def read_config(self, filename):\n",
    "<|im_start|>user\nWrite a Python method `close`: Close the file.<|im_end|>\n<|im_start|>assistant\n",
]
WINDOW = 512


@torch.no_grad()
def greedy(model, ids, count, hf):
    """Greedy continuation without a cache; also the smallest gap between the two best logits."""
    ids, gap = list(ids), float("inf")
    start = len(ids)
    for _ in range(count):
        x = torch.tensor([ids], device=next(model.parameters()).device)
        logits = (model(x).logits if hf else model(x))[0, -1].float()
        top = logits.topk(2)
        gap = min(gap, (top.values[0] - top.values[1]).item())
        ids.append(int(top.indices[0]))
    return ids[start:], gap


@torch.no_grad()
def window_nll(model, ids, hf):
    """Summed loss over non-overlapping windows; the first token of each window is context only."""
    total, count = 0.0, 0
    device = next(model.parameters()).device
    for i in range(0, len(ids), WINDOW):
        x = torch.tensor([ids[i:i + WINDOW]], device=device)
        if x.shape[1] < 2:
            continue
        logits = (model(x).logits if hf else model(x))[0, :-1].float()
        total += F.cross_entropy(logits.double(), x[0, 1:], reduction="sum").item()
        count += x.shape[1] - 1
    return total, count


@torch.no_grad()
def agreement(main, draft, x, y):
    same = count = 0
    device = next(main.parameters()).device
    for xb, yb in zip(x.split(16), y.split(16)):
        xb, mask = xb.to(device), (yb >= 0).to(device)
        same += int(((main(xb).argmax(-1) == draft(xb).argmax(-1)) & mask).sum())
        count += int(mask.sum())
    return same / count


@torch.no_grad()
def speculation(main, draft, prompts, count, k=4):
    """Greedy speculative decoding, simulated: tokens gained per verification by the main model."""
    same = positions = tokens = rounds = 0
    for ids in prompts:
        out, _ = greedy(main, ids, count, hf=False)
        x = torch.tensor([list(ids) + out], device=next(main.parameters()).device)
        guess = draft(x)[0, len(ids) - 1:-1].argmax(-1).tolist()
        hits = [g == t for g, t in zip(guess, out)]
        same, positions = same + sum(hits), positions + len(hits)
        i = 0
        while i < len(hits):
            n = 0
            while n < k and i + n < len(hits) and hits[i + n]:
                n += 1
            i, rounds, tokens = i + n + 1, rounds + 1, tokens + n + 1
    return {"agreement": same / positions, "tokens_per_verification": tokens / rounds, "draft_tokens": k,
            "prompts": len(prompts), "new_tokens": count}


def plot(series, path):
    """series: label -> (epochs, losses); a plain SVG line chart."""
    width, height, left, top = 640, 360, 50, 20
    xs = [x for e, _ in series.values() for x in e]
    ys = [y for _, v in series.values() for y in v]
    lo, hi = math.floor(min(ys) * 5) / 5, min(math.ceil(max(ys) * 5) / 5, 4.0)
    px = lambda x: left + (x - 1) / max(max(xs) - 1, 1) * (width - left - 20)
    py = lambda y: top + (hi - min(y, hi)) / (hi - lo) * (height - top - 40)
    colors = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b"]
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
           'font-family="sans-serif" font-size="11">', f'<rect width="{width}" height="{height}" fill="white"/>']
    y = lo
    while y <= hi + 1e-9:
        out.append(f'<path d="M{left} {py(y):.1f}H{width - 20}" stroke="#ddd"/>'
                   f'<text x="{left - 6}" y="{py(y) + 4:.1f}" text-anchor="end">{y:.1f}</text>')
        y += 0.2 if hi - lo <= 2 else 0.4
    for x in range(1, max(xs) + 1):
        if x == 1 or x % max(1, max(xs) // 12) == 0:
            out.append(f'<text x="{px(x):.1f}" y="{height - 24}" text-anchor="middle">{x}</text>')
    out.append(f'<text x="{width / 2}" y="{height - 8}" text-anchor="middle">epoch</text>'
               f'<text x="14" y="{height / 2}" transform="rotate(-90 14 {height / 2})" '
               'text-anchor="middle">loss (nats per token)</text>')
    for i, (label, (e, v)) in enumerate(series.items()):
        points = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in zip(e, v))
        out.append(f'<polyline points="{points}" fill="none" stroke="{colors[i]}" stroke-width="1.5"/>'
                   f'<text x="{width - 30}" y="{top + 14 * (i + 1)}" text-anchor="end" fill="{colors[i]}">{label}</text>')
    path.write_text("\n".join(out) + "\n</svg>\n")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", type=Path, required=True, help="the folder written by prepare.py")
    ap.add_argument("--main", type=Path, required=True)
    ap.add_argument("--draft", type=Path, required=True)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a = ap.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = False
    tok = Tokenizer.from_file(str(a.data / "tokenizer.json"))
    main_model, draft = load_model(a.main, a.device), load_model(a.draft, a.device)
    hf = transformers.AutoModelForCausalLM.from_pretrained(a.main, dtype=torch.float32).to(a.device).eval()
    report = {"torch": torch.__version__, "transformers": transformers.__version__, "device": a.device}

    # Held-out loss per kind of file.
    test = Split(a.data, "test")
    for kind in ("library", "test"):
        data = test.fixed(kind, 1024)
        for name, model in (("main", main_model), ("draft", draft)):
            total, count = evaluate(model, data, a.device, autocast=False)
            report[f"{name}_{kind}"] = {
                "tokens": count, "bytes": data[2], "loss": total / count, "perplexity": math.exp(total / count),
                "bits_per_byte": total / math.log(2) / data[2]}
        report[f"draft_agreement_{kind}"] = agreement(main_model, draft, *data[:2])

    # The fixture, by transformers in f32, and the same numbers by the training code.
    text = (a.data / "heldout.txt").read_bytes().decode()
    held = tok.encode(text).ids[:20000]
    total, count = window_nll(hf, held, hf=True)
    own_total, _ = window_nll(main_model, held, hf=False)
    draft_total, _ = window_nll(draft, held, hf=False)
    expected = {
        "how": "transformers AutoModelForCausalLM, float32 arithmetic on the bf16 weights; prompts are tokenized "
               "as they stand (special tokens in the text are recognised, nothing is prepended); greedy takes the "
               "largest logit 48 times and does not stop at end tokens; min_logit_gap is the smallest distance between the "
               "best and the second-best logit on the way",
        "transformers": transformers.__version__,
        "greedy": [],
        "heldout": {
            "how": "the first 20000 token ids of heldout.txt (one text, tokenized at once, no special tokens); "
                   "windows of 512 ids at 0, 512, 1024, ... (the last one has 32), each run alone from position 0; "
                   "in each window every id but the first is scored; perplexity = exp(sum of losses / scored ids)",
            "tokens": len(held), "window": WINDOW, "scored": count, "first_ids": held[:32],
            "loss": total / count, "perplexity": math.exp(total / count),
            "draft_perplexity": math.exp(draft_total / count)},
    }
    agree = True
    for prompt in PROMPTS:
        ids = tok.encode(prompt).ids
        out, gap = greedy(hf, ids, 48, hf=True)
        agree &= out == greedy(main_model, ids, 48, hf=False)[0]
        expected["greedy"].append({"prompt": prompt, "prompt_ids": ids, "tokens": out, "min_logit_gap": gap,
                                   "text": tok.decode(out, skip_special_tokens=False)})
    hf.generation_config.eos_token_id = None  # 48 tokens in every case
    cached = all(
        hf.generate(torch.tensor([g["prompt_ids"]], device=a.device), max_new_tokens=48, do_sample=False)[0].tolist()
        == g["prompt_ids"] + g["tokens"] for g in expected["greedy"])
    report["transformers_check"] = {
        "same_greedy_tokens": agree,
        "generate_with_cache_same": cached,
        "loss_difference": abs(total - own_total) / count, "perplexity": math.exp(total / count)}
    (a.out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")

    lines = text.split("\n")
    prompts = [tok.encode("\n".join(lines[i:i + 12]) + "\n").ids for i in range(0, len(lines) - 12, len(lines) // 24)][:24]
    report["speculation_heldout"] = speculation(main_model, draft, prompts, 64)
    report["samples"] = {p: tok.decode(greedy(main_model, tok.encode(p).ids, 120, hf=False)[0], skip_special_tokens=False)
                         for p in SAMPLES}
    (a.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")

    series = {}
    for name, folder in (("main", a.main), ("draft", a.draft)):
        if (folder / "loss.csv").exists():
            rows = list(csv.DictReader(open(folder / "loss.csv")))
            epochs = [int(r["epoch"]) for r in rows]
            series[f"{name}, training"] = (epochs, [float(r["train_loss"]) for r in rows])
            series[f"{name}, validation (library)"] = (epochs, [float(r["valid_library_loss"]) for r in rows])
    if series:
        plot(series, a.out / "loss.svg")
    print(json.dumps({k: v for k, v in report.items() if k != "samples"}, indent=1))
    for p, s in report["samples"].items():
        print("=" * 30, p + "\u2588" + s, sep="\n")


if __name__ == "__main__":
    main()
