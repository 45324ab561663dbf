"""The mysite/wsgi.py of the scenarios: the example's application, with long requests, and with a defect to choose.

Each answer tells in a header which commit gave it. The scenarios commit this file, with the constants replaced.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from django.core.wsgi import get_wsgi_application

from board.revision import COMMIT

DEFECT = "none"
SECONDS = 0.0  # when it shows, or how long the start takes
NUMBER = 0  # of the deploy, so that no two commits have the same code

BROKEN = {"health 500": ("/healthz",), "everything 500": ("/healthz", "/", "/slow", "/stream")}.get(DEFECT, ())


def end_later(end: Callable[[], Any]) -> None:
    timer = threading.Timer(SECONDS, end)
    timer.daemon = True
    timer.start()


if DEFECT == "import error":
    raise ImportError("on purpose")
if DEFECT == "worker dies at start":
    os._exit(1)
if DEFECT == "slow start":
    time.sleep(SECONDS)
if DEFECT == "worker dies":
    end_later(lambda: os._exit(1))
if DEFECT == "master dies":
    end_later(lambda: os.kill(os.getppid(), signal.SIGKILL))

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
django = get_wsgi_application()


def stream(seconds: float) -> Iterator[bytes]:
    """A line each half second, and a last one that shows that nothing was cut off."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        yield b"more\n"
        time.sleep(min(0.5, left))
    yield b"end of stream\n"


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
        return start_response(status, [*headers, ("Commit", COMMIT)], *rest)

    path, seconds = environ["PATH_INFO"], float(environ["QUERY_STRING"] or 0)
    if path in BROKEN:
        start("500 Internal Server Error", [("Content-Type", "text/plain")])
        return [b"on purpose\n"]
    if path == "/stream":
        start("200 OK", [("Content-Type", "text/plain")])
        return stream(seconds)
    if path == "/slow":
        time.sleep(seconds)
        start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "3")])
        return [b"ok\n"]
    answer: Iterable[bytes] = django(environ, start)
    return answer
