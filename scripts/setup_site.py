"""nginx: whether it passes requests to the release that serves."""

from __future__ import annotations

import re

import setup_looks as looks
import setup_old as old
import setup_wanted as wanted
from setup_work import Work


def name_addresses(work: Work) -> None:
    """Name what keeps nginx from passing requests to the release that serves."""
    slots = wanted.slots_of(work.settings, work.options.role)
    if "nginx" not in work.options.needs or not looks.NGINX.is_dir() or not slots or work.old == "serves":
        return
    address = f"unix:{work.root}/current/.socket"
    outdated = lines_below_nginx(f"unix:{old.ADDRESS}")
    for place, line in outdated.items():
        work.todo.append(f"nginx: write in {place}: {line.replace(f'unix:{old.ADDRESS}', address)}")
    if not outdated and not lines_below_nginx(address):
        work.todo.append(f"nginx: no file below {looks.NGINX} passes requests to {address}: add a site that does")


def lines_below_nginx(text: str) -> dict[str, str]:
    """The lines of nginx's files that have this text outside a comment: FILE:LINE and the line itself."""
    lines = looks.nginx_lines(looks.NGINX).items()
    return {place: line for place, line in lines if re.search(re.escape(text) + r"(?![\w.-])", line)}
