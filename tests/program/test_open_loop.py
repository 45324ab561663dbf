"""The open-loop load as a program: it goes on asking a server that stalls, and ends with its input."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time

from faults import open_loop

STALL = 1.0
ANSWER = b"HTTP/1.1 200 OK\r\nCommit: abc\r\nContent-Length: 2\r\n\r\nok"


def serve(listener: socket.socket, until: float) -> None:
    """Answer nobody until then, and everybody afterwards."""
    time.sleep(max(0.0, until - time.monotonic()))
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            connection.recv(4096)
            connection.sendall(ANSWER)


def test_requests_begin_while_the_server_stalls() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=500) as listener:
        port = str(listener.getsockname()[1])
        argv = [sys.executable, open_loop.__file__, "127.0.0.1", port]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            threading.Thread(target=serve, args=(listener, time.monotonic() + STALL), daemon=True).start()
            time.sleep(2 * STALL)
            out, _ = process.communicate("/slow?0\n", timeout=30)
        listener.shutdown(socket.SHUT_RDWR)
    answers = [open_loop.Answer(**json.loads(line)) for line in out.splitlines()]
    assert [answer for answer in answers if answer.failed] == []
    assert [answer.path for answer in answers if not answer.steady] == ["/slow?0"]
    # others may have the processors for a moment: then some begin late
    stalled = [one for one in answers if one.latency > 0.1 and one.began - one.scheduled < STALL / 2]
    assert len(stalled) > 0.2 * STALL * open_loop.RATE, "a closed loop would have waited with the first one"
