"""Pushing and pulling images, over the client of the ORAS project.

It knows registries' ways to authenticate, and the credentials that `docker login` and
`podman login` keep. Its retries of every failure, minutes long, and its reading of whole blobs
into memory are not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import oras.auth
import oras.container
import oras.provider
import requests
import requests.adapters
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from minitron_trt.errors import BadInputError, ProtocolError, RefusedError, UnreachableError
from minitron_trt.records import check_record
from minitron_trt.registry.image import IMAGE_MANIFEST, ImageManifest, PackedImage
from minitron_trt.registry.image_reference import Reference
from minitron_trt.registry.layers import Advance, Blob, read_layer

_CONNECT_S: Final = 10.0
# Between two pieces of an answer. A registry may take a while to look at gigabytes that came.
_SILENCE_S: Final = 300.0
_RETRIES: Final = 3
# Smaller blobs go in one request, as every registry takes them.
_CHUNK_BYTES: Final = 32 << 20
# The 4 MiB that OCI's distribution specification has registries take at least.
_MANIFEST_AT_MOST: Final = 4 << 20
_READ_BYTES: Final = 64 << 10
_DENIED: Final = (401, 403)
_MISSING: Final = 404


class _Patience(requests.adapters.HTTPAdapter):
    """Sends requests that have a time limit each, and retries those that never arrived."""

    def __init__(self) -> None:
        super().__init__(max_retries=Retry(connect=_RETRIES, read=0, backoff_factor=0.3))

    def send(self, request: Any, *arguments: Any, **settings: Any) -> requests.Response:
        settings["timeout"] = settings.get("timeout") or (_CONNECT_S, _SILENCE_S)
        return super().send(request, *arguments, **settings)


class _Provider(oras.provider.Registry):  # type: ignore[misc, unused-ignore]
    # The function below the decorator that retries whatever fails, for two minutes.
    do_request = oras.provider.Registry.do_request.__wrapped__


def _provider(place: Reference, *, insecure: bool) -> _Provider:
    """Return the client of a registry, with the way to authenticate that it names."""
    provider = _Provider(hostname=place.host, insecure=insecure)
    _be_patient(provider)
    with _one_line(place):
        url = f"{provider.prefix}://{place.host}/v2/"
        # What it says besides is not read, however long.
        with provider.session.get(url, stream=True) as answer:
            challenge = answer.headers.get("Www-Authenticate", "")
    if challenge.lower().startswith("basic"):
        provider = _Provider(hostname=place.host, insecure=insecure, auth_backend="basic")
        _be_patient(provider)
    return provider


def _be_patient(provider: _Provider) -> None:
    for scheme in ("http://", "https://"):
        provider.session.mount(scheme, _Patience())


class RemoteRegistry:
    """A registry, and the place in it that a reference names.

    Errors: UnreachableError, RefusedError where credentials are missing or do not suffice,
    BadInputError where there is no such image, ProtocolError for answers that are none.
    """

    def __init__(self, place: Reference, *, plain_http: bool = False) -> None:
        self._place = place
        self._provider = _provider(place, insecure=plain_http or place.is_loopback)
        with _one_line(place):
            self._provider.auth.load_configs(self._container(place))
        # The client takes for granted that whoever is asked for a password has one.
        if isinstance(self._provider.auth, oras.auth.BasicAuth) and not hasattr(
            self._provider.auth, "_basic_auth"
        ):
            raise _denied(place)

    def push(self, image: PackedImage, place: Reference, advance: Advance) -> None:
        """Send an image: the blobs that the registry lacks, then the manifest that names them."""
        manifest = image.read()
        for each in (*manifest.layers, manifest.config):
            self.push_blob(image.blob_path(each.digest), each.blob, advance)
        self.push_manifest(image.blob_path(image.manifest.digest).read_bytes(), place)

    def push_blob(self, path: Path, blob: Blob, advance: Advance) -> None:
        """Send a blob unless the registry has it, in pieces where it is large."""
        container = self._container(self._place)
        layer = {"digest": blob.digest, "size": blob.size}
        with _one_line(self._place):
            if self._provider.blob_exists(layer, container):
                advance(blob.size)
                return
            if blob.size <= _CHUNK_BYTES:
                answer = self._provider.put_upload(str(path), container, layer)
            else:
                answer = self._provider.chunked_upload(
                    str(path), container, layer, chunk_size=_CHUNK_BYTES
                )
            self._check(answer, self._place)
        advance(blob.size)

    def push_manifest(self, data: bytes, place: Reference) -> None:
        """Send a manifest, byte for byte, to a tag."""
        url = self._url(place)
        with _one_line(place):
            headers = {"Content-Type": IMAGE_MANIFEST}
            self._check(self._provider.do_request(url, "PUT", data=data, headers=headers), place)

    def manifest(self, place: Reference) -> tuple[ImageManifest, str]:
        """Return an image's manifest and its digest."""
        headers = {"Accept": IMAGE_MANIFEST}
        with (
            _one_line(place),
            self._provider.do_request(self._url(place), headers=headers, stream=True) as answer,
        ):
            self._check(answer, place)
            data = _small(answer, place)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if place.version.startswith("sha256:") and place.version != digest:
            raise ProtocolError(f"{place} came as {digest}; the registry is not to be trusted")
        try:
            manifest = check_record(json.loads(data), ImageManifest)
        except (ValueError, RecursionError) as error:
            raise BadInputError(
                f"{place} is no image of one platform ({error}); expected one that minitron-trt "
                "pushed"
            ) from error
        return manifest, digest

    def pull(self, manifest: ImageManifest, folder: Path, advance: Advance) -> None:
        """Unpack an image's layers into an empty folder, each checked against its digest."""
        for layer in manifest.layers:
            with _one_line(self._place), self._blob(layer.digest) as answer:
                read_layer(answer.raw, layer.mediaType, layer.blob, folder, advance)

    def small_blob(self, blob: Blob) -> bytes:
        """Return a blob of a few bytes; ProtocolError when it is not the one named."""
        with _one_line(self._place), self._blob(blob.digest) as answer:
            data = _small(answer, self._place)
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != blob.digest:
            raise ProtocolError(f"{blob.digest} of {self._place} came with other bytes")
        return data

    def _blob(self, digest: str) -> requests.Response:
        """Return the answer that brings a blob, of which nothing is read yet."""
        container = self._container(self._place)
        answer: requests.Response = self._provider.get_blob(container, digest, stream=True)
        self._check(answer, self._place)
        return answer

    def _container(self, place: Reference) -> Any:
        return oras.container.Container(str(place), registry=place.host)

    def _url(self, place: Reference) -> str:
        container = self._container(place)
        return f"{self._provider.prefix}://{container.manifest_url(place.version or None)}"

    def _check(self, answer: requests.Response, place: Reference) -> None:
        status = answer.status_code
        if status < 300:
            return
        if status in _DENIED:
            raise _denied(place)
        if status == _MISSING:
            raise BadInputError(f"{place} is not there; expected an image in the registry")
        # Some of it: it may be a page, or without an end.
        words = next(answer.iter_content(200), b"").decode(errors="replace").strip()
        words = words or answer.reason
        raise RefusedError(f"{place.host} answers {status} to {place}: {words}")


def _small(answer: requests.Response, place: Reference) -> bytes:
    """Return what an answer brings; ProtocolError when a manifest cannot be that long."""
    data = b""
    for piece in answer.iter_content(_READ_BYTES):
        data += piece
        if len(data) > _MANIFEST_AT_MOST:
            raise ProtocolError(
                f"{place.host} answers for {place} with more than {_MANIFEST_AT_MOST} bytes; "
                "expected a manifest or a signature"
            )
    return data


def _denied(place: Reference) -> RefusedError:
    return RefusedError(
        f"{place.host} refuses {place} without credentials that suffice; give them by docker login "
        f"or podman login to {place.host}"
    )


@contextlib.contextmanager
def _one_line(place: Reference) -> Iterator[None]:
    """Turn what the libraries raise into this project's errors."""
    try:
        yield
    except oras.auth.AuthenticationException as error:
        raise _denied(place) from error
    except requests.exceptions.SSLError as error:
        raise UnreachableError(
            f"{place.host} does not speak TLS that can be trusted ({error}); for a registry "
            "without TLS add --plain-http"
        ) from error
    except (requests.exceptions.RequestException, HTTPError) as error:
        # The other is of a layer that is read as it comes; what a disk refuses is neither.
        raise UnreachableError(f"{place.host} cannot be reached or went away ({error})") from error
    except ValueError as error:
        # What the client makes of answers that it does not understand.
        if "authentication" in str(error):
            raise _denied(place) from error
        raise ProtocolError(f"{place.host} answers as no registry does ({error})") from error
