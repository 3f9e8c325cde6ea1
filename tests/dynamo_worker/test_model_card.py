"""What Dynamo's frontend reads of a repository, of every runtime."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from tests.deploy.repositories import repository_for
from tokenizers import Tokenizer

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.dynamo_worker.model_card import read_card
from minitron_trt.errors import BadInputError
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving.served_repository import ServedRepository
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

pytestmark = pytest.mark.slow

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Llama sample for the reference runtime."""
    folder = tmp_path_factory.mktemp("card")
    convert(str(sample_folder("solar-llama")), folder / "checkpoint", ConvertOptions())
    checkpoint = Checkpoint.open(folder / "checkpoint")
    recipe = ServingRecipe(max_batch_size=4, max_seq_len=300)
    emit_repository(checkpoint.folder, folder / "solar", recipe)
    return folder / "solar"


def with_template(repository: Path, folder: Path, template: str) -> ServedRepository:
    """Return a copy whose tokenizer has a chat template."""
    shutil.copytree(repository, folder / "chatty")
    config = folder / "chatty/preprocessing/1/tokenizer/tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": template}))
    return ServedRepository.open(folder / "chatty")


def test_a_base_model_offers_completions(repository: Path, tmp_path: Path) -> None:
    card = read_card(ServedRepository.open(repository))
    card.write(tmp_path / "card")

    assert (card.name, card.generator, card.context_length, card.batch) == (
        "solar",
        "tensorrt_llm",
        300,
        4,
    )
    assert (card.start_ids, card.end_ids) == ((1022,), (1023,))
    assert card.endpoint_types == "completions"
    assert json.loads((tmp_path / "card/config.json").read_text()) == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "max_position_embeddings": 300,
        "vocab_size": 1024,
        "eos_token_id": [1023],
    }
    assert (tmp_path / "card/tokenizer.json").is_file()


def test_a_model_with_a_template_chats(repository: Path, tmp_path: Path) -> None:
    card = read_card(with_template(repository, tmp_path, TEMPLATE))

    assert card.endpoint_types == "chat,completions"
    assert (card.template, card.start_ids) == (TEMPLATE, (1022,))


def test_a_template_without_the_begin_keeps_it_from_every_prompt(
    repository: Path, tmp_path: Path
) -> None:
    """Dynamo does not say whether a prompt was made of messages."""
    card = read_card(with_template(repository, tmp_path, "{{ messages[0].content }}"))

    assert card.start_ids == ()


def with_parameter(repository: Path, folder: Path, key: str, value: str) -> ServedRepository:
    """Return a copy whose preprocessing has a parameter of another value."""
    shutil.copytree(repository, folder / "edited")
    config = folder / "edited/preprocessing/config.pbtxt"
    pattern = rf'(key: "{key}"\s+value \{{\s+string_value: )"[^"]*"'
    text, count = re.subn(pattern, rf'\1"{value}"', config.read_text())
    assert count == 1
    config.write_text(text)
    return ServedRepository.open(folder / "edited")


@pytest.mark.parametrize("value", ["false", "False", "0", "no"])
def test_special_tokens_are_off_by_every_word_of_upstreams(
    value: str, repository: Path, tmp_path: Path
) -> None:
    served = with_parameter(repository, tmp_path, "add_special_tokens", value)

    assert read_card(served).start_ids == ()


@pytest.mark.parametrize("value", ["[1e999]", "[2.5]", "7", "{}"])
def test_ends_that_are_no_list_of_ids_are_refused(
    value: str, repository: Path, tmp_path: Path
) -> None:
    served = with_parameter(repository, tmp_path, "end_ids", value)

    with pytest.raises(BadInputError, match="expected a list of ids"):
        read_card(served)


def test_a_template_can_be_chosen(repository: Path) -> None:
    card = read_card(ServedRepository.open(repository), name="mine", chat_template="llama")

    assert (card.name, card.endpoint_types) == ("mine", "chat,completions")


def test_an_engine_says_how_long_its_sequences_are(tmp_path: Path) -> None:
    served = ServedRepository.open(repository_for(tmp_path, "H100", tp=2))
    card = read_card(served)

    assert card.generator == "tensorrt_llm"
    assert card.context_length > 0
    assert card.vocab > 0


def test_prompts_are_neither_cut_nor_filled_up(repository: Path, tmp_path: Path) -> None:
    """Dynamo does what tokenizer.json says of batches of training texts, too."""
    served = with_template(repository, tmp_path, TEMPLATE)
    path = served.folder / "preprocessing/1/tokenizer/tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(path))
    read_card(served).write(tmp_path / "card")
    copied = Tokenizer.from_file(str(tmp_path / "card/tokenizer.json"))

    assert (copied.truncation, copied.padding) == (None, None)
    assert len(copied.encode("Our solar system is large and cold").ids) > 8


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("1/tokenizer/tokenizer.json", "{}", "is not read by tokenizers"),
        ("1/tokenizer/tokenizer_config.json", "[", "is damaged"),
        ("1/tokenizer/tokenizer_config.json", '{"chat_template": []}', "none is `default`"),
        ("1/tokenizer/tokenizer_config.json", '{"chat_template": [{}]}', "a name and a template"),
        ("1/tokenizer/tokenizer_config.json", '{"chat_template": [1]}', "a name and a template"),
        ("1/tokenizer/chat_template.jinja", "{{ raise }", "chat template cannot be used"),
    ],
)
def test_a_damaged_tokenizer_is_named(
    name: str, text: str, said: str, repository: Path, tmp_path: Path
) -> None:
    served = with_template(repository, tmp_path, TEMPLATE)
    (served.folder / "preprocessing" / name).write_text(text)

    with pytest.raises(BadInputError, match=said):
        read_card(served)


@pytest.mark.parametrize(("words", "found"), [(("b",), (1022,)), ((), None)])
def test_the_begin_is_found_without_an_id_for_a(
    words: tuple[str, ...], found: tuple[int, ...] | None, repository: Path, tmp_path: Path
) -> None:
    served = with_template(repository, tmp_path, TEMPLATE)
    path = served.folder / "preprocessing/1/tokenizer/tokenizer.json"
    record = json.loads(path.read_text())
    kept = {token["content"]: token["id"] for token in record["added_tokens"]}
    vocab = kept | {word: number for number, word in enumerate(words)}
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    stages = dict.fromkeys(("pre_tokenizer", "normalizer", "decoder"))
    path.write_text(json.dumps({**record, **stages, "model": model}))

    if found is None:
        with pytest.raises(BadInputError, match="makes ids of no word of its own"):
            read_card(served)
    else:
        assert read_card(served).start_ids == found


@pytest.mark.parametrize("token", [None, {}])
def test_a_special_token_without_text_is_none(
    token: object, repository: Path, tmp_path: Path
) -> None:
    served = with_template(
        repository, tmp_path, "{% if pad_token %}{{ raise }}{% endif %}" + TEMPLATE
    )
    path = served.folder / "preprocessing/1/tokenizer/tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": token}))

    assert read_card(served).start_ids == (1022,)


def test_a_repository_without_a_tokenizer_is_refused(repository: Path, tmp_path: Path) -> None:
    served = with_template(repository, tmp_path, TEMPLATE)
    (served.folder / "preprocessing/1/tokenizer/tokenizer.json").unlink()

    with pytest.raises(BadInputError, match=r"has no tokenizer\.json where preprocessing names"):
        read_card(served)


def test_without_dynamo_the_command_says_what_to_install(
    repository: Path, command: Callable[..., Result]
) -> None:
    pytest.importorskip("jinja2")
    try:
        import dynamo.common.backend  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("Dynamo is installed here")
    result = command("dynamo-worker", repository)

    assert result.exit_code == 4
    assert "run: pip install 'minitron-trt[dynamo]'" in result.stderr
