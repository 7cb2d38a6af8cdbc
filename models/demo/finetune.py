"""Teach a trained model not to loop: a short unlikelihood fine-tuning.

    python finetune.py --data DIR --model RUN --out TUNED

A small model decoded greedily soon repeats one line for ever. Here the model
continues training prompts greedily; where a continuation repeats itself, the
repeated tokens are made less likely (the loss -log(1 - p)), while the ordinary
loss on real text keeps the rest as it was. The saved weights lie between those
before and those after: that keeps the language model and some of the effect.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from train import EOT, Split, evaluate, load_model, save

PROMPT, NEW, CAP = 64, 96, 48


@torch.no_grad()
def continue_greedily(model, ids, device):
    for _ in range(NEW):
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            last = model.head(model.hidden(ids)[:, -1])
        ids = torch.cat([ids, last.argmax(-1, keepdim=True)], dim=1)
    return ids


def repeats(ids, longest=40, least=8):
    """Marks the tokens that repeat what stood one period before, for a whole period and `least` tokens or more.

    At most CAP tokens are marked in a sequence, and none after its end-of-text.
    """
    b, t = ids.shape
    marked = torch.zeros(b, t, dtype=torch.bool, device=ids.device)
    for period in range(1, longest + 1):
        length = max(period, least)
        same = torch.zeros_like(marked)
        same[:, period:] = ids[:, period:] == ids[:, :-period]
        same[:, :PROMPT] = False
        run = same.int().cumsum(1)
        # Position i ends a stretch of `length` equal tokens.
        full = torch.zeros_like(marked)
        full[:, length:] = run[:, length:] - run[:, :-length] == length
        for back in range(length):
            marked[:, : t - back] |= full[:, back:]
    ended = (ids[:, PROMPT:] == EOT).int().cumsum(1) > 0
    marked[:, PROMPT:] &= ~ended
    return marked & (marked.int().cumsum(1) <= CAP)


def prompts(windows, rng, count, device):
    rows = [windows[rng.randrange(len(windows))] for _ in range(count)]
    starts = [rng.randrange(windows.shape[1] - PROMPT) for _ in rows]
    return torch.stack([torch.as_tensor(r[s:s + PROMPT]) for r, s in zip(rows, starts)]).to(device)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", type=Path, required=True)
    ap.add_argument("--model", type=Path, required=True)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--rounds", type=int, default=12, help="each: new continuations, then --steps updates")
    ap.add_argument("--steps", type=int, default=8)
    ap.add_argument("--sequences", type=int, default=128)
    ap.add_argument("--batch", type=int, default=24)
    ap.add_argument("--lr", type=float, default=1e-4)
    ap.add_argument("--weight", type=float, default=1.0)
    ap.add_argument("--mix", type=float, default=0.4, help="saved: (1 - mix) * weights before + mix * weights after")
    ap.add_argument("--test-share", type=float, default=0.5)
    ap.add_argument("--time-limit", type=float, default=1e9, help="seconds")
    ap.add_argument("--seed", type=int, default=4321)
    a = ap.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(a.seed)
    rng = random.Random(a.seed)
    model = load_model(a.model, device)
    model.dropout = 0.1
    train, valid = Split(a.data, "train"), Split(a.data, "valid")
    windows = train.epoch(rng, model.config["max_position_embeddings"], a.test_share, dense=0.33)
    valid_windows = valid.epoch(random.Random(0), 512, 0.0)
    library = valid.fixed("library", model.config["max_position_embeddings"])

    def measure():
        model.eval()
        ids = continue_greedily(model, prompts(valid_windows, random.Random(1), a.sequences, device), device)
        total, count = evaluate(model, library, device, device == "cuda")
        return {"looping_continuations": round(repeats(ids).any(1).float().mean().item(), 4),
                "valid_library_loss": round(total / count, 4)}

    original = {k: v.clone() for k, v in model.state_dict().items()}
    before = measure()
    print("before", before, flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=a.lr, betas=(0.9, 0.95), weight_decay=0.0)
    start, rounds = time.time(), 0
    for r in range(a.rounds):
        if time.time() - start > a.time_limit:
            break
        model.eval()
        ids = continue_greedily(model, prompts(windows, rng, a.sequences, device), device)
        marked = repeats(ids)
        keep = marked.any(1)
        share = keep.float().mean().item()
        ids, mask = ids[keep], marked[keep][:, 1:].float()
        for i in range(a.steps):
            step = r * a.steps + i
            progress = max(r / a.rounds, (time.time() - start) / a.time_limit)
            for g in optimizer.param_groups:
                g["lr"] = a.lr * min(1.0, (step + 1) / 20) * max(0.05, 1 - progress)
            w = torch.as_tensor(windows[[rng.randrange(len(windows)) for _ in range(a.batch)]]).to(device)
            model.train()
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                logits = model(w[:, :-1])
            plain = F.cross_entropy(logits.float().flatten(0, 1), w[:, 1:].flatten())
            loss, unlikely = plain, torch.zeros(())
            if len(ids):
                model.eval()
                with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                    logits = model(ids[:, :-1])
                p = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0].exp()
                # Divided by a constant: the pressure falls as loops become rare.
                unlikely = (-torch.log1p(-p.clamp(max=1 - 1e-4)) * mask).sum() / (a.sequences * CAP)
                loss = plain + a.weight * unlikely
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        rounds += 1
        print(f"round={r + 1} looping={share:.3f} loss={plain.item():.4f} unlikelihood={unlikely.item():.4f} "
              f"seconds={time.time() - start:.1f}", flush=True)
    after = measure()
    print("after", after, flush=True)
    model.load_state_dict({k: original[k].lerp(v, a.mix) for k, v in model.state_dict().items()})
    mixed = measure()
    print("mixed", mixed, flush=True)
    save(a.out, model.config, model.state_dict())
    (a.out / "finetune.json").write_text(json.dumps(
        {"before": before, "after": after, "mixed": mixed, "rounds": rounds, "seconds": round(time.time() - start, 1),
         "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(a).items()}}, indent=2) + "\n")


if __name__ == "__main__":
    main()
