"""`plan`: bounds by hand, what is shown per GPU and precision, and how fast it answers."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import Result

from minitron_trt.build.engine_model import PRESETS, EngineModel
from minitron_trt.build.plan.roofline import bounds
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.gpus import find_gpu
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


def test_what_does_not_run_is_said_and_not_an_error(command: Command) -> None:
    record = planned(command, "minitron-8b", "--gpu", "A100", "--precision", "fp8")

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


def test_the_table_names_bounds_and_assumptions(command: Command) -> None:
    result = command("plan", "minitron-8b", "--gpu", "H100", "--precision", "bf16")

    assert result.exit_code == 0
    assert result.stdout.splitlines()[:4] == [
        "minitron-8b: 8.27 B parameters, 131,072 bytes of KV cache per token; "
        "1024 input + 1024 output tokens",
        "",
        "GPU       precision  tp   weights  KV cache   tokens  sequences     prefill    decode"
        "   full batch  batch x seq",
        "H100-SXM  bf16        1  16.54 GB  59.91 GB  457,056        223  >= 13.2 ms  <= 229/s"
        "  <= 12,589/s    64 x 4096",
    ]
    assert "Bounds that cannot be beaten, not predictions" in result.stdout
    assert "Assumed: activations of one step, 1.5 GiB" in result.stdout


def test_figures_that_are_not_from_a_data_sheet_are_said(command: Command) -> None:
    arguments = ("plan", "minitron-8b", "--precision", "bf16", "--gpu", "H100", "--gpu", "A10")
    said = command(*arguments).stdout.splitlines()[-1]

    assert said == "Not compared with a data sheet: bandwidth and rates of A10"


def test_explain_gives_the_reason_of_each_setting(command: Command) -> None:
    result = command("plan", LLAMA, "--gpu", "H100", "--precision", "fp8", "--explain")

    assert "\nH100-SXM fp8 tp 1:\n  --max_batch_size=64 " in result.stdout
    assert "TensorRT-LLM would take all 131072 positions" in result.stdout


def test_a_plot_is_an_svg_with_a_bar_for_each_row(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "plan.svg"
    record = planned(command, "minitron-8b", "--gpu", "A100", "--gpu", "H100", "--plot", path)
    root = ElementTree.fromstring(path.read_text())
    texts = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    bars = list(root.iter("{http://www.w3.org/2000/svg}rect"))[6:]

    assert len(bars) == 5 * len(record["rows"])
    assert "H100-SXM  w4a16-awq  tp 1" in texts
    # The parts of a bar are as long as its GPU's memory.
    assert sum(float(bar.attrib["width"]) for bar in bars[:5]) == pytest.approx(520, abs=0.5)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ("minitron-9b", "--gpu", "H100"),
            2,
            "'minitron-9b' is neither a folder, a hub id like nvidia/Minitron-4B-Base, nor one of "
            "llama-3.1-minitron-4b-width, minitron-4b, minitron-8b",
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
            ("minitron-8b", "--gpu", "H100", "--output-len", 0),
            2,
            "--input-len 1024 and --output-len 0; expected at least 1 each",
        ),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(
    arguments: tuple[object, ...], code: int, message: str, command: Command
) -> None:
    result = command("plan", *arguments)

    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"error: {message}\n")


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
