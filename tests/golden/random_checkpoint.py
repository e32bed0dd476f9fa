"""GPT-OSS checkpoints of any shape with random weights.

Used by the goldens (`make.py`), the live comparison (`tests/live`) and the measurement beside
mlx-lm (`benches/vs_mlx_lm.py`). Needs numpy only. The same seed writes the same bytes on every
machine: the numbers come from numpy's frozen legacy generator, uniformly, without a
transcendental function.
"""

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

# Root mean square of the 16 values of FP4 (E2M1): 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.
FP4_RMS = 2.926
MXFP4_GROUP = 32
DTYPES = {
    "BF16": (2, "bfloat16"),
    "F16": (2, "float16"),
    "F32": (4, "float32"),
}
# `Shape.affine` of mlx-community's MXFP4-Q8: 8 bits for everything but the experts.
Q8 = {
    end: (8, 64)
    for end in ("embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj", "router", "lm_head")
}


@dataclass
class Shape:
    """What a checkpoint looks like; the numbers are those of config.json."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    top_k: int
    vocab: int
    window: int
    layer_types: str  # one letter per layer: s(liding) or f(ull)
    layout: str  # "openai", or "mlx" for separate gate_proj and up_proj
    dtype: str = "BF16"  # of everything that is not quantized
    experts_mxfp4: bool = True
    rope_scaling: dict | None = field(
        default_factory=lambda: {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": True,
            "original_max_position_embeddings": 4096,
        }
    )
    rope_theta: float = 150000
    rms_norm_eps: float = 1e-5
    # Affine quantization, layout "mlx": the ending of a module's path -> (bits, group size). The
    # first ending that fits counts; a module that none fits is not quantized. The ending "" fits
    # all and becomes the default in config.json.
    affine: dict[str, tuple[int, int]] = field(default_factory=dict)
    # Ids that end an answer; their rows of the head are zero where `mute_stops` is set, so that
    # a long greedy run does not meet one.
    stop_ids: tuple[int, ...] = (0,)
    mute_stops: bool = False


def write(folder: Path, shape: Shape, seed: int) -> None:
    """Writes config.json, generation_config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors, modules = _Maker(shape, seed).tensors()
    dump(folder / "config.json", config(shape, modules))
    dump(folder / "generation_config.json", {"eos_token_id": list(shape.stop_ids)})
    save(folder / "model.safetensors", tensors)


def dump(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def config(shape: Shape, modules: dict) -> dict:
    names = {"s": "sliding_attention", "f": "full_attention"}
    config = {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": len(shape.layer_types),
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "num_local_experts": shape.experts,
        "num_experts_per_tok": shape.top_k,
        "experts_per_token": shape.top_k,
        "vocab_size": shape.vocab,
        "sliding_window": shape.window,
        "layer_types": [names[letter] for letter in shape.layer_types],
        "rope_theta": shape.rope_theta,
        "rope_scaling": shape.rope_scaling,
        "max_position_embeddings": 131072,
        "rms_norm_eps": shape.rms_norm_eps,
        "swiglu_limit": 7.0,
        "attention_bias": True,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "eos_token_id": shape.stop_ids[0],
        "torch_dtype": DTYPES[shape.dtype][1],
    }
    if shape.layout == "openai":
        config["quantization_config"] = {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        }
    elif shape.affine or shape.experts_mxfp4:
        default = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
        if "" in shape.affine:
            bits, group = shape.affine[""]
            default = {"group_size": group, "bits": bits}
        config["quantization"] = {**default, **modules}
    return config


def save(path: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    """A safetensors file: header length, header, then the tensors without gaps."""
    header, offset = {}, 0
    for name, (dtype, array) in tensors.items():
        end = offset + array.nbytes
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(head)))
        file.write(head)
        for _, array in tensors.values():
            file.write(array.tobytes())


class _Maker:
    """Draws the tensors one after another; their order is part of what the seed means."""

    def __init__(self, shape: Shape, seed: int):
        self.shape = shape
        self.random = np.random.RandomState(seed)
        self.out: dict[str, tuple[str, np.ndarray]] = {}
        self.modules: dict = {}  # `quantization` in config.json

    def tensors(self):
        s = self.shape
        wide, narrow = s.heads * s.head_dim, s.kv_heads * s.head_dim
        self.linear("model.embed_tokens", s.vocab, s.hidden, gain=s.hidden**0.5, bias=False)
        for layer in range(len(s.layer_types)):
            at = f"model.layers.{layer}"
            self.norm(f"{at}.input_layernorm.weight")
            self.linear(f"{at}.self_attn.q_proj", wide, s.hidden, gain=1.5)
            self.linear(f"{at}.self_attn.k_proj", narrow, s.hidden, gain=1.5)
            self.linear(f"{at}.self_attn.v_proj", narrow, s.hidden)
            self.linear(f"{at}.self_attn.o_proj", s.hidden, wide, gain=2.0)
            self.float(f"{at}.self_attn.sinks", self.uniform((s.heads,), 2.0))
            self.norm(f"{at}.post_attention_layernorm.weight")
            self.linear(f"{at}.mlp.router", s.experts, s.hidden, gain=2.0)
            self.experts(f"{at}.mlp.experts")
        self.norm("model.norm.weight")
        self.linear("lm_head", s.vocab, s.hidden, gain=3.0, bias=False)
        if s.mute_stops:
            self.mute()
        return self.out, self.modules

    def experts(self, at: str) -> None:
        s = self.shape
        # A gain of 3 makes a few of the gates and ups larger than the limit of 7: they are clamped.
        if s.layout == "openai":
            blocks, scales = self.fp4((s.experts, 2 * s.intermediate), s.hidden, 3.0)
            self.raw(f"{at}.gate_up_proj_blocks", "U8", blocks)
            self.raw(f"{at}.gate_up_proj_scales", "U8", scales)
            self.float(f"{at}.gate_up_proj_bias", self.uniform((s.experts, 2 * s.intermediate), 0.2))
            blocks, scales = self.fp4((s.experts, s.hidden), s.intermediate, 0.5)
            self.raw(f"{at}.down_proj_blocks", "U8", blocks)
            self.raw(f"{at}.down_proj_scales", "U8", scales)
            self.float(f"{at}.down_proj_bias", self.uniform((s.experts, s.hidden), 0.2))
            return
        for name, rows, columns, gain in [
            ("gate_proj", s.intermediate, s.hidden, 3.0),
            ("up_proj", s.intermediate, s.hidden, 3.0),
            ("down_proj", s.hidden, s.intermediate, 0.5),
        ]:
            if s.experts_mxfp4:
                blocks, scales = self.fp4((s.experts, rows), columns, gain)
                words = blocks.reshape(s.experts, rows, -1).view("<u4")
                self.raw(f"{at}.{name}.weight", "U32", words)
                self.raw(f"{at}.{name}.scales", "U8", scales)
                self.float(f"{at}.{name}.bias", self.uniform((s.experts, rows), 0.2))
            else:
                self.linear(f"{at}.{name}", rows, columns, gain=gain, experts=s.experts)

    def linear(self, path, rows, columns, *, gain=1.0, bias=True, experts=None) -> None:
        """Weights of standard deviation gain / sqrt(columns), quantized where `affine` says so."""
        lead = () if experts is None else (experts,)
        spread = gain / columns**0.5
        chosen = next((q for end, q in self.shape.affine.items() if path.endswith(end)), None)
        if chosen is None:
            self.float(f"{path}.weight", self.uniform((*lead, rows, columns), spread * 3**0.5))
        else:
            bits, group = chosen
            words = self.bytes((*lead, rows, columns * bits // 8)).view("<u4")
            # Uniform integers up to 2^bits - 1 have a standard deviation of (2^bits - 1) / sqrt(12).
            steps = 2**bits - 1
            groups = (*lead, rows, columns // group)
            scales = (1 + self.uniform(groups, 0.5)) * (spread * 12**0.5 / steps)
            self.raw(f"{path}.weight", "U32", words)
            self.float(f"{path}.scales", scales)
            self.float(f"{path}.biases", scales * (-steps / 2))
            # No `mode`: that means affine, whatever the default of the other modules is.
            if chosen != self.shape.affine.get(""):
                self.modules[path] = {"group_size": group, "bits": bits}
        if bias:
            self.float(f"{path}.bias", self.uniform((*lead, rows), 0.2))

    def fp4(self, lead, columns, gain):
        """MXFP4: 16 bytes of two values each, and one exponent, for every 32 columns."""
        groups = (*lead, columns // MXFP4_GROUP)
        exponent = int(np.rint(np.log2(gain / columns**0.5 / FP4_RMS))) + 127
        scales = (exponent - (self.random.random_sample(groups) < 0.5)).astype(np.uint8)
        return self.bytes((*groups, MXFP4_GROUP // 2)), scales

    def norm(self, name: str) -> None:
        self.float(name, 1 + self.uniform((self.shape.hidden,), 0.5))

    def mute(self) -> None:
        """Makes the head's rows of the stop ids zero, so that another logit is the largest."""
        rows = list(self.shape.stop_ids)
        for name in ["lm_head.weight", "lm_head.scales", "lm_head.biases"]:
            if name in self.out:
                self.out[name][1][rows] = 0

    def uniform(self, size, limit):
        return (self.random.random_sample(size) * 2 - 1) * limit

    def bytes(self, size):
        return np.frombuffer(self.random.bytes(int(np.prod(size))), np.uint8).reshape(size).copy()

    def float(self, name: str, values: np.ndarray) -> None:
        if self.shape.dtype == "BF16":
            # The upper half of an f32; cutting is as good as rounding for random numbers.
            array = (values.astype("<f4").view("<u4") >> 16).astype("<u2")
        else:
            array = values.astype("<f4" if self.shape.dtype == "F32" else "<f2")
        self.raw(name, self.shape.dtype, array)

    def raw(self, name: str, dtype: str, array: np.ndarray) -> None:
        self.out[name] = (dtype, array)
