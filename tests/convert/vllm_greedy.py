"""What vLLM makes of a model folder, greedily: a program for the environment that has it.

Its argument is the folder; its input is a JSON list of prompts, each a list of token ids. The last
line that it prints is a JSON object.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

TOKENS = 64


def suit_this_processor() -> None:
    """Have vLLM take ways of its own that it has on a CPU, too; by itself 0.32 looks on GPUs only.

    It fuses the activation with rounding to FP8 on every platform, though builds for CPUs lack the
    kernel: without its row of the table both are done one after the other. Its NVFP4 in plain torch
    is listed for GPUs that have no kernel, and for no CPU.
    """
    import torch
    from vllm.model_executor.kernels import linear
    from vllm.model_executor.layers.fusion import fused_act_quant
    from vllm.platforms.interface import PlatformEnum

    if not hasattr(torch.ops._C, "silu_and_mul_quant"):
        fused_act_quant._FUSED_ACT_QUANT.clear()
    emulated = [linear.EmulationNvFp4LinearKernel]
    linear._POSSIBLE_NVFP4_KERNELS.setdefault(PlatformEnum.CPU, emulated)


def reading_of(folder: str, prompts: list[list[int]]) -> dict[str, Any]:
    """Return the token ids that follow each prompt, and the KV cache's scales of each layer.

    `fails` says what this processor lacks for it.
    """
    # All in this process: nothing is left running when it ends.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    import vllm
    from vllm.model_executor.layers.quantization.kv_cache import BaseKVCacheMethod

    suit_this_processor()
    scales: list[tuple[float, float]] = []
    process = BaseKVCacheMethod.process_weights_after_loading

    def noted(self: Any, layer: Any) -> None:
        scales.append((float(layer.k_scale), float(layer.v_scale)))
        process(self, layer)

    BaseKVCacheMethod.process_weights_after_loading = noted
    try:
        model = vllm.LLM(
            folder,
            dtype="bfloat16",
            max_model_len=256,
            max_num_seqs=len(prompts),
            enforce_eager=True,
            skip_tokenizer_init=True,
        )
    except NotImplementedError as error:
        return {"kv_scales": scales, "fails": str(error)}
    greedy = vllm.SamplingParams(temperature=0, max_tokens=TOKENS, detokenize=False)
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    answers = [list(each.outputs[0].token_ids) for each in model.generate(asked, greedy)]
    return {"kv_scales": scales, "answers": answers}


if __name__ == "__main__":
    reading = reading_of(sys.argv[1], json.load(sys.stdin))
    sys.stdout.write("\n" + json.dumps(reading) + "\n")
