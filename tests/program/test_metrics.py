"""Metrics for node_exporter's textfile collector: whole at any time, of the documented form, and never in the way."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from small_app import DEPLOY_INI, App

Metrics = dict[str, dict[frozenset[tuple[str, str]], float]]
# there is no systemd here: roles of which no unit is looked at
INI = DEPLOY_INI.replace(
    "services = worker.service\n", "[role scheduler]\nservices =\n[role frontend]\nslots =\nreload =\n"
)
FAILS = INI + "\n[step fails]\nrun = sh -c 'exit 3'\n"


def parse(text: str) -> Metrics:
    """The text format of https://prometheus.io/docs/instrumenting/exposition_formats, without what is left to choice.

    Each metric once, in one piece, with HELP and TYPE before it; no sample twice, no timestamps (node_exporter
    takes none); a line feed at the end.
    """
    assert text.endswith("\n") and "\r" not in text
    found: Metrics = {}
    helped = typed = ""
    for line in text[:-1].split("\n"):
        if match := re.fullmatch(r"# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) ([^\\]|\\\\|\\n)+", line):
            assert match[1] not in found
            helped = match[1]
        elif match := re.fullmatch(r"# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (counter|gauge)", line):
            assert match[1] == helped
            typed, found[match[1]] = match[1], {}
        else:
            label = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\]|\\["\\n])*"'
            match = re.fullmatch(rf"([a-zA-Z_:][a-zA-Z0-9_:]*)\{{({label}(?:,{label})*)\}} (-?\d+(?:\.\d+)?)", line)
            assert match, line
            assert match[1] == typed, "beside its TYPE"
            pairs = re.findall(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\["\\n])*)"', match[2])
            labels = frozenset((name, unescaped(value)) for name, value in pairs)
            assert len({name for name, _ in labels}) == len(pairs)
            assert labels not in found[typed]
            found[typed][labels] = float(match[3])
    return found


def unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: {"n": "\n"}.get(match[1], match[1]), text)


class Collector:
    """What a textfile collector would read of a machine."""

    def __init__(self, application: App, **more: str) -> None:
        self.folder = application.root.parent / "textfile_collector"
        self.folder.mkdir()
        keys = {"name": "web-1", "roles": "web", "metrics": str(self.folder), **more}
        lines = [f"{key} = {value}" for key, value in keys.items()]
        (application.root / "machine.ini").write_text("\n".join(["[machine]", *lines]))
        (application.root / "bin").mkdir()
        application.commit({"deploy.ini": INI})

    def read(self) -> Metrics:
        assert [path.name for path in self.folder.iterdir()] == ["deploy_machine.prom"]
        return parse((self.folder / "deploy_machine.prom").read_text())

    def value(self, name: str) -> float | None:
        samples = self.read().get(f"deploy_machine_{name}")
        assert samples is None or len(samples) == 1
        return next(iter(samples.values())) if samples else None

    def labels(self, name: str) -> dict[str, str]:
        (labels,) = self.read()[f"deploy_machine_{name}"]
        return dict(labels)

    def state(self) -> str:
        states = self.read()["deploy_machine_state"]
        assert sorted(states.values()) == [0.0] * (len(states) - 1) + [1.0]
        return next(dict(labels)["state"] for labels, value in states.items() if value)


def test_a_deploy_tells_what_runs_how_well_and_since_when(app: App) -> None:
    collector = Collector(app)
    before = int(os.stat(app.root).st_mtime)
    first = app.deploy("--trigger", "cd").result
    runs = {"machine": "web-1", "commit": first["commit"], "release": first["release"], "roles": "web"}
    assert collector.labels("info") == runs
    assert collector.labels("last_attempt_info") == {"machine": "web-1", "outcome": "deployed", "trigger": "cd"}
    assert (collector.state(), collector.value("healthy"), collector.value("drifted_files")) == ("ok", 1, 0)
    assert collector.value("service_restarts") == 0
    assert abs((collector.value("deploy_duration_seconds") or 0) - first["seconds"]) < 0.01
    times = [
        collector.value(f"{name}_timestamp_seconds") or 0 for name in ("last_attempt", "activated", "last_success")
    ]
    assert before <= times[0] <= times[1] <= times[2] + 1
    assert (collector.folder / "deploy_machine.prom").stat().st_mode & 0o777 == 0o644, "node_exporter is another user"

    app.commit({"deploy.ini": FAILS})
    failed = app.deploy(expect=10).result
    assert (collector.state(), collector.value("healthy")) == ("failed", 1)
    assert collector.labels("last_attempt_info")["outcome"] == "failed"
    assert collector.labels("info")["commit"] == failed["commit"] == first["commit"]
    assert collector.value("last_success_timestamp_seconds") == times[2], "it stays"
    app.commit({"deploy.ini": INI})
    app.deploy()
    app.deploy()
    assert (collector.state(), collector.labels("last_attempt_info")["outcome"]) == ("ok", "unchanged")
    (app.current / "src/a").write_text("by hand\n")
    app.deploy()
    assert (collector.state(), collector.value("drifted_files")) == ("drifted", 1)


def test_a_look_each_minute_and_a_rollback_tell_it_too(app: App) -> None:
    collector = Collector(app)
    check = INI.replace("[role web]", "[role web]\ncheck = sh -c 'test ! -e \"$HOME/ill\"'\nprobation = 0")
    app.commit({"deploy.ini": check})
    first = app.deploy().result
    (app.root.parent / "ill").touch()
    quick = "from deployer import watch\nwatch.PAUSE = 0.01\n"
    app.run("watch", patch=quick)
    assert (collector.state(), collector.value("healthy")) == ("unhealthy", 0)
    assert collector.labels("last_attempt_info")["outcome"] == "deployed", "a look is no attempt"
    (app.root.parent / "ill").unlink()
    app.run("watch", patch=quick)
    assert (collector.state(), collector.value("healthy")) == ("ok", 1)
    app.commit({"src/a": "b\n"})
    app.deploy()
    app.run("rollback")
    assert collector.labels("info")["commit"] == first["commit"]
    assert collector.labels("last_attempt_info")["outcome"] == "rolled_back_on_request"


def test_a_name_is_no_markup(app: App) -> None:
    collector = Collector(app, **{"name": 'a"b\\n', "app": "blog"})
    app.deploy()
    text = (collector.folder / "deploy_machine-blog.prom").read_text()
    assert {dict(labels)["machine"] for samples in parse(text).values() for labels in samples} == {'a"b\\n'}
    assert {dict(labels)["app"] for samples in parse(text).values() for labels in samples} == {"blog"}


def test_no_reader_ever_sees_a_part(app: App) -> None:
    collector = Collector(app)
    app.deploy()
    (app.current / "src/a").write_text("by hand")
    with open(collector.folder / "deploy_machine.prom", "rb", buffering=0) as reader:
        begun = reader.read(500)
        app.deploy()
        whole = parse((begun + reader.read()).decode())
    assert [*whole["deploy_machine_drifted_files"].values()] == [0], "what was there when it began"
    assert collector.value("drifted_files") == 1


@pytest.mark.parametrize("place", ["missing", "a file", "read only"])
def test_a_place_that_cannot_be_written_is_one_warning_and_no_more(app: App, tmp_path: Path, place: str) -> None:
    folder = tmp_path / "place"
    if place == "a file":
        folder.write_text("")
    elif place == "read only":  # to root nothing is, but for this
        folder.mkdir()
        (folder / "deploy_machine.prom").mkdir()
    app.commit({"deploy.ini": INI})
    (app.root / "machine.ini").write_text(f"[machine]\nroles = web\nmetrics = {folder}\n")
    done = app.deploy()
    assert done.log.count(f"metrics = {folder}: ") == 1
    assert done.result["outcome"] == "deployed"
    assert not folder.is_dir() or [path.name for path in folder.iterdir()] == ["deploy_machine.prom"]
    quiet = app.run("watch")
    assert (quiet.code, "metrics" in quiet.log) == (0, False), "not once a minute"


def test_a_place_must_be_absolute_and_none_is_no_place(app: App) -> None:
    app.commit({"deploy.ini": INI})
    (app.root / "machine.ini").write_text("[machine]\nroles = web\nmetrics = here\n")
    done = app.run("deploy")
    assert done.code == 2
    assert "metrics = here: name a directory by its absolute path" in done.log
    (app.root / "machine.ini").write_text("[machine]\nroles = web\n")
    assert app.deploy().log.count("metrics") == 0
