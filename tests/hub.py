"""A local server with the Hub's protocol for models and data sets: a folder OWNER/NAME is a repository."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(root: Path) -> Iterator[dict[str, str]]:
    """Serves ``root``; returns the environment in which a process uses it as the Hub, with a cache of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"root": root}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(root.parent / "hub cache"),
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of huggingface_hub: for a repository (``/api/models/OWNER/NAME…``, ``/api/datasets/…``), its
    list of files (``…/tree/COMMIT``), a file or a part of it (``[/datasets]/OWNER/NAME/resolve/COMMIT/FILE``)."""

    root: Path
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        words = [word for word in self.path.split("?")[0].split("/") if word]
        api = words[:1] == ["api"]
        if api or words[:1] == ["datasets"]:
            words = words[2 if api else 1 :]
        folder = self.root.joinpath(*words[:2])
        if len(words) < 2 or not folder.is_dir():
            self._reply(404, X_Error_Code="RepoNotFound")
        elif api:
            self._send_model_info(folder, words[2:])
        else:
            self._send(folder.joinpath(*words[4:]))

    do_HEAD = do_GET

    def _send_model_info(self, folder: Path, what: list[str]) -> None:
        files = sorted(folder.iterdir())
        answer: Any = {"id": "/".join(folder.parts[-2:]), "sha": COMMIT, "private": False, "tags": [], "downloads": 0}
        answer["siblings"] = [{"rfilename": file.name} for file in files]
        if what[:1] == ["tree"]:
            entries = [{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0"} for file in files]
            answer = entries if len(what) == 2 else []  # of subfolders: nothing
        self._reply(200, json.dumps(answer).encode(), Content_Type="application/json")

    def _send(self, file: Path) -> None:
        if not file.is_file():
            self._reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            return
        data = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        if part := self.headers.get("Range"):
            first, last = part.removeprefix("bytes=").split("-")
            begin, end = int(first), min(int(last or len(data)), len(data) - 1)
            whole = f"bytes {begin}-{end}/{len(data)}"
            self._reply(206, data[begin : end + 1], Content_Range=whole, **headers)
        else:
            self._reply(200, data, **headers)
