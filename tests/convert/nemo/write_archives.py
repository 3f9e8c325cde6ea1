"""Write the archives of this folder with megatron-core, which NeMo trains and saves with.

It needs an environment of its own, which `make test-megatron` makes. megatron-core 0.8.0 wrote all
but torch_dist, for which it would need a torch of its time: 0.16.1 wrote that, and both computed
the same logits to the last digit. What stands in for hardware that a CPU lacks: norms of torch's
own operators for Transformer Engine's, a `torch.cuda.synchronize` that has nothing to wait for, and
no states of random numbers. The configs are written as NeMo 24.05 writes them; the weights, their
names, places and order, and the logits are megatron-core's.

    python write_archives.py FOLDER zarr single ranks stages
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import multiprocessing
import os
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

SIZES = {
    "num_layers": 2,
    "hidden_size": 16,
    "ffn_hidden_size": 24,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 8,  # not 16 // 4
    "encoder_seq_length": 64,
    "max_position_embeddings": 64,
}
VOCABULARY, PADDED = 45, 48
GRAPHS: dict[str, dict[str, Any]] = {
    "nemotron": {
        "normalization": "layernorm1p",
        "activation": "squared-relu",
        "rotary_percentage": 0.5,
        "layernorm_epsilon": 1e-5,
    },
    "llama": {
        "normalization": "rmsnorm",
        "activation": "fast-swiglu",
        "rotary_percentage": 1.0,
        "rotary_base": 500000.0,
        "layernorm_epsilon": 1e-6,
    },
}
# tensor-parallel ranks, pipeline-parallel ranks, dtype of the weights
FORMS = {
    "zarr": (2, 2, "bfloat16"),
    "torch_dist": (2, 1, "bfloat16"),
    "single": (1, 1, "float32"),
    "ranks": (2, 1, "bfloat16"),
    "stages": (2, 2, "bfloat16"),
}
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 44, 0, 31, 17]


def config_of(graph: str, tp: int, pp: int, form: str) -> dict[str, Any]:
    """Return the model_config.yaml of an archive, with what else NeMo keeps there."""
    return {
        "mcore_gpt": True,
        "micro_batch_size": 4,
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "virtual_pipeline_model_parallel_size": None,
        **SIZES,
        **GRAPHS[graph],
        "init_method_std": 0.02,
        "apply_query_key_layer_scaling": False,
        "make_vocab_size_divisible_by": 8,
        "bias": False,
        "headscale": False,
        "transformer_block_type": "pre_ln",
        "openai_gelu": False,
        "normalize_attention_scores": True,
        "position_embedding_type": "rope",
        "attention_type": "multihead",
        "share_embeddings_and_output_weights": False,
        "seq_len_interpolation_factor": None,
        "tokenizer": {
            "library": "sentencepiece",
            "type": None,
            "model": "nemo:0123456789abcdef0123456789abcdef_tokenizer.model",
            "sentencepiece_legacy": False,
        },
        "precision": "bf16-mixed",
        "dist_ckpt_format": "zarr" if form == "zarr" else "torch_dist",
        "target": "nemo.collections.nlp.models.language_modeling.megatron_gpt_model"
        ".MegatronGPTModel",
        "nemo_version": "2.0.0rc0",
    }


def sentencepiece_model() -> bytes:
    """Return a SentencePiece model of VOCABULARY pieces: a protobuf, written by hand."""

    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3}
    pieces = [*kinds, *(chr(ord("A") + index) for index in range(VOCABULARY - len(kinds)))]
    return b"".join(
        field(1, field(1, piece.encode()) + bytes([3 << 3, kinds.get(piece, 1)]))
        for piece in pieces
    )


def norm_class(graph: str) -> Any:
    """Return the graph's norm, as NeMo's own code has it, for a CPU."""
    import torch

    class LayerNorm1P(torch.nn.Module):
        def __init__(self, config: Any, hidden_size: int, eps: float) -> None:
            super().__init__()
            self.eps = eps
            self.weight = torch.nn.Parameter(torch.zeros(hidden_size))
            self.bias = torch.nn.Parameter(torch.zeros(hidden_size))

        def forward(self, x: Any) -> Any:
            shape = self.weight.shape
            return torch.nn.functional.layer_norm(x, shape, self.weight + 1, self.bias, self.eps)

    class RmsNorm(torch.nn.Module):
        def __init__(self, config: Any, hidden_size: int, eps: float) -> None:
            super().__init__()
            self.eps = eps
            self.weight = torch.nn.Parameter(torch.ones(hidden_size))

        def forward(self, x: Any) -> Any:
            return torch.nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)

    return LayerNorm1P if GRAPHS[graph]["normalization"] == "layernorm1p" else RmsNorm


def transformer_config(graph: str) -> Any:
    """Return megatron-core's config of the graph, for this process's place among the ranks."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.transformer.transformer_config import TransformerConfig

    facts = GRAPHS[graph]
    gated = facts["activation"].endswith("glu")
    layer_norm = facts["normalization"] == "layernorm1p"
    return TransformerConfig(
        **{key: SIZES[key] for key in list(SIZES)[:6]},
        tensor_model_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline_model_parallel_size=parallel_state.get_pipeline_model_parallel_world_size(),
        pipeline_dtype=torch.float32,
        use_cpu_initialization=True,
        add_bias_linear=False,
        gated_linear_unit=gated,
        activation_func=torch.nn.functional.silu if gated else squared_relu,
        normalization="LayerNorm" if layer_norm else "RMSNorm",
        layernorm_zero_centered_gamma=layer_norm,
        layernorm_epsilon=facts["layernorm_epsilon"],
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
    )


def build(graph: str, first: bool, last: bool) -> Any:
    """Return this rank's part of a model, with weights that follow from their global place."""
    import megatron.core.transformer.transformer_block as block
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    facts, norm = GRAPHS[graph], norm_class(graph)
    layer = get_gpt_layer_local_spec()
    layer.submodules.input_layernorm = norm
    layer.submodules.pre_mlp_layernorm = norm
    # The final norm is no part of the layer's spec.
    block.LayerNormImpl = norm
    return GPTModel(
        transformer_config(graph),
        layer,
        vocab_size=PADDED,
        max_sequence_length=SIZES["max_position_embeddings"],
        pre_process=first,
        post_process=last,
        parallel_output=True,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
        rotary_percent=facts["rotary_percentage"],
        rotary_base=facts.get("rotary_base", 10000),
    ).eval()


def squared_relu(x: Any) -> Any:
    """Return Nemotron's activation."""
    import torch

    return torch.pow(torch.nn.functional.relu(x), 2)


def fill(model: Any) -> None:
    """Give every tensor of a whole model values of bfloat16 that no other place of it has."""
    import torch

    generator = torch.Generator().manual_seed(11)
    for _, parameter in sorted(model.named_parameters()):
        values = torch.randn(parameter.shape, generator=generator) * 0.3
        if parameter.ndim == 1:
            # Of norms, which begin as 0 or 1. One more than any of these is a bfloat16, too.
            values = parameter + (values * 64).round() / 64
        parameter.copy_(values.bfloat16().float())


def run_rank(rank: int, graph: str, form: str, port: int, folder: str, whole: str) -> None:
    """Load the whole model's dist checkpoint into this rank's part and save it in a form."""
    tp, pp, dtype = FORMS[form]
    start(rank, tp, pp, port)
    import torch
    from megatron.core import dist_checkpointing, parallel_state

    model = build(
        graph,
        parallel_state.is_pipeline_first_stage(),
        parallel_state.is_pipeline_last_stage(),
    )
    state = dist_checkpointing.load(model.sharded_state_dict(prefix="model."), whole)
    model.load_state_dict({key.removeprefix("model."): value for key, value in state.items()})
    model = model.to(getattr(torch, dtype))
    if form in ("zarr", "torch_dist"):
        dist_checkpointing.save(
            model.sharded_state_dict(prefix="model."), folder, sharded_strategy=(form, 1)
        )
    else:
        tp_rank = parallel_state.get_tensor_model_parallel_rank()
        pp_rank = parallel_state.get_pipeline_model_parallel_rank()
        names = {
            "single": "",
            "ranks": f"mp_rank_{tp_rank:02d}",
            "stages": f"tp_rank_{tp_rank:02d}_pp_rank_{pp_rank:03d}",
        }
        place = Path(folder).parent / names[form]
        place.mkdir(exist_ok=True)
        torch.save(
            {f"model.{key}": value for key, value in model.state_dict().items()},
            place / "model_weights.ckpt",
        )
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def start(rank: int, tp: int, pp: int, port: int) -> None:
    """Begin a process group of CPUs."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": "0"}
    import torch

    torch.cuda.synchronize = lambda *_: None
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment, return-value]
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=tp * pp)
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    CudaRNGStatesTracker.fork = lambda *_: contextlib.nullcontext()
    parallel_state.initialize_model_parallel(tp, pp)


def run_whole(graph: str, form: str, port: int, whole: str) -> None:
    """Write the whole model's dist checkpoint and its logits on one rank."""
    start(0, 1, 1, port)
    import torch
    from megatron.core import dist_checkpointing

    model = build(graph, True, True)
    with torch.no_grad():
        fill(model)
        ids = torch.tensor([TOKENS])
        positions = torch.arange(len(TOKENS))[None]
        mask = torch.ones(1, 1, len(TOKENS), len(TOKENS), dtype=torch.bool).triu(1)
        logits = model(ids, positions, mask)
    Path(whole).mkdir()
    dist_checkpointing.save(
        model.sharded_state_dict(prefix="model."), whole, sharded_strategy=(form, 1)
    )
    record = {"tokens": TOKENS, "logits": logits[0, :, :VOCABULARY].tolist()}
    Path(whole, "..", "logits.json").write_text(json.dumps(record))
    state = {key: value for key, value in model.state_dict().items() if value is not None}
    torch.save(state, Path(whole, "..", "state.pt"))
    torch.distributed.destroy_process_group()


def in_processes(target: Any, arguments: list[tuple[Any, ...]]) -> None:
    """Run a function in a process for each tuple of arguments; all must end well."""
    # Each begins a process group of its own; the imports before that are shared.
    import megatron.core.models.gpt  # noqa: F401

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=target, args=one) for one in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(f"{target.__name__} failed")


def pack(folder: Path, archive: Path) -> None:
    """Pack a folder as NeMo does, then compress it, with no trace of when and by whom."""

    def nobody(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "", ""
        return member

    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:") as tar:
        tar.add(folder, arcname=".", filter=nobody)
    archive.write_bytes(gzip.compress(data.getvalue(), 9, mtime=0))


def main(output: Path, forms: list[str]) -> None:
    """Write every graph in every form, and the logits of both graphs."""
    import yaml

    kind = "torch_dist" if "torch_dist" in forms else "zarr"
    port = 20000 + os.getpid() % 20000
    for graph in GRAPHS:
        with tempfile.TemporaryDirectory() as name:
            whole = Path(name, "whole")
            in_processes(run_whole, [(graph, kind, port, str(whole))])
            record = json.loads(Path(name, "logits.json").read_text())
            rounded = [[float(f"{x:.7g}") for x in row] for row in record["logits"]]
            (output / f"{graph}.json").write_text(
                json.dumps({"tokens": TOKENS, "logits": rounded}) + "\n"
            )
            for form in forms:
                tp, pp, _ = FORMS[form]
                port += 1
                folder = Path(name, form)
                weights = folder / "model_weights"
                weights.mkdir(parents=True)
                arguments = [
                    (rank, graph, form, port, str(weights), str(whole)) for rank in range(tp * pp)
                ]
                in_processes(run_rank, arguments)
                if not any(weights.iterdir()):
                    weights.rmdir()
                config = config_of(graph, tp, pp, form)
                (folder / "model_config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
                tokenizer = config["tokenizer"]["model"].removeprefix("nemo:")
                (folder / tokenizer).write_bytes(sentencepiece_model())
                pack(folder, output / f"{graph}_{form}.nemo")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
