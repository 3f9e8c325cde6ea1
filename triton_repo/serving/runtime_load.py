"""What is under way in a server, as its own metrics say."""

from __future__ import annotations

import http.client
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

_RUNTIME: Final = re.compile(
    r"^nv_trt_llm_request_metrics\{[^}]*request_type=\"(?P<kind>active|waiting)\"[^}]*\} "
    r"(?P<value>\S+)",
    re.MULTILINE,
)
_QUEUED: Final = re.compile(
    r"^nv_inference_pending_request_count\{[^}]*\} (?P<value>\S+)", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class RuntimeLoad:
    """How many requests a runtime answers, has waiting, and how many are in Triton's queues."""

    active: int
    waiting: int
    queued: int

    @property
    def is_idle(self) -> bool:
        """Say whether nothing is under way."""
        return not (self.active or self.waiting or self.queued)

    def __str__(self) -> str:
        """Return what is under way, as text."""
        return f"{self.active} running, {self.waiting + self.queued} waiting"

    @classmethod
    def parse(cls, metrics: str) -> RuntimeLoad | None:
        """Read a metrics page; None when its runtime does not say both numbers."""
        counts = {"active": 0, "waiting": 0}
        kinds = set()
        for match in _RUNTIME.finditer(metrics):
            kinds.add(match["kind"])
            counts[match["kind"]] += int(float(match["value"]))
        # One number alone, as of the runtime llmapi, does not tell that nothing waits.
        if kinds != set(counts):
            return None
        queued = sum(int(float(match["value"])) for match in _QUEUED.finditer(metrics))
        return cls(counts["active"], counts["waiting"], queued)


def read_load(url: str, timeout_s: float) -> RuntimeLoad | None:
    """Read a server's load from its metrics; None when it does not answer or does not say."""
    page = read_local(url, timeout_s)
    return None if page is None else RuntimeLoad.parse(page)


def read_local(url: str, timeout_s: float) -> str | None:
    """Return what a server of this machine answers with status 200, else None."""
    # Not urllib, which is slow to import and would go through a proxy of the environment.
    there = urlsplit(url)
    connection = http.client.HTTPConnection(there.netloc, timeout=timeout_s)
    try:
        connection.request("GET", there.path)
        response = connection.getresponse()
        if response.status == http.client.OK:
            return response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        pass
    finally:
        connection.close()
    return None
