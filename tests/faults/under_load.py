"""A row of deploys and rollbacks under steady load, and what became of the requests."""

from __future__ import annotations

import dataclasses
import re
import time

from faults.load import Answer, steady
from lab.machine import Machine
from lab.world import World

SLOW_VIEW = """

def slow(request: HttpRequest) -> JsonResponse:
    time.sleep(int(request.META["QUERY_STRING"]))
    return JsonResponse({"commit": COMMIT})
"""


@dataclasses.dataclass
class Report:
    """What one row of deploys met. `problems` is empty if every promise was kept."""

    deploys: dict[str, int]
    requests: dict[str, int] = dataclasses.field(default_factory=dict)
    slowest: dict[str, float] = dataclasses.field(default_factory=dict)
    assets: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)


def prepare(world: World) -> Machine:
    """A frontend with a slow view, which keeps two releases (so that dependencies are built again)."""
    frontend = world.boot("frontend")
    views = (world.clone / "board/views.py").read_text()
    urls = (world.clone / "mysite/urls.py").read_text()
    ini = (world.clone / "deploy.ini").read_text()
    world.commit(
        {
            "board/views.py": "import time\n\n" + views + SLOW_VIEW,
            "mysite/urls.py": urls.replace("urlpatterns = [", 'urlpatterns = [path("slow", views.slow), '),
            "deploy.ini": f"[deploy]\nkeep = 2\n{ini}",
        }
    )
    frontend.deploy()
    return frontend


def change(world: World, kind: str, number: int) -> None:
    """Commit the next change: another style sheet (so, other assets), and perhaps another dependency."""
    css = world.clone / "frontend/board.css"
    if kind == "dependency":
        if "humanize" in (world.clone / "pyproject.toml").read_text():
            world.git("checkout", "-q", "without", "--", "pyproject.toml", "poetry.lock")
        else:
            world.git("tag", "-f", "without")
            world.add_python_dependency("humanize (>=4,<5)")
    world.commit({"frontend/board.css": css.read_text() + f"\n.deploy-{number} {{ color: #{number:06x} }}\n"})


def assets(frontend: Machine) -> list[str]:
    page = frontend.out("curl -s -m 30 http://127.0.0.1/")
    return re.findall(r"/static/dist/board\.[0-9a-f]{12}\.(?:js|css)", page)


def under_load(world: World, kinds: list[str]) -> Report:
    """Deploy (code, dependency) or roll back, one after the other, while requests come in."""
    frontend = prepare(world)
    report = Report({kind: kinds.count(kind) for kind in sorted(set(kinds))})
    reported: list[tuple[float, str]] = []  # when a deploy said that it was done, and with which commit
    with steady(world, frontend.address) as answers:
        time.sleep(1)
        for number, kind in enumerate(kinds):
            before = assets(frontend)
            if kind == "rollback":
                done = frontend.deploy("rollback")
            else:
                change(world, kind, number)
                done = frontend.deploy("--trigger", "cd")
            reported.append((time.monotonic(), str(done.result["commit"])))
            if done.outcome not in ("deployed", "rolled_back_on_request"):
                report.problems.append(f"{kind} {number}: {done.outcome}: {done.message}")
            report.assets += len(before)
            report.problems += lost_assets(frontend, before, f"{kind} {number}")
            time.sleep(0.5)
    judge(report, answers, reported)
    return report


def lost_assets(frontend: Machine, names: list[str], after: str) -> list[str]:
    """Which assets of the page before are not served any more."""
    if len(names) != 2:
        return [f"the page before {after} named {names}"]
    request = "curl -s -m 10 -o /dev/null -w '%{http_code}' http://127.0.0.1"
    answers = {name: frontend.out(request + name) for name in names}
    return [f"after {after}, {name} answers {status}" for name, status in answers.items() if status != "200"]


def judge(report: Report, answers: list[Answer], reported: list[tuple[float, str]]) -> None:
    """Count the requests; each that failed, or that an old release answered, is a problem."""
    for kind in ("keep-alive", "new connection", "slow"):
        of_kind = [answer for answer in answers if answer.kind == kind]
        report.requests[kind] = len(of_kind)
        report.slowest[kind] = max((answer.ended - answer.began for answer in of_kind), default=0.0)
        if len(of_kind) < len(reported):
            report.problems.append(f"only {len(of_kind)} requests of kind {kind} were made")
    for answer in answers:
        if answer.status != 200:
            report.problems.append(f"{answer.kind}: {answer.status} {answer.error}")
    for number, (when, commit) in enumerate(reported):
        until = reported[number + 1][0] if number + 1 < len(reported) else float("inf")
        late = {a.commit for a in answers if when < a.began < a.ended < until and a.status == 200}
        followers = {commit, *(reported[number + 1][1:] if number + 1 < len(reported) else ())}
        if not late <= followers:
            report.problems.append(f"after deploy {number} of {commit[:8]}, {late - followers} still answered")
