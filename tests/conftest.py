"""Tiny Hugging Face folders with the odd shapes of Minitron, and the command to run on them."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Final

# Workers and their servers share the cores. Read by numpy and torch when they are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file

from minitron_trt.cli import main
from minitron_trt.console import log

# A shell starts what runs in its background with SIGINT ignored, and so would every program that
# a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# On a busy machine any one example may take long; what hangs is ended by the time for a test.
# A fixture that is a function's is a folder or a server that its examples share on purpose.
hypothesis.settings.register_profile(
    "shared",
    deadline=None,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
)
hypothesis.settings.load_profile("shared")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Hand tests to several workers; `pytest -n 2` asks for them."""
    from tests.side_by_side import ByServer

    return ByServer(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let workers begin with what takes long, so that short tests fill up the end.

    Where transformers is older than 5, nothing can be compared with that.
    """
    if any(item.get_closest_marker("transformers_5") for item in items):
        version = importlib.metadata.version("transformers")
        reason = f"NOT TESTED, compares with transformers 5 and this is {version}"
        older = pytest.mark.skipif(int(version.split(".")[0]) < 5, reason=reason)
        for item in items:
            if item.get_closest_marker("transformers_5"):
                item.add_marker(older)
    if hasattr(config, "workerinput"):
        marks = ("server", "slow")
        items.sort(key=lambda item: [item.get_closest_marker(mark) is None for mark in marks])


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import all test modules without looking for garbage, which is a fifth of the time it takes.

    What they import, torch and transformers above all, are millions of objects that stay. Nor are
    they looked at again when the tests make garbage.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


# Twelve heads of 8 do not fit a hidden size of 40, two key/value heads are fewer than four ranks,
# three layers do not divide by two, and 131 tokens do not divide by four.
SIZES: Final[dict[str, Any]] = {
    "hidden_size": 40,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 131,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
CONFIGS: Final[dict[str, dict[str, Any]]] = {
    "llama": {
        **SIZES,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "mistral": {
        **SIZES,
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "sliding_window": None,
    },
    "nemotron": {
        **SIZES,
        "architectures": ["NemotronForCausalLM"],
        "model_type": "nemotron",
        "hidden_act": "relu2",
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    },
}

Shapes = dict[str, tuple[int, ...]]
MakeModel = Callable[..., Path]


def tensor_shapes(config: dict[str, Any]) -> Shapes:
    """Return the tensors that transformers saves for a config, by name."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    layer: Shapes = {
        "self_attn.q_proj.weight": (query, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, query),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    norm: Shapes = {"weight": (hidden,)}
    if config["model_type"] == "nemotron":
        norm["bias"] = (hidden,)
    else:
        layer["mlp.gate_proj.weight"] = (inner, hidden)
    for name in ("input_layernorm", "post_attention_layernorm"):
        layer |= {f"{name}.{part}": shape for part, shape in norm.items()}
    vocabulary = (config["vocab_size"], hidden)
    return {
        "model.embed_tokens.weight": vocabulary,
        **{
            f"model.layers.{index}.{name}": shape
            for index in range(config["num_hidden_layers"])
            for name, shape in layer.items()
        },
        **{f"model.norm.{part}": shape for part, shape in norm.items()},
        **({} if config["tie_word_embeddings"] else {"lm_head.weight": vocabulary}),
    }


def write_weights(folder: Path, shapes: Shapes, dtype: Any, shards: int) -> None:
    """Write random weights, one file or some shards with their index."""
    random = np.random.default_rng(7)
    tensors = {
        name: (random.standard_normal(shape, dtype=np.float32) * 0.1).astype(dtype)
        for name, shape in shapes.items()
    }
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    weight_map = {
        name: f"model-{index % shards + 1:05d}-of-{shards:05d}.safetensors"
        for index, name in enumerate(shapes)
    }
    for file in set(weight_map.values()):
        save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.fixture(scope="session")
def shapes_of() -> Callable[[dict[str, Any]], Shapes]:
    """Return the shapes of a config's tensors by name, in file order."""
    return tensor_shapes


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """Return a writer of model folders; changes go into the config of a kind and its weights."""

    def make(kind: str, dtype: Any = ml_dtypes.bfloat16, shards: int = 1, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        config = {**CONFIGS[kind], **changes}
        write_weights(folder, tensor_shapes(config), dtype, shards)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
        (folder / "tokenizer.json").write_text('{"version": "1.0"}')
        (folder / "tokenizer_config.json").write_text(
            '{"tokenizer_class": "PreTrainedTokenizerFast"}'
        )
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_llama(make_model: MakeModel) -> Path:
    """Return a Llama folder to read, in two shards."""
    return make_model("llama", shards=2)


@pytest.fixture(scope="session")
def tiny_mistral(make_model: MakeModel) -> Path:
    """Return a Mistral folder to read."""
    return make_model("mistral")


@pytest.fixture(scope="session")
def tiny_nemotron(make_model: MakeModel) -> Path:
    """Return a Nemotron folder to read."""
    return make_model("nemotron")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Return a call of minitron-trt in this process."""
    state = log.handlers, log.level, log.propagate
    # The command looks for -v there.
    monkeypatch.setattr("sys.argv", ["minitron-trt"])
    yield lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])
    log.handlers, log.level, log.propagate = state
