"""`minitron-trt triton-repo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import cloup

from minitron_trt.console import PATH, Console, console_options
from minitron_trt.option_types import Count
from minitron_trt.tables import folded, output_width
from minitron_trt.triton_repo.contract.model_names import TENSORRT_LLM_BLS
from minitron_trt.triton_repo.parameters import table
from minitron_trt.triton_repo.runtimes.runtime_names import RUNTIMES


def _list_parameters(context: click.Context, _: click.Parameter, requested: bool) -> None:
    if requested:
        click.echo(table())
        context.exit()


@cloup.command("triton-repo")
@cloup.argument("artifact", type=PATH)
@cloup.option_group(
    "Repository",
    cloup.option(
        "-o",
        "--output",
        type=PATH,
        required=True,
        help="Folder to write the model repository to",
    ),
    cloup.option(
        "--runtime",
        type=click.Choice(RUNTIMES),
        help="What generates the tokens  [default: what serves the artifact]",
    ),
    cloup.option(
        "--tokenizer",
        type=PATH,
        help="Folder of the tokenizer  [default: the artifact]",
    ),
    cloup.option(
        "--draft",
        type=PATH,
        help="Checkpoint of a smaller model that drafts, for requests to tensorrt_llm_bls with "
        "num_draft_tokens; reference only",
    ),
    cloup.option(
        "--mount",
        default="/models",
        show_default=True,
        help="Where the repository will lie in the container; trtllm only",
    ),
    cloup.option("--overwrite", is_flag=True, help="Replace a repository that is already there"),
)
@cloup.option_group(
    "Sizes and processes",
    cloup.option(
        "--max-batch-size",
        type=Count(),
        help="Sequences generated at once  [default: the engine's; reference 8, llmapi 64]",
    ),
    cloup.option(
        "--max-seq-len",
        type=Count(),
        help="Tokens of a prompt and its answer together  [default: the model's; reference at most "
        "4096]",
    ),
    cloup.option(
        "--max-queue-size",
        type=Count(),
        default=256,
        show_default=True,
        help="Requests that may wait for a place",
    ),
    cloup.option(
        "--max-queue-delay-us",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Microseconds that a request may wait for others to share a batch; trtllm only",
    ),
    cloup.option(
        "--preprocessing-instances",
        type=click.IntRange(1),
        help="Processes that tokenize prompts  [default: the batch size, at most 4, reference 2]",
    ),
    cloup.option(
        "--bls-instances",
        type=click.IntRange(1),
        help="Processes of tensorrt_llm_bls, each of which answers one request at a time  "
        "[default: the batch size, at most 16, reference 2]",
    ),
    cloup.option("--tp", type=click.IntRange(1), help="Tensor parallelism of the runtime llmapi"),
    cloup.option("--pp", type=click.IntRange(1), help="Pipeline parallelism of the runtime llmapi"),
)
@cloup.option_group(
    "Requests and answers",
    cloup.option(
        "--stream-interval",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Tokens per streamed response, after the first; not with trtllm",
    ),
    cloup.option(
        "--decoupled/--no-decoupled",
        default=True,
        show_default=True,
        help="Let requests stream; without, each gets one response, also over plain HTTP",
    ),
    cloup.option(
        "--add-special-tokens/--no-add-special-tokens",
        default=True,
        show_default=True,
        help="Put the tokenizer's special tokens around a prompt",
    ),
    cloup.option(
        "--skip-special-tokens/--no-skip-special-tokens",
        default=True,
        show_default=True,
        help="Leave special tokens out of the answer's text",
    ),
    cloup.option(
        "--apply-chat-template",
        is_flag=True,
        help="Take prompts as messages, unless a request differs",
    ),
    cloup.option(
        "--exclude-input-in-output/--no-exclude-input-in-output",
        default=True,
        show_default=True,
        help="Leave the prompt out of an answer that is not streamed, unless a request differs",
    ),
)
@cloup.option_group(
    "Other parameters",
    cloup.option(
        "--set",
        "pairs",
        multiple=True,
        metavar="MODEL.PARAMETER=VALUE",
        help="Any other parameter of a model; llm.ARGUMENT=VALUE for an argument of TensorRT-LLM's "
        "LLM class, with llmapi. Repeatable",
    ),
    cloup.option(
        "--list-parameters",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_list_parameters,
        help="Say what --set can give, and stop",
    ),
)
@console_options
def triton_repo(
    console: Console,
    artifact: Path,
    output: Path,
    runtime: str | None,
    pairs: tuple[str, ...],
    overwrite: bool,
    **options: Any,
) -> None:
    """Write a Triton model repository.

    ARTIFACT is a checkpoint (runtime reference), an engine (trtllm: NVIDIA's C++ backend) or a
    Hugging Face model folder (llmapi: TensorRT-LLM's PyTorch runtime). The models are
    preprocessing, tensorrt_llm, postprocessing, ensemble and tensorrt_llm_bls, with TensorRT-LLM's
    tensors.

    Example: minitron-trt triton-repo engine -o repository --set
    tensorrt_llm.kv_cache_free_gpu_mem_fraction=0.8
    """
    from minitron_trt.triton_repo.parameters import parse_settings
    from minitron_trt.triton_repo.repository import emit_repository
    from minitron_trt.triton_repo.runtimes.choice import runtime_for
    from minitron_trt.triton_repo.runtimes.llmapi_runtime import LLM_ARGUMENTS
    from minitron_trt.triton_repo.serving_recipe import ServingRecipe
    from minitron_trt.verification_record import verification_facts

    runtime = runtime_for(artifact, runtime)
    settings = parse_settings(pairs, runtime, LLM_ARGUMENTS)
    recipe = ServingRecipe(**options, settings=settings)
    repository = emit_repository(artifact, output, recipe, runtime=runtime, overwrite=overwrite)
    verification = repository.facts.verification
    at_once = repository.configs[TENSORRT_LLM_BLS].instance_group[0].count
    console.result(
        {
            "repository": str(output),
            "runtime": runtime,
            "models": list(repository.configs),
            "bls_instances": at_once,
            **verification_facts(verification),
        },
        folded(
            f"{output}: {', '.join(repository.configs)} ({runtime} runtime; "
            f"tensorrt_llm_bls answers {at_once} requests at once)"
            + (f"\n  its checkpoint was {verification}" if verification else ""),
            output_width(),
        ),
    )
