"""``refusal-lens open DIR``: a report in the browser, served on this machine only."""

from __future__ import annotations

import errno
import os
import webbrowser
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ResultError
from .terminal import console, log

HOST = "127.0.0.1"


def report_path(target: Path) -> Path:
    """The page that ``target`` means: a .html file, or ``report.html`` of a result folder (rendered if missing).

    Raises:
        ResultError: there is neither.
    """
    if target.is_file() and target.suffix == ".html":
        return target
    for name in ("report.html", "index.html"):
        if (target / name).is_file():
            return target / name
    if (target / "study.json").is_file():
        from ..study.folder import Study

        return Study.load(target).report()
    what = "there is no folder" if not target.exists() else "there is no report.html in the folder"
    raise ResultError(f"{what} {target}; `refusal-lens run --out {target}` makes one")


class ReportServer(ThreadingHTTPServer):
    """Serves one page on the loopback interface, and nothing else of the folder.

    Args:
        path: the page; read again for every request, so that a new report is seen on reload.
        port: 0 for any free one.

    Raises:
        ResultError: the port is taken or not allowed.
    """

    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # elsewhere it would let two servers share a port

    def __init__(self, path: Path, port: int = 0):
        self.path = path
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = "is taken" if getattr(error, "errno", 0) == errno.EADDRINUSE else f"can't be used ({error})"
            raise ResultError(f"port {port} {reason}; leave out --port for a free one") from error

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        # A page of a remote site must not read the report under another name of this machine.
        port = self.server.server_address[1]
        if self.headers.get("Host", "") not in (f"{HOST}:{port}", f"localhost:{port}"):
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        if self.path.split("?")[0] not in ("/", f"/{self.server.path.name}"):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            content = self.server.path.read_bytes()
        except OSError:
            self.send_error(HTTPStatus.GONE)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        log.write({"event": "request", "line": format % args})


def open_report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A result folder, or a .html file.")] = Path(
        "runs/latest"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 for any free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in the default browser.")] = True,
) -> None:
    """Serve the report of DIR on this machine only and open it in a browser; Ctrl+C stops.

    Examples:

      refusal-lens open runs/latest

      refusal-lens open runs/latest --no-browser --port 8000

    To see a report of another machine here: `ssh -L 8000:127.0.0.1:8000 HOST`, run the second example there, and open
    http://127.0.0.1:8000 here.
    """
    with ReportServer(report_path(folder), port) as server:
        line = f"{server.path.resolve()} is at {server.url} (Ctrl+C stops)"
        console.print(line, soft_wrap=True, markup=False, highlight=False)
        if browser and not webbrowser.open(server.url):
            console.print("no browser could be started: open the address yourself")
        server.serve_forever()
