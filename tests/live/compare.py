"""Compares `generate` with mlx-lm on checkpoints that are made here, with a fresh seed.

    python tests/live/compare.py --generate target/release/examples/generate [--seed N]

The seed decides the checkpoints' shapes, weights and prompts, and is printed: give it again to
repeat a run. Run it through `tests/live/run.sh`, which makes the environment. Tokens must be the
same and logprobs within 1e-3. Where the first two tokens are closer than that, either may be
taken, so the comparison of that prompt ends there and says so.
"""

import argparse
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests/golden"))

import random_checkpoint
from random_checkpoint import Shape
from reference import Reference, Run

TOKENS = 48
TOLERANCE = 1e-3
# Two experts closer than this may be swapped by rounding alone, which no tolerance of the output
# covers: such a prompt is replaced.
ROUTER_MARGIN = 3e-5
STOP_IDS = (2040, 2041, 2047)

KINDS = {
    "MXFP4-Q8": {"layout": "mlx", "affine": random_checkpoint.Q8},
    "OpenAI": {"layout": "openai"},
    "affine 4-bit": {
        "layout": "mlx",
        "experts_mxfp4": False,
        "affine": {"router": (8, 64), "": (4, 32)},
    },
    "f32": {"layout": "mlx", "experts_mxfp4": False, "dtype": "F32"},
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--generate", type=Path, default=ROOT / "target/release/examples/generate")
    options.add_argument("--seed", type=int, default=None)
    options.add_argument("--keep", action="store_true", help="do not remove the checkpoints")
    options = options.parse_args()
    seed = secrets.randbits(31) if options.seed is None else options.seed
    print(f"seed {seed} (repeat with: tests/live/run.sh --seed {seed})", flush=True)

    work = Path(tempfile.mkdtemp(prefix="gpt-oss-mlx-live-"))
    failures = []
    try:
        draw = np.random.RandomState(seed)
        for kind, fixed in KINDS.items():
            folder = work / kind.replace(" ", "-")
            failures += compare(options.generate, folder, kind, draw_shape(draw, fixed), draw)
    finally:
        if options.keep:
            print(f"checkpoints kept in {work}")
        else:
            shutil.rmtree(work)
    if failures:
        sys.exit(f"seed {seed}: generate differs from mlx-lm: {'; '.join(failures)}")
    print("generate and mlx-lm agree")


def draw_shape(draw, fixed: dict) -> Shape:
    one_of = lambda *values: values[draw.randint(len(values))]
    kv_heads = one_of(1, 2, 3)
    layers = one_of(3, 4, 5, 6)
    types = "".join(one_of("s", "f") for _ in range(layers - 2)) + one_of("sf", "fs")
    experts = one_of(4, 6, 8)
    return Shape(
        hidden=one_of(64, 128, 192),
        intermediate=one_of(32, 64, 96),
        heads=kv_heads * one_of(1, 2, 4),
        kv_heads=kv_heads,
        head_dim=64,
        experts=experts,
        top_k=one_of(1, 2, 3, 4),
        vocab=2048,
        window=one_of(16, 31, 64, 100),
        layer_types=types,
        stop_ids=STOP_IDS,
        mute_stops=True,
        **fixed,
    )


def compare(generate: Path, folder: Path, kind: str, shape: Shape, draw) -> list[str]:
    random_checkpoint.write(folder, shape, draw.randint(2**31 - 1))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ROOT / "assets/gpt-oss-tiny" / name, folder)
    print(
        f"{kind}: hidden {shape.hidden}, width {shape.intermediate}, heads {shape.heads}/"
        f"{shape.kv_heads}, experts {shape.top_k} of {shape.experts}, window {shape.window}, "
        f"layers {shape.layer_types}",
        flush=True,
    )
    reference = Reference(folder, float32=True)
    failures = []
    for length in (1, int(draw.randint(2, 2 * shape.window)), int(draw.randint(300, 800))):
        chunk = int(draw.randint(20, 400))
        prompt, expected = clear_prompt(reference, shape, draw, length, chunk)
        if prompt is None:
            print(f"  prompt {length}: no prompt with clear experts found, left out")
            continue
        got = run_generate(generate, folder, prompt, chunk)
        problem, largest, note = differences(expected, got)
        line = f"  prompt {length}, chunk {chunk}: {TOKENS} tokens, largest difference {largest:.1e}"
        print(line + (f", {note}" if note else "") + (f": {problem}" if problem else ""), flush=True)
        if problem:
            failures.append(f"{kind}, prompt of {length}")
    return failures


def clear_prompt(reference: Reference, shape: Shape, draw, length: int, chunk: int):
    for _ in range(8):
        prompt = draw.randint(0, shape.vocab, length).tolist()
        run = reference.run(prompt, TOKENS, prefill=chunk)
        if run.router_margin >= ROUTER_MARGIN:
            return prompt, run
    return None, None


def run_generate(generate: Path, folder: Path, prompt: list[int], chunk: int) -> dict:
    command = [generate, "--model", folder, "--prompt-ids", ",".join(map(str, prompt)), "--raw"]
    command += ["--max-tokens", TOKENS, "--prefill-chunk", chunk, "--logprobs", 5, "--json"]
    # Nothing of this environment may be needed to run it.
    env = {"PATH": os.environ.get("PATH", ""), "HOME": os.environ.get("HOME", "")}
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command[:3]))} … ended with {done.returncode}:\n{done.stderr}")
    out = json.loads(done.stdout)
    if out["prompt_tokens"] != prompt:
        sys.exit(f"prompt_tokens are not the prompt: {out['prompt_tokens']}")
    return out


def differences(expected: Run, got: dict) -> tuple[str | None, float, str | None]:
    """What is wrong (or None), the largest difference in logprob, and whether a tie ended it."""
    largest = 0.0
    if len(got["tokens"]) != TOKENS or len(got["logprobs"]) != TOKENS:
        return f"{len(got['tokens'])} tokens ({got['finish_reason']})", largest, None
    for step, (wanted, ours) in enumerate(zip(expected.logprobs, got["logprobs"])):
        if len(ours) != len(wanted):
            return f"step {step}: {len(ours)} logprobs", largest, None
        known = dict(wanted)
        for entry, (_, floor) in zip(ours, wanted):
            # An id that the reference has not among its five can only be a tie with one of them.
            difference = abs(entry["logprob"] - known.get(entry["id"], floor))
            largest = max(largest, difference)
            if not difference <= TOLERANCE:
                pairs = [(entry["id"], entry["logprob"]) for entry in ours]
                return f"step {step}: {show(pairs)} instead of {show(wanted)}", largest, None
        if got["tokens"][step] != expected.tokens[step]:
            if wanted[0][1] - wanted[1][1] < TOLERANCE:
                return None, largest, f"tie at step {step}, the rest not compared"
            message = f"step {step}: token {got['tokens'][step]} instead of {expected.tokens[step]}"
            return message, largest, None
    return None, largest, None


def show(pairs) -> str:
    return " ".join(f"{id}:{logprob:.4f}" for id, logprob in pairs)


if __name__ == "__main__":
    main()
