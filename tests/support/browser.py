"""A headless Chromium, driven over a pipe with its DevTools protocol: no package is needed for it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

__all__ = ["Browser", "find_browser"]

PATIENCE = 30.0


def find_browser() -> str | None:
    """The program, if one is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page. ``problems`` collects what its console complained about."""

    def __init__(self, program: str, profile: Path, *, width: int = 1000, height: int = 800) -> None:
        requests, self._out = os.pipe()
        self._in, answers = os.pipe()
        wiring = f'exec 3<&{requests} 4>&{answers}; exec "$0" "$@"'
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        command = ["bash", "-c", wiring, program, *options, f"--user-data-dir={profile}", "about:blank"]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, pass_fds=(requests, answers), stdout=quiet, stderr=quiet)
        os.close(requests)
        os.close(answers)
        self._count, self._buffer, self._session = 0, b"", ""
        self.problems: list[str] = []
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            self.do(f"{domain}.enable")
        self.resize(width, height)

    def do(self, method: str, **params: Any) -> Any:
        """One command and its result."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
            thrown = answer.get("method") == "Runtime.exceptionThrown"
            logged = answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] != "verbose"
            if thrown or logged:
                self.problems.append(json.dumps(answer["params"]))

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.do("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str) -> None:
        """Wait for an expression to be true."""
        deadline = time.monotonic() + PATIENCE
        while not self.run(script):
            assert time.monotonic() < deadline, script
            time.sleep(0.02)

    def press(self, key: str, *, shift: bool = False) -> None:
        """One key."""
        code, text = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, ""), " ": (32, " ")}[key]
        common = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.do("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.do("Input.dispatchKeyEvent", type="keyUp", **common)

    def focused(self) -> str:
        """The id of what has the focus."""
        return str(self.run("document.activeElement.id"))

    def named(self) -> list[tuple[str, str]]:
        """Role and accessible name of everything on the page that assistive technology can act on."""
        roles = {
            "button",
            "textbox",
            "spinbutton",
            "checkbox",
            "combobox",
            "link",
            "DisclosureTriangle",
            "log",
            "article",
        }
        nodes = self.do("Accessibility.getFullAXTree")["nodes"]
        found = [node for node in nodes if not node["ignored"] and node["role"]["value"] in roles]
        return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in found]

    def type(self, text: str) -> None:
        """Text into what has the focus."""
        self.do("Input.insertText", text=text)

    def resize(self, width: int, height: int) -> None:
        """Another window."""
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def picture(self, path: Path) -> None:
        """Save what is seen."""
        path.write_bytes(base64.b64decode(self.do("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """End the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def _next(self) -> Any:
        while b"\0" not in self._buffer:
            part = os.read(self._in, 65536)
            assert part, "the browser has gone"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)
