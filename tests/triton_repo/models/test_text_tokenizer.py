"""What text models read of a tokenizer's folder gives transformers' ids, text and prompts."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from minitron_models.text_tokenizer import TextTokenizer
from minitron_models.token_texts import TokenTexts
from tests.convert.source.test_tokenizers import CORPUS, MODEL, ask
from tests.only_5 import marking_5
from tests.triton_repo.models.test_token_texts import TEXTS
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer

from minitron_trt.convert.gguf.tokenizer import _WORDS_OF_LLAMA, _WORDS_OF_TEKKEN
from minitron_trt.convert.source.sentencepiece_model import SentencePieceModel
from minitron_trt.convert.source.tokenizer_folder import SourceTokenizer
from minitron_trt.samples import sample_folder

pytestmark = pytest.mark.slow

FIXED_TEXTS = (
    "Our solar system is a family of worlds.",
    " a space before",
    "three   spaces \n\n\t tab ",
    "x = [1, 2.5]  # two  spaces , it 's 12345",
    "Grüße, 世界! 👩\u200d🚀 e\u0301 \ufb01 \u00a0 مرحبا",
    "<s>begins</s>, <tool> and <|turn|> text <pad>",
    "\ufffd\0\U0010ffff",
    "",
)
CHATS = (
    [{"role": "user", "content": "Why is <s> there?"}],
    [
        {"role": "system", "content": "Be brief & “exact”."},
        {"role": "user", "content": " Why? "},
        {"role": "assistant", "content": "Since 世界.", "reasoning_content": "It asks."},
        {"role": "user", "content": 'And "so"?'},
    ],
)
TEMPLATES = {
    "Llama 3": (
        "{{- bos_token }}{%- for message in messages %}"
        "{{- '<|turn|>' + message['role'] + '\\n\\n' + message['content'] | trim + eos_token }}"
        "{%- endfor %}\n{%- if add_generation_prompt %}{{- '<|turn|>assistant\\n\\n' }}{%- endif %}"
    ),
    "all that there is": (
        "{%- set seen = namespace(users=0, names=dict(a=1)) %}\n"
        "{% for message in messages %}\n"
        "    {% if message.role == 'system' %}{% continue %}{% endif %}\n"
        "    {%- if message.role == 'user' %}{% set seen.users = seen.users + 1 %}{% endif %}\n"
        "{% generation %}{{ message | tojson }}{{ message.content }}{% endgeneration %}\n"
        "  {% if seen.users > 1 %}{% break %}{% endif %}\n"
        "{% endfor %}\n"
        "{{ seen.users }} {{ seen.names | tojson(indent=2) }} {{ strftime_now('%Y') }}"
        "{{ tools is none }}{{ documents is none }}{{ nothing is defined }}{{ bos_token }}"
    ),
    "thinking": (
        "{% for m in messages %}{{ m.thinking | default('none') }} {{ m.content }}{% endfor %}"
    ),
}

# Prints what transformers makes of the texts, ids and chats with the tokenizers in some folders.
TRANSFORMERS = """
import json, sys
from transformers import AutoTokenizer
folders, texts, chats = json.load(sys.stdin)
made = []
for folder in folders:
    t = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = [[t(text, add_special_tokens=s)["input_ids"] for s in (True, False)] for text in texts]
    text = [
        [
            t.decode(row, skip_special_tokens=s, clean_up_tokenization_spaces=False)
            for s in (True, False)
            for row in rows
        ]
        for rows in ids
    ]
    prompts = [
        t.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        for chat in (chats if t.chat_template else ())
    ]
    made.append([ids, text, prompts, t.bos_token_id, t.eos_token_id, t.pad_token_id])
print(json.dumps(made))
"""


def byte_level(words: str | None, *, bos: bool) -> Tokenizer:
    """Return a byte-level BPE of the corpus; a text's words are split as Llama 3 or tekken does."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None)
    split = [] if words is None else [pre_tokenizers.Split(Regex(words), "isolated")]
    tokenizer = Tokenizer(models.BPE(ignore_merges=words is not None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>", "<|turn|>"],
        show_progress=False,
    )
    tokenizer.train([str(CORPUS)], trainer)
    if bos:
        template = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
        )
        tokenizer.post_processor = processors.Sequence(
            [processors.ByteLevel(trim_offsets=False), template]
        )
    return tokenizer


def sentencepiece_bpe() -> Tokenizer:
    """Return what convert makes of a BPE that SentencePiece trained."""
    record = SentencePieceModel.read(MODEL).tokenizer_json()
    return Tokenizer.from_str(json.dumps(record))


def unigram() -> Tokenizer:
    """Return a Unigram of the corpus's words, which writes other characters in bytes."""
    counts = Counter(CORPUS.read_text(encoding="utf-8").split())
    words = {f"▁{word}": count for word, count in counts.most_common(300)}
    letters = {letter: 3 for word in words for letter in word}
    total = sum(words.values())
    scored = {token: math.log(count / total) for token, count in {**letters, **words}.items()}
    special = [(token, 0.0) for token in ("<unk>", "<s>", "</s>", "<|turn|>")]
    bytes_ = [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    make: Any = models.Unigram
    tokenizer = Tokenizer(make([*special, *bytes_, *scored.items()], 0, True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<|turn|>"])
    return tokenizer


def write(folder: Path, tokenizer: Tokenizer, **config: Any) -> None:
    """Write a folder's files as model folders have them."""
    tokenizer.save(str(folder / "tokenizer.json"))
    usual = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**usual, **config}))


def listed(tokenizer: Tokenizer, **changes: dict[str, Any]) -> dict[str, Any]:
    """Return the tokens with their ids as tokenizer_config.json lists them."""
    flags = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    tokens = {
        str(index): {flag: getattr(token, flag) for flag in flags}
        for index, token in tokenizer.get_added_tokens_decoder().items()
    }
    return {
        index: {**token, **changes.get(token["content"], {})} for index, token in tokens.items()
    }


def llama_3(folder: Path) -> None:
    tokenizer = byte_level(_WORDS_OF_LLAMA, bos=True)
    decoder = listed(tokenizer, **{"<|turn|>": {"lstrip": True}})
    for token in decoder.values():
        if not token["special"]:
            del token["special"]
    template = TEMPLATES["Llama 3"]
    write(folder, tokenizer, added_tokens_decoder=decoder, chat_template=template)


def tekken(folder: Path) -> None:
    write(folder, byte_level(_WORDS_OF_TEKKEN, bos=True), pad_token="<pad>")
    template = TEMPLATES["all that there is"]
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def nemotron_bpe(folder: Path) -> None:
    templates = [{"name": "tools", "template": "x"}]
    templates += [{"name": "default", "template": TEMPLATES["thinking"]}]
    write(
        folder,
        sentencepiece_bpe(),
        additional_special_tokens=["<tool>", "<|turn|>"],
        unk_token="<unk>",
        chat_template=templates,
    )


def nemotron_unigram(folder: Path) -> None:
    write(folder, unigram(), unk_token="<unk>", chat_template=TEMPLATES["all that there is"])


def older(folder: Path) -> None:
    """Write the files that transformers wrote before 4.34."""
    tokenizer = byte_level(None, bos=False)
    tokenizer.add_tokens(["<tool>"])
    write(folder, tokenizer)
    special = {"pad_token": {"content": "<pad>", "lstrip": False, "normalized": False}}
    special |= {"additional_special_tokens": ["<|turn|>"]}  # type: ignore[dict-item]
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "added_tokens.json").write_text(json.dumps({"<pad>": 601}))


def for_training(folder: Path) -> None:
    """Write a tokenizer.json that cuts and fills up texts, and splits special tokens."""
    tokenizer = byte_level(None, bos=True)
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(pad_id=1, pad_token="</s>", length=9)
    write(folder, tokenizer, split_special_tokens=True)


def named_later(folder: Path) -> None:
    """Name a token as special that tokenizer.json has as text."""
    tokenizer = byte_level(None, bos=False)
    tokenizer.add_tokens([AddedToken("<tool>", rstrip=True)])
    write(folder, tokenizer, pad_token="<tool>", unk_token="the")


def saved_by_5(folder: Path) -> None:
    """Name special tokens without names as transformers 5 does, which 4.57 does not read."""
    config = {"extra_special_tokens": ["<tool>"], "image_token": "<img>"}
    write(folder, byte_level(None, bos=False), **config)


def slow(folder: Path) -> None:
    """Write the files of a slow tokenizer as triton-repo does."""
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    config |= {"add_bos_token": True, "legacy": False}  # type: ignore[dict-item]
    source = folder / "source"
    source.mkdir()
    (source / "tokenizer.model").write_bytes(MODEL.read_bytes())
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    SourceTokenizer.find(source).write(folder)


KINDS: dict[str, Callable[[Path], None]] = {
    write_kind.__name__: write_kind
    for write_kind in (
        llama_3,
        tekken,
        nemotron_bpe,
        nemotron_unigram,
        older,
        for_training,
        named_later,
        saved_by_5,
        slow,
    )
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each kind, and of the samples."""
    made = {name: sample_folder(name) for name in ("solar-llama", "solar-nemotron")}
    for name, write_kind in KINDS.items():
        made[name] = tmp_path_factory.mktemp(name)
        write_kind(made[name])
    return made


NAMES = ("solar-llama", "solar-nemotron", *KINDS)


@pytest.mark.parametrize("name", marking_5(NAMES, "saved_by_5"))
@settings(max_examples=40)
@given(text=TEXTS)
def test_ids_and_text_are_transformers(name: str, folders: dict[str, Path], text: str) -> None:
    ours, theirs = _both(folders[name])

    for special in (True, False):
        ids = ours.ids(text, special=special)
        assert ids == theirs(text, add_special_tokens=special)["input_ids"]
        for skip in (True, False):
            said = TokenTexts(ours.backend, skip_special=skip).text(ids)
            assert said == theirs.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )


_LOADED: dict[Path, tuple[TextTokenizer, Any]] = {}


def _both(folder: Path) -> tuple[TextTokenizer, Any]:
    if folder not in _LOADED:
        theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        _LOADED[folder] = (TextTokenizer(folder), theirs)
    return _LOADED[folder]


# 4.57 names the additional ones, too.
@pytest.mark.parametrize("name", marking_5(NAMES, "nemotron_bpe", "older", "saved_by_5"))
def test_special_tokens_are_transformers(name: str, folders: dict[str, Path]) -> None:
    ours, theirs = _both(folders[name])

    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.pad_id == theirs.pad_token_id
    assert ours.backend.get_vocab() == theirs.get_vocab()


# 4.57 gives reasoning one name only, and drops no field that says nothing.
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    "chat",
    [CHATS[0], pytest.param(CHATS[1], marks=pytest.mark.transformers_5)],
    ids=["one", "several"],
)
def test_prompts_are_transformers(template: str, chat: Any, folders: dict[str, Path]) -> None:
    folder = folders["llama_3"]
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    theirs.chat_template = TEMPLATES[template]
    from minitron_models.chat_template import ChatTemplate

    ours = ChatTemplate(TEMPLATES[template], TextTokenizer(folder).special_tokens)

    assert ours.render(chat) == theirs.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )


@pytest.mark.transformers_5
@pytest.mark.parametrize("name", [name for name in NAMES if name in ("tekken", "nemotron_bpe")])
def test_templates_are_found_where_transformers_finds_them(
    name: str, folders: dict[str, Path]
) -> None:
    ours, theirs = _both(folders[name])

    assert ours.chat_template is not None
    assert ours.chat_template.render(CHATS[1]) == theirs.apply_chat_template(
        CHATS[1], tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", "__class__"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ namespace(__init__=1) }}", "__init__"),
        ("{% set n = namespace() %}{% set n._x = 1 %}", "_x"),
        ("{% for %}", "Expected an expression"),
    ],
    ids=str,
)
def test_a_template_that_raises_or_reaches_out_is_refused(template: str, words: str) -> None:
    from minitron_models.chat_template import ChatTemplate

    with pytest.raises(Exception, match=words):
        ChatTemplate(template, {}).render(CHATS[0])


def test_4_57_makes_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    # 4.57 gives reasoning one name only, and drops no field that says nothing.
    chats = [CHATS[0]]
    asked = {name: folder for name, folder in folders.items() if name != "saved_by_5"}
    theirs = ask(TRANSFORMERS, [list(map(str, asked.values())), FIXED_TEXTS, chats], tmp_path)

    for (name, folder), (ids, texts, prompts, *special) in zip(asked.items(), theirs, strict=True):
        ours = TextTokenizer(folder)
        made = [[ours.ids(text, special=s) for s in (True, False)] for text in FIXED_TEXTS]
        assert made == ids, name
        decoded = [
            [
                TokenTexts(ours.backend, skip_special=skip).text(row)
                for skip in (True, False)
                for row in rows
            ]
            for rows in made
        ]
        assert decoded == texts, name
        template = ours.chat_template
        assert [template.render(chat) for chat in chats if template] == prompts, name
        tokens = [ours.special_tokens.get(f"{kind}_token") for kind in ("bos", "eos", "pad")]
        assert [t and ours.backend.token_to_id(t) for t in tokens] == special, name


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("tokenizer.json", None, "tokenizer.json is not there"),
        ("tokenizer.json", "{}", "tokenizer.json is not read by tokenizers"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is damaged"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json is damaged: expected an object"),
    ],
)
def test_a_file_that_is_absent_or_damaged_is_named(
    name: str, text: str | None, words: str, tmp_path: Path
) -> None:
    write(tmp_path, byte_level(None, bos=False))
    if text is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(text)

    with pytest.raises(ValueError, match=words):
        TextTokenizer(tmp_path)
