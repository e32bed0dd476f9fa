"""Measures `generate` beside mlx-lm: same files, same machine, same run, in turns.

    python -m venv venv && venv/bin/pip install -r tests/golden/requirements.txt
    cargo build --release --example generate
    venv/bin/python benches/vs_mlx_lm.py [--rounds 5] [--models f32,bf16,24-layer]

Every figure comes from a process of its own that loads the model, feeds a prompt and decodes
greedily; the order changes from round to round. Medians are printed, and beside their ratio that
of the best values, which other work on the machine disturbs less. Load is config and weights,
without the tokenizer. Prefill is counted up to the first token, decoding from the first token to
the last, both with the defaults of either program. Last comes the host's part of decoding: the
time to build the graph of one step of the 24-layer model, without running it; for this project
that is the line `host_step_us: N` of `cargo bench --bench host_step`, which gets the model's
folder in HOST_STEP_MODEL.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/golden"))

# Name -> (folder or None for the random one, prompt lengths, tokens to decode).
MODELS = {
    "f32": ("tests/fixtures/gpt-oss-tiny-f32", (256, 1024), 128),
    "bf16": ("assets/gpt-oss-tiny", (256, 1024), 128),
    "24-layer": (None, (256, 1024), 48),
}
VOCABULARY = 2048
# Never chosen by these models, so that no answer ends early.
UNUSED_STOP = 2039


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--generate", type=Path, default=ROOT / "target/release/examples/generate")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--models", default=",".join(MODELS))
    options.add_argument("--host-step", default="cargo bench --quiet --bench host_step")
    options.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = options.parse_args()
    if options.worker:
        print(json.dumps(worker(**options.worker)))
        return
    with tempfile.TemporaryDirectory(prefix="gpt-oss-mlx-bench-") as work:
        names = options.models.split(",")
        load = os.getloadavg()[0]
        print(f"{os.cpu_count()} cores, load average {load:.1f}, {options.rounds} rounds\n")
        print(f"{'':<34}{'mlx-lm':>10}{'generate':>10}{'times better':>14}{'by the best':>13}")
        for name in names:
            folder, lengths, count = MODELS[name]
            model = endless_copy(folder, Path(work) / name) if folder else deep_model(Path(work))
            measure(name, model, lengths, count, options)
        if "24-layer" in names:
            host_step(deep_model(Path(work)), options.host_step)


def measure(name: str, model: Path, lengths, count: int, options) -> None:
    loads = {mlx_lm: [], generate: []}
    for length in lengths:
        prompt = [(7 + 31 * i) % (VOCABULARY - 100) for i in range(length)]
        results = {mlx_lm: [], generate: []}
        for number in range(options.rounds + 1):
            sides = [mlx_lm, generate] if number % 2 else [generate, mlx_lm]
            for side in sides:
                result = side(model, prompt, count, options)
                assert result["count"] == count, f"{side.__name__}: {result['count']} tokens"
                # The first round fills the page cache and is not counted.
                if number:
                    results[side].append(result)
                    loads[side].append(result["load_s"])
        for key, what in [("prefill", f"prefill {length}"), ("decode", f"decode after {length}")]:
            theirs, ours = ([r[key] for r in results[side]] for side in (mlx_lm, generate))
            better = (median(ours) / median(theirs), max(ours) / max(theirs))
            row(f"{name}: {what}, tokens/s", median(theirs), median(ours), *better)
    theirs, ours = ([1000 * s for s in loads[side]] for side in (mlx_lm, generate))
    better = (median(theirs) / median(ours), min(theirs) / min(ours))
    row(f"{name}: load, ms", median(theirs), median(ours), *better)


def row(what: str, theirs: float, ours: float, better: float, by_best: float | None = None) -> None:
    last = "" if by_best is None else f"{by_best:>13.2f}"
    print(f"{what:<34}{theirs:>10.1f}{ours:>10.1f}{better:>14.2f}{last}", flush=True)


def generate(model: Path, prompt: list[int], count: int, options) -> dict:
    command = [options.generate, "--model", model, "--raw", "--max-tokens", count, "--json"]
    command += ["--prompt-ids", ",".join(map(str, prompt))]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"generate ended with {done.returncode}: {done.stderr}")
    out = json.loads(done.stdout)
    timings = out["timings"]
    return {
        "count": len(out["tokens"]),
        "load_s": timings["load_s"],
        "prefill": timings["prefill_tokens_per_s"],
        "decode": timings["decode_tokens_per_s"],
    }


def mlx_lm(model: Path, prompt: list[int], count: int, _options) -> dict:
    return spawn({"model": str(model), "prompt": prompt, "count": count})


def spawn(job: dict) -> dict:
    command = [sys.executable, __file__, "--worker", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"mlx-lm ended with {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


def worker(model: str, prompt: list[int], count: int | None = None, steps: int | None = None):
    """Runs mlx-lm in this process."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    started = time.perf_counter()
    loaded, _ = load_model(Path(model))
    load_s = time.perf_counter() - started
    if steps:
        return build_times(mx, loaded, make_prompt_cache(loaded), prompt, steps)
    started = time.perf_counter()
    # The last look at the clock is after the last token: `generate_step` gives each when it is
    # there, with the next one queued.
    times = []
    for _ in generate_step(mx.array(prompt), loaded, max_tokens=count):
        times.append(time.perf_counter())
    return {
        "count": len(times),
        "load_s": load_s,
        "prefill": len(prompt) / (times[0] - started),
        "decode": (count - 1) / (times[-1] - times[0]),
    }


def build_times(mx, model, cache, prompt: list[int], steps: int) -> list[float]:
    """Seconds for building each of `steps` decode steps, as `generate_step` builds them."""
    token = mx.array(prompt[:1])
    mx.eval(model(mx.array(prompt)[None], cache=cache))
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        logits = model(token[None], cache=cache)[:, -1, :]
        logprobs = logits - mx.logsumexp(logits, keepdims=True)
        token = mx.argmax(logprobs, axis=-1)
        times.append(time.perf_counter() - started)
        mx.eval(token, logprobs)
    return times


def host_step(model: Path, command: str) -> None:
    job = {"model": str(model), "prompt": list(range(64)), "steps": 200}
    theirs = 1e6 * median(spawn(job))
    env = {**os.environ, "HOST_STEP_MODEL": str(model)}
    done = subprocess.run(shlex.split(command), cwd=ROOT, env=env, capture_output=True, text=True)
    found = re.search(r"^host_step_us: ([\d.]+)", done.stdout, re.MULTILINE)
    if done.returncode or not found:
        sys.exit(f"`{command}` printed no host_step_us: {done.stdout}{done.stderr}")
    ours = float(found[1])
    row("24-layer: build one step, µs", theirs, ours, theirs / ours)


def endless_copy(folder: str, copy: Path) -> Path:
    """The same files, with a stop id that is never chosen."""
    copy.mkdir()
    for file in (ROOT / folder).iterdir():
        if file.name in ("config.json", "generation_config.json"):
            value = {**json.loads(file.read_text()), "eos_token_id": UNUSED_STOP}
            (copy / file.name).write_text(json.dumps(value))
        else:
            (copy / file.name).symlink_to(file)
    return copy


def deep_model(work: Path) -> Path:
    """24 layers of hidden 256 with 32 experts, random, f32 beside MXFP4 and 8 bits."""
    import random_checkpoint

    folder = work / "24-layer"
    if not folder.exists():
        shape = random_checkpoint.Shape(
            hidden=256,
            intermediate=256,
            heads=8,
            kv_heads=2,
            head_dim=64,
            experts=32,
            top_k=4,
            vocab=VOCABULARY,
            window=128,
            layer_types="sf" * 12,
            layout="mlx",
            dtype="F32",
            affine=random_checkpoint.Q8,
            stop_ids=(UNUSED_STOP,),
            mute_stops=True,
        )
        random_checkpoint.write(folder, shape, seed=24)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (folder / name).symlink_to(ROOT / "assets/gpt-oss-tiny" / name)
    return folder


if __name__ == "__main__":
    main()
