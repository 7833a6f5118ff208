"""What does a browser make of a page? Headless Chromium, driven by its own protocol through two pipes."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)

_NUMBERED = """
import fcntl, os, sys
commands, answers = (fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3])
os.dup2(commands, 3)
os.dup2(answers, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Starts a program that reads commands from file 3 and writes answers to file 4, as Chromium does."""

_SECONDS = 20
"""How long one answer may take."""

OVERFLOWING = """
(() => {
  const width = document.documentElement.clientWidth, found = [];
  if (document.scrollingElement.scrollWidth > width) found.push(`the page: ${document.scrollingElement.scrollWidth}`);
  for (const one of document.body.querySelectorAll('*')) {
    let box = one.parentElement, boxed = false;
    for (; box; box = box.parentElement) boxed ||= ['auto', 'scroll'].includes(getComputedStyle(box).overflowX);
    const right = one.getBoundingClientRect().right;
    if (!boxed && right > width + 0.5) found.push(`${one.tagName} ${one.className}: ${right}`);
  }
  return found;
})()
"""
"""What reaches over the right edge without being in a box that scrolls."""

ILLEGIBLE = """
(() => {
  const numbers = colour => {
    const parts = colour.match(/[\\d.]+/g).map(Number);
    return parts.length === 4 ? parts : [...parts, 1];
  };
  const over = (top, below) => top.slice(0, 3).map((v, i) => v * top[3] + below[i] * (1 - top[3])).concat(1);
  const light = colour => colour.slice(0, 3)
    .map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    const layers = [];
    for (; element; element = element.parentElement) layers.push(numbers(getComputedStyle(element).backgroundColor));
    const dark = matchMedia('(prefers-color-scheme: dark)').matches
      && getComputedStyle(document.documentElement).colorScheme.includes('dark');
    return layers.reverse().reduce((below, layer) => over(layer, below), dark ? [18, 18, 18, 1] : [255, 255, 255, 1]);
  };
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walk.nextNode()) {
    const text = walk.currentNode.textContent.trim(), element = walk.currentNode.parentElement;
    if (!text || !element.getClientRects().length || ['STYLE', 'SCRIPT'].includes(element.tagName)) continue;
    seen += 1;
    const below = behind(element), colour = over(numbers(getComputedStyle(element).color), below);
    const [a, b] = [light(colour), light(below)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) found.push(`${contrast.toFixed(2)}: ${text.slice(0, 40)}`);
  }
  return {found, seen};
})()
"""
"""Text whose contrast with what is behind it is below 4.5 (WCAG 2, level AA), and how many texts there are."""


class Browser:
    """A Chromium with one page."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._numbers = itertools.count(1)
        self._left = b""
        self._session: str | None = None
        self.requests: list[str] = []

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Shows a file at a size, in the dark or in the light, and waits until it is there."""
        if self._session is None:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Network", "Runtime"):
                self.call(f"{domain}.enable")
        phone = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.requests.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        there = f"document.readyState === 'complete' && location.href === {json.dumps(path.resolve().as_uri())}"
        until = time.monotonic() + _SECONDS
        while not self.evaluate(there):
            assert time.monotonic() < until, f"{path} was not shown in {_SECONDS} s"
            time.sleep(0.02)
        self.evaluate("Promise.all([...document.images].map(image => image.decode().catch(() => 0))).then(() => 1)")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page as a picture."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol, and its answer."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        while True:
            answer = self._next()
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._answers], [], [], _SECONDS)
            assert ready, f"Chromium said nothing for {_SECONDS} s"
            read = os.read(self._answers, 1 << 20)
            assert read, "Chromium has ended"
            self._left += read
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser of its own, ended afterwards; skips the test where there is none."""
    program = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if program is None:
        pytest.skip("no chromium or google-chrome on the PATH")
    (command_end, commands), (answers, answer_end) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [program, *_FLAGS, f"--user-data-dir={folder}", "about:blank"]
        process = subprocess.Popen(
            [sys.executable, "-c", _NUMBERED, str(command_end), str(answer_end), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(command_end, answer_end),
        )
        os.close(command_end)
        os.close(answer_end)
        try:
            one = Browser(commands, answers)
            yield one
            one._session = None
            one.call("Browser.close")
            process.wait(_SECONDS)
        finally:
            os.close(commands)
            os.close(answers)
            if process.poll() is None:
                process.kill()
                process.wait()
