"""FP8 model folders: made by ModelOpt and by compressed-tensors themselves, or written by hand."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load, save_file
from transformers import LlamaConfig, MistralConfig, NemotronConfig
from transformers.models.auto.modeling_auto import (
    AutoModelForCausalLM as _AutoModelForCausalLM,
)

Tensors = dict[str, torch.Tensor]
AutoModelForCausalLM: Any = _AutoModelForCausalLM  # its methods have no types
FP8_DTYPE: Final = torch.float8_e4m3fn
LARGEST: Final = 448.0


def load_file(path: Path) -> Tensors:
    """Return copies of a file's tensors, so that it can be written again.

    Those of safetensors' function of this name lie in the mapped file.
    """
    return load(path.read_bytes())


# Heads wider than the hidden size shared among them, in Nemotron not even a whole number.
SIZES: Final[dict[str, Any]] = {
    "hidden_size": 96,
    "intermediate_size": 320,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
CONFIGS: Final[dict[str, Callable[[], Any]]] = {
    "llama": lambda: LlamaConfig(**SIZES, num_attention_heads=8, head_dim=32),
    "mistral": lambda: MistralConfig(
        **SIZES, num_attention_heads=8, head_dim=32, sliding_window=None
    ),
    "nemotron": lambda: NemotronConfig(**SIZES, num_attention_heads=20, head_dim=8),
}


def random_model(kind: str, folder: Path) -> Any:
    """Save a random bf16 model whose q, k and v differ in amax, and return it."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](), dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += torch.randn(parameter.shape).to(torch.bfloat16) * 0.1
        elif "q_proj" in name or "o_proj" in name:
            parameter.data *= 3
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


def token_ids() -> torch.Tensor:
    """Return some text to calibrate with."""
    return torch.randint(0, 128, (4, 64), generator=torch.Generator().manual_seed(3))


def by_modelopt(kind: str, preset: str | None, kv_cache: bool, folder: Path) -> Path:
    """Let ModelOpt quantize a random model and export it in its unified form.

    Without a preset no weight is quantized.
    """
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint

    nothing = {"quant_cfg": [{"quantizer_name": "*", "enable": False}], "algorithm": "max"}
    settings: Any = copy.deepcopy(getattr(mtq, preset)) if preset else nothing
    if kv_cache:
        settings["quant_cfg"] += copy.deepcopy(mtq.FP8_KV_CFG["quant_cfg"])
    with contextlib.redirect_stdout(io.StringIO()):
        model = random_model(kind, folder / "bf16")
        mtq.quantize(model, settings, lambda model: model(token_ids()))
        export_hf_checkpoint(model, export_dir=folder / "fp8")
    return folder / "fp8"


def by_compressed_tensors(kind: str, dynamic: bool, kv_cache: bool, folder: Path) -> Path:
    """Let compressed-tensors compress and save a random model; the ranges are found here."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    fp8 = {"num_bits": 8, "type": "float", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**fp8, "strategy": "channel" if dynamic else "tensor"},
        "input_activations": {
            **fp8,
            "strategy": "token" if dynamic else "tensor",
            "dynamic": dynamic,
        },
    }
    described = {
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "format": "float-quantized",
        "kv_cache_scheme": {**fp8, "strategy": "tensor"} if kv_cache else None,
    }
    model = random_model(kind, folder / "bf16")
    apply_quantization_config(model, QuantizationConfig(**described))
    for index, module in enumerate(model.modules()):
        if hasattr(module, "weight_scale"):
            sizes = module.weight.abs().float()
            amax = sizes.amax(1, keepdim=True) if dynamic else sizes.amax()
            module.weight_scale.data.copy_(amax / LARGEST)
        for name in ("input_scale", "k_scale", "v_scale"):
            if hasattr(module, name):
                # q, k and v get scales of their own, as no tool would give them.
                getattr(module, name).data.fill_(0.01 + 0.0003 * index + 0.002 * (name[0] == "v"))
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder / "fp8")
    compressor.update_config(folder / "fp8")
    return folder / "fp8"


AUTOFP8: Final = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": []}


def by_hand(folder: Path, quantization: dict[str, Any] = AUTOFP8, rowwise: bool = False) -> Path:
    """Quantize a folder's own file: fixed input scales, q, k and v alike; or a scale per row."""
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        module, weight = name.removesuffix(".weight"), tensors[name].float()
        scale = weight.abs().amax(1) / LARGEST if rowwise else torch.tensor(1 / LARGEST)
        tensors[name] = (weight / (scale[:, None] if rowwise else scale)).to(FP8_DTYPE)
        tensors[f"{module}.weight_scale"] = scale
        if not rowwise:
            tensors[f"{module}.input_scale"] = torch.tensor([0.25])
    save_file(tensors, folder / "model.safetensors")
    path = folder / "config.json"
    record = {**json.loads(path.read_text()), "quantization_config": quantization}
    path.write_text(json.dumps(record))
    return folder


def stored(folder: Path) -> Tensors:
    """Return the tensors of a folder, scales as flat float32."""
    return {
        name: tensor.float().reshape(-1) if name.endswith("scale") else tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def dequantized(tensors: Tensors, name: str) -> torch.Tensor:
    """Return a weight times its scale, as float32."""
    weight = tensors[name].float()
    scale = tensors.get(f"{name}_scale")
    if scale is None:
        return weight
    return weight * (scale if scale.numel() == 1 else scale[:, None])


def brought_together(tensors: Tensors) -> Tensors:
    """Return an FP8 folder's tensors with one weight scale for q, k and v of a layer, by torch."""
    found = dict(tensors)
    for query in (name for name in tensors if name.endswith("q_proj.weight_scale")):
        scales = [query.replace("q_proj", f"{part}_proj") for part in "qkv"]
        shared = max(tensors[scale] for scale in scales)
        for scale in scales:
            name = scale.removesuffix("_scale")
            weight = tensors[name].double() * tensors[scale].double() / shared.double()
            found |= {name: weight.float().to(FP8_DTYPE), scale: shared}
    return found


def simulated(folder: Path, tensors: Tensors) -> Any:
    """Return transformers' model of FP8 tensors in float32, its inputs rounded to FP8."""
    record = json.loads((folder / "config.json").read_text())
    record.pop("quantization_config", None)
    config = CONFIGS[record["model_type"]]().from_dict(record)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights = {k: dequantized(tensors, k) for k in tensors if not k.endswith("_scale")}
    if record["model_type"] == "nemotron":
        # TensorRT-LLM stores the factor, one more, in the model's dtype.
        norms = [name for name in weights if name.endswith("norm.weight")]
        weights |= {name: (tensors[name] + 1).float() - 1 for name in norms}
    model.load_state_dict(weights)

    def rounded(scale: torch.Tensor | None) -> Any:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            (values,) = inputs
            step = values.abs().amax(-1, keepdim=True) / LARGEST if scale is None else scale
            return (((values / step).clamp(-LARGEST, LARGEST)).to(FP8_DTYPE).float() * step,)

        return hook

    for name, module in model.named_modules():
        if f"{name}.weight_scale" in tensors:
            heads = [name.replace(name[-6:], f"{part}_proj") for part in "qkv"]
            together = heads if name in heads else [name]
            scales = [tensors.get(f"{module}.input_scale") for module in together]
            known = [scale for scale in scales if scale is not None]
            module.register_forward_pre_hook(rounded(max(known) if known else None))
    return model.eval()
