"""Debian's Chromium without a screen, driven by its own protocol through a pipe."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.patience import PATIENCE_S

PROGRAM: Final = shutil.which("chromium")


class Browser:
    """One tab, on a screen of any size."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to = to_browser
        self._from = from_browser
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self.console: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the result of one of the protocol's methods."""
        self._number += 1
        session = {} if self._session is None else {"sessionId": self._session}
        message = {"id": self._number, "method": method, "params": parameters, **session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            told = self._receive()
            if told.get("id") == self._number:
                assert "error" not in told, told
                result: dict[str, Any] = told["result"]
                return result
            self._note(told)

    def _note(self, told: dict[str, Any]) -> None:
        """Keep what the page's console shows as a fault."""
        is_entry = told.get("method") == "Log.entryAdded"
        is_fault = is_entry and told["params"]["entry"]["level"] in ("warning", "error")
        if is_fault or told.get("method") == "Runtime.exceptionThrown":
            self.console.append(json.dumps(told["params"]))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = os.read(self._from, 2**16)
            assert data, "the browser ended"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        told: dict[str, Any] = json.loads(message)
        return told

    def quit(self) -> None:
        """End the browser, which all of its tabs hear."""
        self._session = None
        self.call("Browser.close")

    def value(self, script: str) -> Any:
        """Return what an expression of JavaScript is worth."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait(self, script: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.value(script):
            assert time.monotonic() < deadline, (script, self.console)
            time.sleep(0.05)

    def open(self, url: str) -> None:
        """Go to a page."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def type(self, text: str) -> None:
        """Type a text where the cursor is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press a key: Enter, Escape."""
        code = {"Enter": 13, "Escape": 27}[key]
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code)

    def click(self, selector: str) -> None:
        """Click on an element."""
        self.value(f"document.querySelector({json.dumps(selector)}).click()")

    def resize(self, width: int, height: int, *, is_phone: bool = False) -> None:
        """Have a screen of this size."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2,
            mobile=is_phone,
        )

    def prefer(self, scheme: str) -> None:
        """Prefer light or dark pages."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def picture(self, path: Path) -> None:
        """Write what is on the screen to a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """Run a browser until the block is left."""
    assert PROGRAM is not None
    commands_out, commands_in = os.pipe()
    events_out, events_in = os.pipe()

    def take_pipes() -> None:
        # Chromium reads its commands at 3 and writes at 4.
        first, second = os.dup(commands_out), os.dup(events_in)
        os.dup2(first, 3)
        os.dup2(second, 4)

    process = subprocess.Popen(
        (
            PROGRAM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=take_pipes,
        close_fds=False,
        start_new_session=True,
    )
    os.close(commands_out)
    os.close(events_in)
    try:
        browser = Browser(commands_in, events_out)
        yield browser
        browser.quit()
        process.wait(PATIENCE_S)
    finally:
        os.close(commands_in)
        os.close(events_out)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
