"""GitHub's REST API, asked with the token of a job: bounded in time and size, and the token goes nowhere else."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

TIMEOUT = 10.0  # seconds for each read of an answer; whoever asks bounds the whole (webhook.within)
MOST_BYTES = 30_000_000  # of an answer: a page of issues, each with a body of 65,536 characters


class Refused(Exception):
    """GitHub's answer says no. is_limit: its limit of requests is reached."""

    def __init__(self, code: int, is_limit: bool) -> None:
        super().__init__(str(code))
        self.code, self.is_limit = code, is_limit


class NoAnswer(Exception):
    """What kept it away, in a word."""


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would send the token along to wherever an answer leads."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Api:
    """What lies below one address, as https://api.github.com/repos/OWNER/NAME."""

    def __init__(self, address: str, token: str) -> None:
        self.address, self.token = address, token
        self.opener = urllib.request.build_opener(NoRedirect)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """One request; the answer's JSON, None if it is empty.

        Raises Refused, NoAnswer; ValueError, RecursionError for what is too large or no JSON.
        """
        headers = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
        headers |= {"Authorization": f"Bearer {self.token}", "User-Agent": "deploy-machine"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, headers, method=method)
        try:
            with self.opener.open(request, timeout=TIMEOUT) as answer:
                text = answer.read(MOST_BYTES + 1)
            if len(text) > MOST_BYTES:
                raise ValueError("too large")
            return json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            with error:
                none_left = error.headers.get("x-ratelimit-remaining") == "0" or error.headers.get("retry-after")
                limited = error.code == 429 or (error.code == 403 and bool(none_left))
                raise Refused(error.code, limited) from None
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(type(error).__name__) from None
