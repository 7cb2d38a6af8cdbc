"""Collect the training text, split it by file, train the tokenizer and write token files.

    python prepare.py --lib /path/to/lib/python3.11 --out /tmp/demo-data

The text is the Python standard library (sources only, PSF licence). Everything
is deterministic: a file's split depends on the SHA-256 of its relative path.

Written to --out:
    tokenizer.json        byte-level BPE, trained on the training files only
    {train,valid,test}.bin   little-endian u16 token ids, documents back to back
    {train,valid,test}.json  one record per document: path, kind, start, tokens, bytes
    heldout.txt           a sample of library files from the test split
"""

import argparse
import ast
import hashlib
import json
import textwrap
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# The pre-tokenization of the Qwen2/Qwen3 family. A run of spaces in front of a
# word is split as "all but the last space" + " word", so indentation of any
# depth can become one token.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEST_DIRS = {"test", "tests"}
SKIP_DIRS = {"site-packages", "__pycache__", "pydoc_data", "lib-dynload"}
SKIP_FILES = {"html/entities.py", "_sysconfigdata__linux_x86_64-linux-gnu.py", "encodings/aliases.py"}


def wanted(rel: str, text: str) -> bool:
    """Leave out generated tables and files that are mostly data."""
    parts = rel.split("/")
    if SKIP_DIRS & set(parts[:-1]) or rel in SKIP_FILES or rel.startswith("lib2to3/tests/data/"):
        return False
    if parts[0].startswith(("config-", "_sysconfigdata")):
        return False
    if parts[0] == "encodings" and ("decoding_table" in text or "decoding_map" in text):
        return False
    if len(text) < 200 or max(map(len, text.split("\n"))) > 2000:
        return False
    wordy = sum(c.isalpha() or c.isspace() or c == "_" for c in text)
    return wordy >= 0.6 * len(text) and text.isascii() or wordy >= 0.7 * len(text)


def split_of(rel: str) -> str:
    bucket = int.from_bytes(hashlib.sha256(rel.encode()).digest()[:4], "big") % 1000
    return "test" if bucket < 25 else "valid" if bucket < 50 else "train"


def chat_pairs(text: str):
    """(request, answer) made from the short documented functions of one file."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        doc = ast.get_docstring(node)
        source = ast.get_source_segment(text, node)
        if not doc or not source or len(source) > 1200:
            continue
        summary = " ".join(doc.split("\n\n")[0].split())
        if not 12 <= len(summary) <= 160 or not summary[0].isalpha():
            continue
        body = textwrap.dedent(" " * node.col_offset + source)
        what = "method" if node.args.args[:1] and node.args.args[0].arg in ("self", "cls") else "function"
        yield f"Write a Python {what} `{node.name}`: {summary}", f"```python\n{body}\n```"


def chat_text(request: str, answer: str) -> str:
    return f"<|im_start|>user\n{request}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"


def collect(lib: Path):
    documents, seen = [], set()
    for path in sorted(lib.rglob("*.py"), key=lambda p: p.relative_to(lib).as_posix()):
        rel = path.relative_to(lib).as_posix()
        if rel.startswith("site-packages/"):
            continue
        try:
            text = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError:
            continue
        digest = hashlib.sha256(text.encode()).digest()
        if digest in seen or not wanted(rel, text):
            continue
        seen.add(digest)
        kind = "test" if TEST_DIRS & set(rel.split("/")[:-1]) else "library"
        documents.append({"path": rel, "kind": kind, "split": split_of(rel), "text": text})
    chats = []
    for d in documents:
        if d["kind"] == "library" and d["split"] != "test":
            for i, pair in enumerate(chat_pairs(d["text"])):
                chats.append({"path": f"{d['path']}#{i}", "kind": "chat", "split": d["split"], "text": chat_text(*pair)})
    return documents + chats


def train_tokenizer(texts, vocab_size: int) -> Tokenizer:
    tok = Tokenizer(models.BPE(byte_fallback=False))
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tok.train_from_iterator(texts, trainer)
    return tok


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--lib", type=Path, required=True, help="the lib/python3.11 folder")
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--vocab-size", type=int, default=4096)
    ap.add_argument("--heldout-bytes", type=int, default=96_000)
    args = ap.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    documents = collect(args.lib)
    files = [d for d in documents if d["kind"] != "chat"]
    tok = train_tokenizer((d["text"] for d in files if d["split"] == "train"), args.vocab_size)
    tok.save(str(args.out / "tokenizer.json"))
    assert tok.get_vocab_size() == args.vocab_size
    assert [tok.token_to_id(s) for s in SPECIAL] == [0, 1, 2]

    for split in ("train", "valid", "test"):
        docs = [d for d in documents if d["split"] == split]
        ids, records, start = [], [], 0
        for d, enc in zip(docs, tok.encode_batch([d["text"] for d in docs])):
            if d["kind"] != "chat":
                assert tok.decode(enc.ids, skip_special_tokens=False) == d["text"], d["path"]
            ids.append(np.array(enc.ids, dtype="<u2"))
            records.append({"path": d["path"], "kind": d["kind"], "start": start,
                            "tokens": len(enc.ids), "bytes": len(d["text"].encode())})
            start += len(enc.ids)
        np.concatenate(ids).tofile(args.out / f"{split}.bin")
        (args.out / f"{split}.json").write_text(json.dumps(records))
        for kind in ("library", "test", "chat"):
            r = [x for x in records if x["kind"] == kind]
            n, b = sum(x["tokens"] for x in r), sum(x["bytes"] for x in r)
            print(f"{split:6s} {kind:8s} {len(r):5d} documents {b:9d} bytes {n:8d} tokens {b / max(n, 1):.2f} bytes/token")

    # A benchmark sample: whole library files of the test split, in order of hash, small enough to be varied.
    sample = []
    held = [d for d in files if d["split"] == "test" and d["kind"] == "library" and 1500 <= len(d["text"]) <= 30_000]
    for d in sorted(held, key=lambda d: hashlib.sha256(d["path"].encode()).hexdigest()):
        if sum(len(t.encode()) for t in sample) + len(d["text"].encode()) <= args.heldout_bytes:
            sample.append(d["text"] if d["text"].endswith("\n") else d["text"] + "\n")
            print("heldout.txt:", d["path"], len(d["text"]))
    (args.out / "heldout.txt").write_bytes("".join(sample).encode())
    print("heldout.txt", sum(len(t.encode()) for t in sample), "bytes",
          len(tok.encode("".join(sample)).ids), "tokens")


if __name__ == "__main__":
    main()
