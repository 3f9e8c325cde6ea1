"""`check`: engines against GPUs and images, and what would fit when they do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tests.build.engines import add_manifest, write_engine

from minitron_trt.build.containers import (
    CONTAINERS,
    container_for,
    containers_with,
    find_container,
    same_version,
)
from minitron_trt.build.engine import Engine
from minitron_trt.build.recipe.engine_limits import Limits
from minitron_trt.errors import BadInputError, UnsupportedError

Command = Callable[..., Result]


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """Return an engine of ours for Hopper."""
    return add_manifest(write_engine(tmp_path / "engine"))


def report(command: Command, folder: Path, *arguments: object, exit_code: int) -> dict[str, Any]:
    """Return what check prints with --json."""
    result = command("check", folder, *arguments, "--json")

    assert result.exit_code == exit_code, result.stderr
    assert result.stderr.count("\n") == (1 if exit_code else 0)
    record: dict[str, Any] = json.loads(result.stdout)
    return record


def test_an_engine_in_its_place_loads(engine: Path, command: Command) -> None:
    result = command("check", engine, "--gpu", "H100", "--gpus", 1, "--image", "26.07")

    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.replace(str(engine), "ENGINE") == (
        "ENGINE: LlamaForCausalLM, bf16, SM90, tensorrt-llm 1.2.1, 64 x 8192 tokens\n"
        "  ok  architecture: engine for SM90, H100-SXM (SM90)\n"
        "  ok  memory: engine 9.10 GB, activations and runtime about 2.23 GB of H100-SXM's "
        "85.52 GB; 509,408 tokens of KV cache, 62 sequences of 8192\n"
        "  ok  ranks: tp 1 x pp 1 on 1 GPU(s)\n"
        "  ok  TensorRT-LLM: engine of 1.2.1, 26.07 has 1.2.1\n"
        "images that fit: nvcr.io/nvidia/tritonserver:26.04-trtllm-python-py3, "
        "nvcr.io/nvidia/tritonserver:26.05-trtllm-python-py3, "
        "nvcr.io/nvidia/tritonserver:26.06-trtllm-python-py3, "
        "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--gpu", "L40"),
            "ENGINE will not load: engine for SM90, L40 (SM89); SM90 is H100-SXM, H100-PCIe, "
            "H100-NVL, GH200, H200, H200-NVL; or build again with --arch ada",
        ),
        (
            ("--gpu", "A10"),
            "ENGINE will not load: engine for SM90, A10 (SM86); SM90 is H100-SXM, H100-PCIe, "
            "H100-NVL, GH200, H200, H200-NVL; or build again with --arch sm86",
        ),
        (
            ("--image", "26.01"),
            "ENGINE will not load: engine of 1.2.1, 26.01 has 1.1.0; use image 26.04, 26.05, "
            "26.06, 26.07; or build again with --trtllm-version 1.1.0",
        ),
        (
            ("--image", "nvcr.io/nvidia/tritonserver:26.03-trtllm-python-py3"),
            "ENGINE will not load: engine of 1.2.1, 26.03 has 1.2.0rc8; use image 26.04, 26.05, "
            "26.06, 26.07; or build again with --trtllm-version 1.2.0rc8",
        ),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_another_place_is_refused_with_what_would_do(
    arguments: tuple[str, str], message: str, engine: Path, command: Command
) -> None:
    result = command("check", engine, *arguments)

    assert result.exit_code == 4
    assert result.stderr.replace(str(engine), "ENGINE") == f"error: {message}\n"


def test_weights_that_do_not_run_there_have_to_be_converted(
    tmp_path: Path, command: Command
) -> None:
    quantization = {"quant_algo": "FP8", "kv_cache_quant_algo": None}
    folder = write_engine(tmp_path / "engine", pretrained={"quantization": quantization})
    record = report(command, folder, "--gpu", "A100", "--sm", 89, exit_code=4)

    assert record["findings"][0]["remedy"].endswith(
        "; or convert to w8a16 or w4a16-awq or bf16 and build again with --arch ampere"
    )


def test_tensorrt_has_to_be_the_same_as_well(engine: Path, command: Command) -> None:
    (engine / "minitron.json").unlink()
    add_manifest(engine, tensorrt="10.13.3.9")
    record = report(command, engine, "--image", "26.07", exit_code=4)

    assert [finding["fits"] for finding in record["findings"]] == [True, False]
    assert record["findings"][1]["found"] == "engine of 10.13.3.9, 26.07 has 10.14.1.48"


def test_too_few_gpus_are_refused(tmp_path: Path, command: Command) -> None:
    folder = add_manifest(write_engine(tmp_path / "engine", tp=4))
    record = report(command, folder, "--gpu", "H100", "--gpus", 2, exit_code=4)

    assert record["loads"] is False
    assert record["findings"][2] == {
        "name": "ranks",
        "fits": False,
        "found": "tp 4 x pp 1 on 2 GPU(s)",
        "remedy": "use 4 GPUs, or convert with fewer ranks and build again",
    }


def test_memory_that_does_not_hold_one_sequence_is_refused_by_how_much(
    tmp_path: Path, command: Command
) -> None:
    folder = write_engine(tmp_path / "engine", build={"max_seq_len": 131072})
    result = command("check", folder, "--gpu", "L4", "--sm", 89)

    assert result.exit_code == 4
    assert result.stderr.replace(str(folder), "ENGINE") == (
        "error: ENGINE will not load: engine 9.10 GB, activations and runtime about 2.23 GB of "
        "L4's 24.15 GB; 5.64 GB are missing for 131072 cached tokens; L40, L40S, RTX-6000-Ada "
        "would hold it; or build with a smaller --max-seq-len or --max-batch-size, or more --tp "
        "ranks\n"
    )


def test_an_engine_of_others_is_read_from_its_own_config(tmp_path: Path, command: Command) -> None:
    folder = write_engine(tmp_path / "engine", version="1.1.0")
    record = report(command, folder, "--gpu", "H100", "--image", "26.02", exit_code=0)

    assert (record["loads"], record["sm"], record["compiler_version"]) == (None, None, "1.1.0")
    assert [finding["fits"] for finding in record["findings"]] == [None, True, True]
    assert record["findings"][0]["remedy"] == "give the one it was built on with --sm"


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("26.07", None),
        ("26.06", "(high, CVE-2026-16497, NVIDIA's bulletin 5875); 26.07 has none"),
        ("26.05", "(critical, CVE-2026-47627, NVIDIA's bulletin 5865); "),
    ],
)
def test_what_is_known_against_an_images_triton_is_said(
    tag: str, expected: str | None, tmp_path: Path, command: Command
) -> None:
    folder = write_engine(tmp_path / "engine")
    holes = report(command, folder, "--image", tag, exit_code=0)["holes"]
    text = command("check", folder, "--image", tag).stdout

    if expected is None:
        assert holes is None
        assert "known holes" not in text
    else:
        assert holes.startswith(f"Triton {tag} has known holes: ")
        assert expected in holes
        assert f"warning: {holes}\n" in text


def test_what_the_engine_does_not_say_can_be_given(tmp_path: Path, command: Command) -> None:
    folder = write_engine(tmp_path / "engine")

    assert report(command, folder, "--gpu", "H100", "--sm", 90, exit_code=0)["loads"] is True
    assert report(command, folder, "--gpu", "H100", "--sm", 80, exit_code=4)["loads"] is False


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "nothing to check against; give --gpu, --gpus or --image"),
        (("--gpu", "H100", "--sm", "80"), 2, "--sm 80 contradicts the engine, which is for SM90"),
        (("--gpu", "H100", "--sm", "91"), 2, "--sm 91 is not known; expected one of 80, 86, "),
        (("--image", "27.01"), 4, "image '27.01' is not known; known are 25.08 to 26.07 of nvcr"),
    ],
)
def test_questions_that_make_no_sense_are_refused(
    arguments: tuple[str, ...], code: int, message: str, engine: Path, command: Command
) -> None:
    result = command("check", engine, *arguments)

    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(f"error: {message}")


def test_an_engine_of_tensorrt_itself_is_not_for_nvidias_images(
    tmp_path: Path, command: Command
) -> None:
    folder = write_engine(tmp_path / "engine")
    (folder / "rank0.engine").rename(folder / "engine.plan")
    add_manifest(folder, sm=89, compiler={"name": "tensorrt-rtx", "version": "1.7.1.116"})
    record = report(command, folder, "--image", "26.07", exit_code=4)

    assert record["findings"][0]["found"] == (
        "engine of tensorrt-rtx 1.7.1.116, which 26.07 does not run"
    )
    assert record["images"] == []
    # Its cache holds 64 full sequences, which are 68.7 GB.
    memory = report(command, folder, "--gpu", "L40", exit_code=4)["findings"][1]
    assert (memory["name"], memory["fits"]) == ("memory", False)


def test_an_engine_opens_with_its_sizes(engine: Path) -> None:
    opened = Engine.open(engine)

    assert opened.limits == Limits(64, 8192, 8192, 8192)
    assert opened.rank_bytes == (9_100_000_000,)
    assert (opened.paged_context, opened.logits_dtype, opened.sm) == (True, "float32", 90)


def test_a_config_without_head_size_falls_back_as_the_runtime_does(tmp_path: Path) -> None:
    folder = write_engine(tmp_path / "engine", pretrained={"head_size": None})

    assert Engine.open(folder).model.spec.head_size == 96


def test_an_architecture_and_algorithm_that_we_do_not_write_can_be_checked(tmp_path: Path) -> None:
    quantization = {"quant_algo": "W8A8_SQ_PER_CHANNEL", "kv_cache_quant_algo": None}
    changes = {"architecture": "QWenForCausalLM", "quantization": quantization}
    opened = Engine.open(write_engine(tmp_path / "engine", pretrained=changes))

    assert (opened.model.spec.architecture, opened.model.precision) == ("QWenForCausalLM", "other")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "ENGINE has no config.json; expected an engine"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not the config of an eng"),
        (
            lambda f: (f / "config.json").write_text("{}"),
            "(Object missing required field `build_config`); build it",
        ),
        (lambda f: (f / "config.json").write_text("[]"), "config.json is not the config of an eng"),
        (lambda f: (f / "rank1.engine").unlink(), "ENGINE lacks rank1.engine; its config.json is"),
        (lambda f: (f / "rank0.engine").write_bytes(b""), "ENGINE/rank0.engine is empty; build"),
    ],
    ids=["no config", "cut off", "a checkpoint", "a list", "a rank missing", "a rank empty"],
)
def test_a_folder_that_is_no_engine_is_refused(
    damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    folder = write_engine(tmp_path / "engine", tp=2)
    damage(folder)
    with pytest.raises(BadInputError) as caught:
        Engine.open(folder)

    assert message in str(caught.value).replace(str(folder), "ENGINE")


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, command: Command) -> None:
    result = command("check", tmp_path / "absent", "--gpu", "H100")

    assert (result.exit_code, result.stdout) == (3, "")


def test_the_image_for_a_version_is_the_newest_that_has_it() -> None:
    assert container_for("1.2.1").tag == "26.07"
    assert [container.tag for container in containers_with("1.1.0")] == ["25.12", "26.01", "26.02"]
    assert find_container("26.07").image == "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
    assert len({container.tag for container in CONTAINERS}) == len(CONTAINERS)


@pytest.mark.parametrize("name", ["somebody/server:2025.08", "server:1.26.04", "server:26.041"])
def test_a_tag_of_another_count_is_no_release_of_triton(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"image {name!r} is not known"):
        find_container(name)


def test_a_version_that_no_image_has_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"no Triton image carries TensorRT-LLM 1\.2\.0; "):
        container_for("1.2.0")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1.2.1", "1.2.1", True),
        ("1.0", "1.0.0", True),
        ("1.2.1", "1.2.1+cu13", True),
        ("1.2.0rc8", "1.2.0", False),
        ("1.2.1", "1.2.10", False),
        ("10.14.1.48", "10.14.1", False),
    ],
)
def test_versions_are_compared_as_versions(one: str, other: str, same: bool) -> None:
    assert same_version(one, other) is same
