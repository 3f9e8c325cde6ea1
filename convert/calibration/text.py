"""The text that a calibration runs through the model: a file, a hub data set, or the default."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minitron_trt.convert.source.hub import DATA_SET, HubRepository
from minitron_trt.errors import BadInputError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from minitron_trt.convert.source.model_folder import ModelSource

log = logging.getLogger(__name__)

DEFAULT_TEXT: Final = Path(__file__).with_name("calibration.txt")
Ids: TypeAlias = NDArray[np.int64]
_PAGES: Final = 1 << 20  # characters
_TEXT_KEYS: Final = ("text", "article", "content")
_FORMATS: Final = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".txt", ".parquet")


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """Which text, and how much; `data` is a file, a hub data set, or None for DEFAULT_TEXT."""

    data: str | None = None
    samples: int = 64
    length: int = 512
    batch: int = 4
    seed: int = 0

    def batches(self, model: ModelSource) -> list[Ids]:
        """Return batches of token ids [pieces, tokens], `samples` pieces or as many as there are.

        Texts are joined and split, and each piece begins as the tokenizer begins a text: the first
        token carries the largest values of all. Ready ids are only split. BadInputError when there
        is nothing to draw from.
        """
        encoder = _Encoder(model)
        drawn: list[list[int]] = []
        for piece in _pieces(_documents(self.path()), encoder, self.length):
            drawn.append(piece)
            # Enough to draw from; a corpus may be larger than memory.
            if len(drawn) >= 4 * self.samples:
                break
        _check(drawn, self.path(), model.spec.vocab)
        order = np.random.default_rng(self.seed).permutation(len(drawn))[: self.samples]
        if self.data and len(order) < self.samples:
            log.warning(
                "%s gives %d pieces of %d tokens, not %d; calibrating with those",
                self.data,
                len(order),
                self.length,
                self.samples,
            )
        chosen = sorted((drawn[index] for index in order), key=len)
        return [
            np.array(pieces[at : at + self.batch])
            for _, group in itertools.groupby(chosen, len)
            for pieces in [list(group)]
            for at in range(0, len(pieces), self.batch)
        ]

    def path(self) -> Path:
        """Return the file of the text; a hub data set is downloaded first."""
        if self.data is None:
            return DEFAULT_TEXT
        path = Path(self.data)
        if path.is_dir():
            raise UsageError(f"--calib-data {path} is a folder; expected a file or a hub data set")
        if path.exists() and not path.is_file():
            # A pipe would keep the opening waiting, and can be read only once.
            raise BadInputError(f"{path} is a pipe or a device; expected a file of text")
        return path if path.exists() else _download(self.data)


def _pieces(
    documents: Iterable[list[int] | str], encoder: _Encoder, length: int
) -> Iterator[list[int]]:
    text: list[int] = []
    complete = False
    for document in documents:
        if not isinstance(document, str):
            yield from (document[at : at + length] for at in range(0, len(document), length))
            continue
        text += encoder(document)
        room = max(1, length - len(encoder.prefix))
        while len(text) >= room:
            yield [*encoder.prefix, *text[:room]]
            complete, text = True, text[room:]
    if text and not complete:
        yield [*encoder.prefix, *text]


def _check(pieces: list[list[int]], path: Path, vocab: int) -> None:
    if not any(pieces):
        raise BadInputError(f"{path} tokenizes to nothing; calibrate with some text")
    low, high = min(map(min, pieces)), max(map(max, pieces))
    if low < 0 or high >= vocab:
        wrong = low if low < 0 else high
        raise BadInputError(f"{path} has the token id {wrong}; the model knows 0 to {vocab - 1}")


def _documents(path: Path) -> Iterator[list[int] | str]:
    name = path.name.removesuffix(".gz")
    try:
        if name.endswith((".jsonl", ".json")):
            with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
                yield from _json_lines(path, file)
        elif name.endswith(".parquet"):
            yield from _parquet_texts(path)
        else:
            with path.open() as file:
                # Some pages at a time: the text may be larger than memory.
                while lines := file.readlines(_PAGES):
                    yield "".join(lines)
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path} is not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise BadInputError(f"{path} cannot be read ({error.strerror or error})") from error


def _json_lines(path: Path, lines: Iterable[str]) -> Iterator[list[int] | str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            ids = record.get("input_ids")
        except (ValueError, AttributeError, RecursionError) as error:
            raise BadInputError(f"{path}:{number} is not a JSON object ({error})") from error
        if ids is None:
            yield _text_of(path, number, record)
        elif isinstance(ids, list) and all(type(token) is int for token in ids):
            yield ids
        else:
            raise BadInputError(f"{path}:{number}: input_ids are not a list of whole numbers")


def _text_of(path: Path, number: int, record: dict[str, Any]) -> str:
    texts = [record[key] for key in _TEXT_KEYS if isinstance(record.get(key), str)]
    if not texts:
        raise BadInputError(f"{path}:{number} has neither `text` nor `input_ids`")
    return str(texts[0])


def _parquet_texts(path: Path) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "quantize", f"reading {path.name}") from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
        texts = [
            field.name
            for field in file.schema_arrow
            if pyarrow.types.is_string(field.type) or pyarrow.types.is_large_string(field.type)
        ]
        keys = [key for key in _TEXT_KEYS if key in texts]
        if not keys:
            raise BadInputError(f"{path} has no column of text; expected {' or '.join(_TEXT_KEYS)}")
        for batch in file.iter_batches(columns=keys[:1]):
            yield from (text for text in batch.column(0).to_pylist() if text)
    except pyarrow.ArrowException as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInputError(f"{path} is not a parquet file that can be read ({said})") from error


class _Encoder:
    """The model's tokenizer, loaded when there is text to encode."""

    def __init__(self, model: ModelSource) -> None:
        self.prefix: list[int] = []  # what begins every text, once something was encoded
        self._model = model
        self._tokenizer: Any = None

    def __call__(self, text: str) -> list[int]:
        """Return a text's own tokens."""
        if self._tokenizer is None:
            self._tokenizer = _tokenizer(self._model)
            first = self._tokenizer.encode("")[:1]
            self.prefix = first if first == [self._tokenizer.bos_token_id] else []
        # A text longer than the model's context is fine here, and not worth a warning.
        ids = self._tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return [int(token) for token in ids]


def _tokenizer(model: ModelSource) -> Any:
    if not model.has_tokenizer:
        raise BadInputError(
            f"{model.folder} has no tokenizer; calibrate with JSONL of ready `input_ids`"
        )
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingExtraError("transformers", "quantize", "calibration") from None
    # Only the tokenizer's own files are there: AutoTokenizer would run code that a config.json
    # beside them names.
    with tempfile.TemporaryDirectory() as scratch:
        model.tokenizer.write(Path(scratch))
        try:
            return AutoTokenizer.from_pretrained(scratch, local_files_only=True)
        except Exception as error:  # the library raises whatever its parsers do
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise BadInputError(
                f"{model.folder} has a tokenizer that cannot be read ({said}); calibrate with "
                "JSONL of ready `input_ids`"
            ) from error


def _download(repo: str) -> Path:
    """Return one file of a hub data set: of its train split, where the name says so."""
    repository = HubRepository(repo, kind=DATA_SET)
    names = sorted(
        (name for name in repository.data_set_files() if name.endswith(_FORMATS)),
        key=lambda name: ("train" not in name, name),
    )
    if not names:
        raise BadInputError(f"data set {repo} has no file of {', '.join(_FORMATS)}")
    return repository.file(names[0])
