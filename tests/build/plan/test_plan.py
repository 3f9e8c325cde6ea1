"""`plan`: bounds by hand, what is shown per GPU and precision, and how fast it answers."""

from __future__ import annotations

import json
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from minitron_trt.build.engine_model import PRESETS, EngineModel
from minitron_trt.build.plan.plan_chart import bars_of, chart
from minitron_trt.build.plan.plan_text import describe, parameters_text
from minitron_trt.build.plan.recommendation import ORDER, recommend
from minitron_trt.build.plan.roofline import bounds
from minitron_trt.build.plan.sizing import PlanRequest, make_plan
from minitron_trt.build.recipe.request import BuildRequest
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.gpus import GPUS, find_gpu, find_target
from minitron_trt.quantization.precisions import PRECISIONS
from minitron_trt.spec import Parallelism

Command = Callable[..., Result]
LLAMA = "llama-3.1-minitron-4b-width"


def planned(command: Command, *arguments: object) -> dict[str, Any]:
    """Return what plan prints with --json."""
    result = command("plan", *arguments, "--json")

    assert (result.exit_code, result.stderr) == (0, "")
    record: dict[str, Any] = json.loads(result.stdout)
    return record


def test_decoding_one_sequence_reads_all_but_the_embedding_and_its_cache() -> None:
    found = bounds(EngineModel("m", PRESETS[LLAMA]), find_gpu("H100"), 1000, 1000, 1)
    # 9,025,492,992 - 2 x 128256 x 3072 bytes of weights, 1500 tokens of 131072 bytes, 3.35 TB/s.
    read = 9_025_492_992 - 788_004_864 + 1500 * 131_072

    assert found.decode_tokens_per_s == pytest.approx(3.35e12 / read)
    assert round(found.decode_tokens_per_s) == 397


def test_a_prompt_is_bound_by_its_multiplications() -> None:
    found = bounds(EngineModel("m", PRESETS[LLAMA]), find_gpu("H100"), 2000, 2, 1)
    layer = 6144 * 3072 + 3072 * 4096 + 3 * 9216 * 3072
    # Twice per weight and token, 1000 tokens of context on average, one row of the head.
    flops = 2000 * 2 * 32 * (layer + 2 * 1000 * 4096) + 2 * 128256 * 3072

    assert found.prefill_s == pytest.approx(flops / 989e12)


def test_two_pipeline_stages_help_many_sequences_and_not_one() -> None:
    one, two = (
        bounds(
            EngineModel("m", PRESETS[LLAMA], parallelism=Parallelism(1, pp)),
            find_gpu("H100"),
            input_len=1000,
            output_len=1000,
            batch=64,
        )
        for pp in (1, 2)
    )

    assert two.decode_tokens_per_s == one.decode_tokens_per_s
    assert two.batch_tokens_per_s == pytest.approx(2 * one.batch_tokens_per_s)


@pytest.mark.parametrize(
    ("preset", "weights", "activations", "kv_tokens", "sequences"),
    [
        # H100: 85,520,809,984 bytes; 0.9 of what weights, activations and 1.5 GiB leave.
        (LLAMA, 9_025_492_992, 619_315_200, 509_920, 248),
        ("minitron-4b", 8_381_018_112, 8192 * 2 * 24576 + 131_072_000, 514_944, 251),
        ("minitron-8b", 16_543_399_936, 8192 * 2 * 40960 + 131_072_000, 457_056, 223),
    ],
)
def test_the_seeds_on_an_h100(
    preset: str, weights: int, activations: int, kv_tokens: int, sequences: int, command: Command
) -> None:
    record = planned(command, preset, "--gpu", "H100", "--precision", "bf16")
    row = record["rows"][0]
    pool = int(0.9 * (85_520_809_984 - weights - activations - 1_610_612_736))

    assert row["memory"] == {
        "gpu_bytes": 85_520_809_984,
        "weights_bytes": weights,
        "activation_bytes": activations,
        "reserve_bytes": 1_610_612_736,
        "kv_bytes_per_token": 131_072,
        "kv_pool_bytes": pool,
        "kv_tokens": kv_tokens,
    }
    assert kv_tokens == pool // 131_072 // 32 * 32
    assert row["sequences"] == sequences == kv_tokens // 2048


def test_precisions_are_those_that_the_gpu_runs(command: Command) -> None:
    record = planned(command, "minitron-8b", "--gpu", "A100", "--gpu", "B200")

    assert [(row["gpu"], row["precision"]) for row in record["rows"]] == [
        *(("A100-80GB", name) for name in ("bf16", "w8a16", "w4a16", "w4a16-awq")),
        *(("B200", name) for name in ("bf16", "fp8")),
    ]
    record = planned(command, LLAMA, "--gpu", "B200")
    assert [row["precision"] for row in record["rows"]] == ["bf16", "fp8", "nvfp4"]


def test_where_nothing_fits_it_says_why_and_exits_with_4(command: Command) -> None:
    result = command("plan", "minitron-8b", "--gpu", "A100", "--precision", "fp8", "--json")
    record = json.loads(result.stdout)

    assert result.exit_code == 4
    assert result.stderr.startswith("error: nothing fits: A100-80GB (SM80) cannot run fp8: ")
    assert record["recommended"] == []
    assert record["rows"] == [
        {
            "gpu": "A100-80GB",
            "gpu_figures": "documented",
            "sm": 80,
            "precision": "fp8",
            "tp": 1,
            "fits": False,
            "problem": "A100-80GB (SM80) cannot run fp8: it needs FP8 tensor cores, SM89 (Ada) or "
            "newer; use w8a16 or w4a16-awq or bf16",
        }
    ]


def test_a_long_context_takes_as_many_gpus_as_it_needs(command: Command) -> None:
    arguments = (LLAMA, "--gpu", "L4", "--precision", "bf16", "--input-len", 120_000)
    rows = planned(command, *arguments)["rows"]

    assert [(row["fits"], row["tp"], row["sequences"]) for row in rows] == [(True, 2, 1)]
    assert rows[0]["recipe"]["limits"]["max_seq_len"] == 121_024


def test_a_checkpoint_is_planned_as_it_is_stored_and_cut(
    tiny_llama: Path, tmp_path: Path, command: Command
) -> None:
    convert(str(tiny_llama), tmp_path / "checkpoint", ConvertOptions("fp16", tp=2))
    lengths = ("--input-len", 100, "--output-len", 100)
    rows = planned(command, tmp_path / "checkpoint", "--gpu", "H100", *lengths)["rows"]

    assert [(row["precision"], row["tp"]) for row in rows] == [("fp16", 2)]


def test_a_model_folder_is_planned_from_its_config(tiny_nemotron: Path, command: Command) -> None:
    record = planned(command, tiny_nemotron, "--gpu", "L40", "--input-len", 64, "--output-len", 64)

    assert (record["architecture"], record["kv_bytes_per_token"]) == ("NemotronForCausalLM", 192)


def test_the_table_says_what_its_columns_mean(command: Command) -> None:
    result = command("plan", "minitron-8b", "--gpu", "H100", "--precision", "bf16")
    lines = result.stdout.splitlines()

    assert result.exit_code == 0
    assert lines[:5] == [
        "minitron-8b: 8.27 B parameters, 131,072 bytes of KV cache a token",
        "for sequences of 1,024 + 1,024 tokens",
        "",
        "GPU       precision  tp   weights  KV cache   tokens  seqs  prefill>=  decode<=   batch<="
        "     limits",
        "H100-SXM  bf16        1  16.54 GB  59.91 GB  457,056   223    13.2 ms     229/s  12,589/s"
        "  64 x 4096",
    ]
    for title in re.split("  +", lines[3])[3:]:
        assert any(line.startswith(f"  {title} ") for line in lines)
    assert "Bounds that cannot be beaten, not predictions. Assumed: activations" in result.stdout


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_table_fits_its_terminal(width: int) -> None:
    targets = tuple(find_target(name) for name in ("H100", "A100", "RTX PRO 6000", "GH200"))
    plan = make_plan(EngineModel("m", PRESETS[LLAMA]), PlanRequest(targets))
    text = describe(plan, recommend(plan, "m", BuildRequest()), width=width)
    left_out = re.search(r"Left\s+out\s+at\s+this\s+width: (.*);\s", text, re.DOTALL)

    assert max(map(len, text.splitlines())) <= width
    assert (left_out is not None) == (width < 110)


def test_it_ends_with_the_commands_for_what_it_recommends(command: Command) -> None:
    arguments = ("minitron-8b", "--gpu", "H100", "--gpu", "A10", "--profile", "throughput")
    record = planned(command, *arguments)
    text = command("plan", *arguments).stdout

    assert [(r["gpu"], r["precision"], r["tp"]) for r in record["recommended"]] == [
        ("H100-SXM", "fp8", 1),
        ("A10", "bf16", 1),
    ]
    assert record["recommended"][0]["commands"] == [
        "minitron-trt convert nvidia/Minitron-8B-Base -o checkpoint --precision fp8",
        "minitron-trt build checkpoint -o engine --arch H100-SXM --profile throughput",
    ]
    assert text.endswith("".join(f"  {c}\n" for c in record["recommended"][1]["commands"]))


def test_every_precision_has_a_place_among_what_it_recommends() -> None:
    assert ORDER.keys() == PRECISIONS.keys()


def test_what_it_recommends_is_what_build_takes(
    tiny_llama: Path, tmp_path: Path, command: Command
) -> None:
    model, checkpoint = tmp_path / "my model", tmp_path / "checkpoint"
    model.symlink_to(tiny_llama)
    record = planned(command, model, "--gpu", "A100", "--input-len", 100, "--output-len", 28)
    commands = [shlex.split(each) for each in record["recommended"][0]["commands"]]
    converted = [str(checkpoint) if word == "checkpoint" else word for word in commands[0][1:]]
    built = [str(checkpoint) if word == "checkpoint" else word for word in commands[1][1:]]

    assert command(*converted).exit_code == 0
    assert command(*built, "--dry-run", "--runner", "docker").exit_code == 0


@pytest.mark.parametrize(
    ("option", "value", "own"),
    [("--tp", "2", "1"), ("--precision", "fp8", "bf16"), ("--kv-cache", "int8", "none")],
)
def test_a_checkpoint_is_planned_as_it_is_or_not_at_all(
    option: str, value: str, own: str, tiny_llama: Path, tmp_path: Path, command: Command
) -> None:
    convert(str(tiny_llama), tmp_path / "checkpoint", ConvertOptions())
    result = command("plan", tmp_path / "checkpoint", "--gpu", "H100", option, value)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: {option} {value}: checkpoint is a checkpoint with {own}; leave it out, or plan "
        "the model that it was made from\n"
    )


def test_a_checkpoint_is_recommended_as_it_is(
    tiny_llama: Path, tmp_path: Path, command: Command
) -> None:
    convert(str(tiny_llama), tmp_path / "checkpoint", ConvertOptions())
    arguments = (tmp_path / "checkpoint", "--input-len", 100, "--output-len", 28)
    record = planned(command, *arguments, "--gpu", "H100")

    assert record["recommended"][0]["commands"] == [
        f"minitron-trt build {tmp_path}/checkpoint -o engine --arch H100-SXM"
    ]


@pytest.mark.parametrize(
    ("count", "text"), [(8_272_478_208, "8.27 B"), (1_178_112, "1.18 M"), (999, "999")]
)
def test_a_model_is_called_by_the_size_it_has(count: int, text: str) -> None:
    assert parameters_text(count) == text


def test_the_lists_name_what_it_knows(command: Command) -> None:
    gpus = json.loads(command("plan", "--list-gpus", "--json").stdout)["gpus"]
    models = command("plan", "--list-models").stdout.splitlines()
    h100 = next(gpu for gpu in gpus if gpu["GPU"] == "H100-SXM")

    assert [gpu["GPU"] for gpu in gpus] == [gpu.name for gpu in GPUS]
    assert (h100["architecture"], h100["SM"], h100["memory"]) == ("hopper", "90", "85.52 GB")
    assert [line.split()[0] for line in models[1:]] == list(PRESETS)
    assert models[-1].split() == [
        "mistral-nemo-minitron-8b",
        "nvidia/Mistral-NeMo-Minitron-8B-Base",
        "8.41",
        "B",
        "8,192",
    ]


def test_figures_that_are_not_from_a_data_sheet_are_said(command: Command) -> None:
    arguments = ("plan", "minitron-8b", "--precision", "bf16", "--gpu", "H100", "--gpu", "A10")
    said = command(*arguments).stdout

    assert "\nNot compared with a data sheet: bandwidth and rates of A10\n" in said


def test_explain_gives_the_reason_of_each_setting(command: Command) -> None:
    result = command("plan", LLAMA, "--gpu", "H100", "--precision", "fp8", "--explain")

    assert "\nH100-SXM fp8 tp 1:\n  --max_batch_size=64 " in result.stdout
    assert "TensorRT-LLM would take all 131072 positions" in result.stdout


@pytest.mark.slow
def test_a_plot_has_a_bar_for_each_row_as_long_as_the_gpus_memory() -> None:
    targets = tuple(find_target(name) for name in ("A100", "H100"))
    plan = make_plan(EngineModel("minitron-8b", PRESETS["minitron-8b"]), PlanRequest(targets))
    (axes,) = chart(bars_of(plan)).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    lengths = [sum(part[row].get_width() for part in axes.containers) for row in range(len(names))]

    assert names == [f"{r.target.gpu.name}  {r.precision}  tp {r.tp}" for r in plan.rows]
    assert lengths == pytest.approx([row.target.gpu.memory_bytes / 1e9 for row in plan.rows])


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "begin"), [(".svg", b"<?xml"), (".png", b"\x89PNG")])
def test_a_plot_is_what_its_name_says(
    suffix: str, begin: bytes, command: Command, tmp_path: Path
) -> None:
    path = tmp_path / f"plan{suffix}"
    result = command("plan", "minitron-8b", "--gpu", "A100", "--plot", path)

    assert result.stdout.endswith(f"\nchart: {path}\n")
    assert path.read_bytes().startswith(begin)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ("minitron-9b", "--gpu", "H100"),
            2,
            "'minitron-9b' is neither a folder, a hub id like nvidia/Minitron-4B-Base, nor one of "
            "llama-3.1-minitron-4b-width, minitron-4b, minitron-8b, mistral-nemo-minitron-8b; did "
            "you mean 'minitron-8b'?",
        ),
        (
            ("minitron-8b", "--gpu", "H1000"),
            2,
            "GPU or architecture 'H1000' is not known; did you mean H200 or H100-SXM or H100-NVL",
        ),
        (
            ("minitron-8b", "--gpu", "H100", "--input-len", 5000),
            2,
            "--input-len 5000 and --output-len 1024 are 6024 tokens; minitron-8b has 4096 "
            "positions",
        ),
        (
            ("minitron-8b", "--gpu", "H100", "--plot", "plan.pdf"),
            2,
            "plan.pdf is neither PNG nor SVG; name it with .png or .svg",
        ),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(
    arguments: tuple[object, ...], code: int, message: str, command: Command
) -> None:
    result = command("plan", *arguments)

    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"error: {message}\n")


@pytest.mark.slow
def test_it_answers_in_half_a_second_without_heavy_packages() -> None:
    program = (
        "import sys, atexit\n"
        "heavy = {'torch', 'numpy', 'tensorrt_rtx', 'transformers', 'rich', 'huggingface_hub'}\n"
        "atexit.register(lambda: print(*sorted(heavy & set(sys.modules)), file=sys.stderr))\n"
        "from minitron_trt.cli import main\n"
        "main(['plan', 'nvidia/Minitron-8B-Base', '--gpu', 'H100', '--json'])\n"
    )

    def run() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)

        assert (result.returncode, result.stderr) == (0, "\n")
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Time of the processor, and the best of a few: other work on the machine only adds.
    assert min(run() for _ in range(4)) < 0.5
