"""Makes the goldens with mlx-lm: prompts.json, snapshots/, random/ and REPORT.md.

    python -m venv venv && venv/bin/pip install -r tests/golden/requirements.txt
    venv/bin/python tests/golden/make.py [--known-answers]

`--known-answers` also runs the 140 known answers, in f32 and in the checkpoint's own type, and
writes what came out into KNOWN_ANSWERS.md; that takes about ten minutes on two cores.
"""

import argparse
import json
import os
from importlib.metadata import version
from pathlib import Path

import numpy as np

import random_checkpoint
from random_checkpoint import Shape
from reference import Reference, Run

GOLDEN = Path(__file__).resolve().parent
ROOT = GOLDEN.parent.parent
TOKENS = 64

TINY = {
    "gpt-oss-tiny": "assets/gpt-oss-tiny",
    "gpt-oss-tiny-f32": "tests/fixtures/gpt-oss-tiny-f32",
    "gpt-oss-tiny-openai": "tests/fixtures/gpt-oss-tiny-openai",
}

# Shapes unlike the bundled model's, each below 200 KB.
RANDOM = {
    # mlx-community's layout: 4-bit attention (one projection in 8 bits, so that q, k and v do not
    # share their parameters), MXFP4 experts, a router that is not quantized; odd window.
    "random-mixed": (
        Shape(
            hidden=64,
            intermediate=32,
            heads=6,
            kv_heads=2,
            head_dim=32,
            experts=5,
            top_k=3,
            vocab=320,
            window=17,
            layer_types="ssf",
            layout="mlx",
            affine={
                "layers.1.self_attn.v_proj": (8, 32),
                "self_attn.q_proj": (4, 32),
                "self_attn.k_proj": (4, 32),
                "self_attn.v_proj": (4, 32),
                "self_attn.o_proj": (4, 64),
                "embed_tokens": (8, 64),
                "lm_head": (8, 32),
            },
        ),
        5,
    ),
    # Nothing quantized, f16, plain RoPE, one KV head, full attention first.
    "random-float": (
        Shape(
            hidden=32,
            intermediate=20,
            heads=4,
            kv_heads=1,
            head_dim=16,
            experts=7,
            top_k=4,
            vocab=200,
            window=33,
            layer_types="fsff",
            layout="mlx",
            dtype="F16",
            experts_mxfp4=False,
            rope_scaling=None,
            rope_theta=10000,
            rms_norm_eps=1e-6,
        ),
        30,
    ),
}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string"}},
            "required": ["location"],
        },
    },
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--known-answers", action="store_true")
    options = options.parse_args()
    os.environ["TRANSFORMERS_OFFLINE"] = "1"
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / TINY["gpt-oss-tiny"])
    known = json.loads((ROOT / "tests/fixtures/known-answers.json").read_text("utf-8"))
    groups = [{"models": TINY, "cases": tiny_cases(tokenizer, known)}]
    for name, (shape, seed) in RANDOM.items():
        folder = f"tests/golden/random/{name}"
        random_checkpoint.write(ROOT / folder, shape, seed)
        groups.append({"models": {name: folder}, "cases": random_cases(shape, seed)})
    write_prompts(groups)

    report = []
    for group in groups:
        for name, folder in group["models"].items():
            report += goldens(name, folder, group["cases"], tokenizer.decode)
    write_report(report)
    if options.known_answers:
        known_answers(tokenizer, known)


def tiny_cases(tokenizer, known) -> list[dict]:
    """The prompts for the bundled model, through its chat template unless they are `text`."""
    ask = lambda text: {"role": "user", "content": text}
    say = lambda text: {"role": "assistant", "content": text}
    question = ask("What is the weather in Paris?")
    call = {"name": "get_weather", "arguments": '{"location":"Paris"}'}
    history = [
        message
        for entry in known[:14]
        for message in (ask(f"Explain {entry['topic']}."), say(entry["answer"]))
    ]
    cases = [
        {"name": "short", "messages": [ask("Explain Dangling References.")]},
        {"name": "single-token", "text": "<|start|>"},
        {
            "name": "multi-turn",
            "messages": [
                {"role": "system", "content": "Answer in one sentence."},
                ask("Explain Variable Scope."),
                say("A scope is the range within a program for which an item is valid."),
                ask("Tell me about Polymorphism."),
            ],
        },
        {"name": "tool-call", "messages": [question], "tools": [WEATHER]},
        {
            "name": "tool-answer",
            "messages": [
                question,
                {
                    "role": "assistant",
                    "tool_calls": [{"type": "function", "function": call}],
                },
                {"role": "tool", "content": '{"sky":"sunny","celsius":21}'},
            ],
            "tools": [WEATHER],
        },
        # Several windows of 64 and several chunks, cut at a multiple of the window and not.
        {"name": "long", "messages": [*history, ask("Explain Operators.")], "prefill": 256},
        {
            "name": "long-text",
            "text": "\n\n".join(entry["answer"] for entry in known[20:44]),
            "prefill": 100,
        },
    ]
    for case in cases:
        if "text" in case:
            prompt = tokenizer.encode(case["text"], add_special_tokens=False)
        else:
            prompt = tokenizer.apply_chat_template(
                case["messages"],
                tools=case.get("tools"),
                add_generation_prompt=True,
                return_dict=False,
            )
        case["prompt"] = prompt
    return cases


def random_cases(shape: Shape, seed: int) -> list[dict]:
    draw = np.random.RandomState(seed + 1000)
    case = lambda name, length, **more: {
        "name": name,
        **more,
        "prompt": draw.randint(0, shape.vocab, length).tolist(),
    }
    return [
        case("short", 5),
        case("window", shape.window),
        case("long", 300, prefill=64),
    ]


def goldens(name: str, folder: str, cases: list[dict], decode) -> list[str]:
    """Writes the snapshots of one model; returns its rows of the report."""
    reference = Reference(ROOT / folder, float32=True)
    # MLX's CPU backend has no gathered matrix product of floats other than f32.
    has_own = name != "gpt-oss-tiny-f32" and name != "random-float"
    own = Reference(ROOT / folder, float32=False) if has_own else None
    rows = []
    for case in cases:
        chunk = {"prefill": case["prefill"]} if "prefill" in case else {}
        run = reference.run(case["prompt"], TOKENS, **chunk)
        write_snapshot(name, case, run, decode if name in TINY else None)
        row = [name, case["name"], len(case["prompt"])]
        row += [f"{run.token_margin:.4f}", f"{run.router_margin:.1e}"]
        if own:
            other = own.run(case["prompt"], TOKENS, **chunk)
            same = common_prefix(run.tokens, other.tokens)
            row += [f"{same}", f"{difference(run, other, same):.3f}"]
        else:
            row += ["", ""]
        rows.append("| " + " | ".join(map(str, row)) + " |")
        print(rows[-1], flush=True)
        assert run.token_margin > 1e-2, "two tokens are too close; take another prompt or seed"
        assert run.router_margin > 5e-5, "two experts are too close; take another prompt or seed"
    return rows


def common_prefix(a: list, b: list) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def difference(a: Run, b: Run, same: int) -> float:
    """The largest difference in logprob of the reference's own tokens, while they are the same."""
    return max((abs(a.logprobs[i][0][1] - b.logprobs[i][0][1]) for i in range(same)), default=0.0)


def write_snapshot(model: str, case: dict, run: Run, decode) -> None:
    """In insta's form; tests/golden.rs writes what it got in the same way."""
    lines = ["prompt: " + " ".join(map(str, case["prompt"]))]
    lines.append("tokens: " + " ".join(map(str, run.tokens)))
    if decode:
        text = decode(run.tokens, skip_special_tokens=False)
        lines.append("text: " + json.dumps(text, ensure_ascii=False))
    lines.append("logprobs:")
    for top in run.logprobs:
        lines.append(" ".join(f"{id}:{logprob:.5f}" for id, logprob in top))
    name = f"{model}__{case['name']}"
    folder = GOLDEN / "snapshots"
    folder.mkdir(exist_ok=True)
    body = "\n".join(lines)
    made = f"made by tests/golden/make.py, mlx-lm {version('mlx-lm')}, MLX {version('mlx')}, f32"
    (folder / f"{name}.snap").write_text(
        f'---\nsource: tests/golden.rs\ndescription: "{made}"\n---\n{body}\n', encoding="utf-8"
    )


def write_prompts(groups: list[dict]) -> None:
    """One line per case, so that a change of one is one line of a diff."""
    out = []
    for group in groups:
        models = json.dumps(group["models"])
        cases = ",\n".join("  " + json.dumps(c, ensure_ascii=False) for c in group["cases"])
        out.append(f'{{"models": {models}, "cases": [\n{cases}\n]}}')
    (GOLDEN / "prompts.json").write_text("[\n" + ",\n".join(out) + "\n]\n", encoding="utf-8")


def write_report(rows: list[str]) -> None:
    text = f"""# What make.py measured

mlx-lm {version("mlx-lm")}, MLX {version("mlx")} on the CPU, {TOKENS} greedy tokens. The reference
is mlx-lm with all float parameters cast to f32. *Token margin*: the smallest distance in logprob
between the first and the second token; *router margin*: the smallest distance between the last
expert taken and the first one left out. *Same tokens* and *difference* compare the reference
with mlx-lm in the checkpoint's own float type (bf16, f16): how many tokens agree from the start,
and the largest difference in logprob of these tokens.

| model | case | prompt | token margin | router margin | same tokens | difference |
|---|---|---|---|---|---|---|
"""
    (GOLDEN / "REPORT.md").write_text(text + "\n".join(rows) + "\n", encoding="utf-8")


def known_answers(tokenizer, known: list[dict]) -> None:
    """Every topic in f32 and in the file's own type."""
    stop = tuple(tokenizer.convert_tokens_to_ids(["<|return|>", "<|endoftext|>", "<|call|>"]))
    rows, notes = [], []
    for name, folder in TINY.items():
        kinds = {"f32": True} if name.endswith("-f32") else {"f32": True, "own type": False}
        runs = {}
        for kind, float32 in kinds.items():
            model = Reference(ROOT / folder, float32=float32)
            runs[kind] = [
                model.run(
                    tokenizer.apply_chat_template(
                        [{"role": "user", "content": f"Explain {entry['topic']}."}],
                        add_generation_prompt=True,
                        return_dict=False,
                    ),
                    200,
                    stop=stop,
                )
                for entry in known
            ]
            right = [final(tokenizer, r.tokens) == e["answer"] for r, e in zip(runs[kind], known)]
            row = [name, kind, sum(right)]
            same = largest = ""
            if kind != "f32":
                pairs = list(zip(runs["f32"], runs[kind]))
                prefixes = [common_prefix(a.tokens, b.tokens) for a, b in pairs]
                same = sum(a.tokens == b.tokens for a, b in pairs)
                largest = max(difference(a, b, n) for (a, b), n in zip(pairs, prefixes))
                largest = f"{largest:.3f}"
                for (a, b), n, entry in zip(pairs, prefixes, known):
                    if a.tokens != b.tokens:
                        margin = a.logprobs[n][0][1] - a.logprobs[n][1][1]
                        first, second = (tokenizer.decode([t.tokens[n]]) for t in (a, b))
                        notes.append(
                            f"| {name} | {entry['topic']} | {n} | `{first}` | `{second}` "
                            f"| {margin:.2f} |"
                        )
            rows.append("| " + " | ".join(map(str, [*row, same, largest])) + " |")
            print(rows[-1], flush=True)
    text = f"""# The known answers by mlx-lm

"Explain {{topic}}." for the {len(known)} topics of `tests/fixtures/known-answers.json`, greedy, by
mlx-lm {version("mlx-lm")} on MLX {version("mlx")} (CPU). *Right*: the text of the first `final`
message is the answer. *Same tokens*: topics with the same tokens as in f32, up to the end;
*difference*: the largest one in logprob before the first other token.

| model | activations | right | same tokens | difference |
|---|---|---|---|---|
{chr(10).join(rows)}

Where the tokens are not the same, at which one they part, and by how much the reference prefers
its own there:

| model | topic | at | f32 | own type | margin in f32 |
|---|---|---|---|---|---|
{chr(10).join(notes)}
"""
    (GOLDEN / "KNOWN_ANSWERS.md").write_text(text, encoding="utf-8")


def final(tokenizer, tokens: list[int]) -> str:
    text = tokenizer.decode(tokens, skip_special_tokens=False)
    return text.partition("<|channel|>final<|message|>")[2].partition("<|")[0]


if __name__ == "__main__":
    main()
