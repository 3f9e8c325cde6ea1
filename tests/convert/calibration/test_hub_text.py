"""Calibration text from a hub: a small server with one data set, and what is read of it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
from tests.convert.source.test_hub_source import NO_CONNECTION

from minitron_trt.convert.calibration.text import CalibrationText
from minitron_trt.convert.source.model_folder import ModelSource
from minitron_trt.errors import BadInputError, MissingExtraError
from minitron_trt.samples import sample_folder

pytestmark = pytest.mark.slow

REPO: Final = "some/news"
COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"
LLAMA: Final = sample_folder("solar-llama")
PIECES: Final = """\
import json, sys
from pathlib import Path
from minitron_trt.convert.calibration.text import CalibrationText
from minitron_trt.convert.source.model_folder import ModelSource
from minitron_trt.errors import MinitronError
try:
    text = CalibrationText(sys.argv[1], samples=8, length=16)
    found = text.batches(ModelSource.open(Path(sys.argv[2])))
except MinitronError as error:
    sys.exit(f"{error.exit_code} {error}")
print(json.dumps(sorted(row for batch in found for row in batch.tolist())))
"""
Pieces = subprocess.CompletedProcess[str]
WriteParquet = Callable[[Path, dict[str, list[Any]]], None]


class DataSetHub:
    """One data set of files, and the names of those that were fetched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fetched: list[str] = []

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of a request."""
        names = sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*.*"))
        if path.startswith(f"/api/datasets/{REPO}"):
            about: Any = {"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
            if "/tree/" in path:
                about = [{"type": "file", "path": n, "size": 1, "oid": COMMIT} for n in names]
            return 200, {"Content-Type": "application/json"}, json.dumps(about).encode()
        name = path.removeprefix(f"/datasets/{REPO}/resolve/").partition("/")[2]
        if name not in names:
            return 404, {"X-Error-Code": "RepoNotFound", "X-Repo-Commit": COMMIT}, b""
        body = (self.folder / name).read_bytes()
        etag = hashlib.sha256(body).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[DataSetHub, str]]:
    """Return a hub whose data set has no files yet, and its address."""
    state = DataSetHub(tmp_path / "repository")
    state.folder.mkdir()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send(with_body=False)

        def do_GET(self) -> None:
            self.send(with_body=True)

        def send(self, with_body: bool) -> None:
            path = self.path.split("?")[0]
            status, headers, body = state.answer(path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                if "/resolve/" in path:
                    state.fetched.append(path.partition("/resolve/")[2].partition("/")[2])
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield state, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def write_parquet() -> WriteParquet:
    """Return a writer of parquet files; skips, loudly, without the package."""
    pytest.importorskip("pyarrow", reason="NOT CHECKED: pip install minitron-trt[quantize]")
    import pyarrow
    import pyarrow.parquet

    def write(path: Path, columns: dict[str, list[Any]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table(columns), path)

    return write


def pieces(data: str, address: str, cache: Path, **changes: str) -> Pieces:
    """Draw from a text in a process of its own: the hub's library reads its environment once."""
    environment = {
        **os.environ,
        "HF_HOME": str(cache),
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
        **changes,
    }
    return subprocess.run(
        [sys.executable, "-c", PIECES, data, str(LLAMA)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_rows_of_the_first_training_file_arrive(
    hub: tuple[DataSetHub, str], write_parquet: WriteParquet, tmp_path: Path
) -> None:
    state, address = hub
    articles = ["The Sun is a star. " * 9, None, "Mars is red. " * 9]
    columns: dict[str, list[Any]] = {"id": [1, 2, 3], "article": articles, "highlights": ["no"] * 3}
    wanted = "1.0.0/train-00000-of-00002.parquet"
    write_parquet(state.folder / wanted, columns)
    for other in ("3.0.0/train-00000-of-00002", "1.0.0/test-00000-of-00001"):
        write_parquet(state.folder / f"{other}.parquet", {"article": ["not this one " * 9]})
    (state.folder / "README.md").write_text("a data set")
    result = pieces(REPO, address, tmp_path / "cache")
    plain = tmp_path / "plain.jsonl"
    plain.write_text("\n".join(json.dumps({"text": text}) for text in articles if text))
    expected = CalibrationText(str(plain), samples=8, length=16).batches(ModelSource.open(LLAMA))

    assert (result.returncode, state.fetched) == (0, [wanted]), result.stderr
    assert json.loads(result.stdout) == sorted(row for batch in expected for row in batch.tolist())


@pytest.mark.parametrize(
    ("data", "changes", "line"),
    [
        (
            "some/nothing",
            {},
            "3 --calib-data some/nothing is neither a file here nor a data set the hub shows you",
        ),
        (
            REPO,
            {"HF_HUB_OFFLINE": "1"},
            f"3 --calib-data {REPO} is not a file here and the hub cannot be reached "
            "(OfflineModeIsEnabled); go online, or pass a file",
        ),
        (
            REPO,
            {"HF_ENDPOINT": "http://127.0.0.1:9"},
            f"3 --calib-data {REPO} is not a file here and the hub cannot be reached "
            f"({NO_CONNECTION}); go online, or pass a file",
        ),
    ],
    ids=["no such data set", "offline", "nobody answers"],
)
def test_a_data_set_that_does_not_come_is_explained_in_one_line(
    data: str,
    changes: dict[str, str],
    line: str,
    hub: tuple[DataSetHub, str],
    write_parquet: WriteParquet,
    tmp_path: Path,
) -> None:
    state, address = hub
    write_parquet(state.folder / "3.0.0" / "train.parquet", {"text": ["a"]})
    result = pieces(data, address, tmp_path / "cache", **changes)

    assert (result.returncode, result.stdout, result.stderr) == (1, "", line + "\n")


def test_a_data_set_without_a_readable_file_is_refused(
    hub: tuple[DataSetHub, str], tmp_path: Path
) -> None:
    state, address = hub
    (state.folder / "train.zip").write_bytes(b"")
    result = pieces(REPO, address, tmp_path / "cache")

    assert (result.returncode, result.stderr) == (
        1,
        f"3 data set {REPO} has no file of .jsonl, .json, .jsonl.gz, .json.gz, .txt, .parquet\n",
    )


def test_parquet_without_a_column_of_text_is_refused(
    write_parquet: WriteParquet, tmp_path: Path
) -> None:
    path = tmp_path / "numbers.parquet"
    write_parquet(path, {"label": [1, 2], "content": [3, 4]})

    with pytest.raises(BadInputError, match="has no column of text; expected text or article or"):
        CalibrationText(str(path)).batches(ModelSource.open(LLAMA))


def test_parquet_that_is_damaged_is_refused(write_parquet: WriteParquet, tmp_path: Path) -> None:
    path = tmp_path / "damaged.parquet"
    write_parquet(path, {"text": ["a"]})
    path.write_bytes(path.read_bytes()[:-3])

    with pytest.raises(BadInputError, match="is not a parquet file"):
        CalibrationText(str(path)).batches(ModelSource.open(LLAMA))


def test_parquet_without_its_package_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    with pytest.raises(MissingExtraError, match=r"pip install 'minitron-trt\[quantize\]'"):
        CalibrationText(str(tmp_path / "text.parquet")).batches(ModelSource.open(LLAMA))
