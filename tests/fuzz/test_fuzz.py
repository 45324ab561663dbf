"""Whatever the parsers are given, they end: with a value, or with the one error that they define.

The examples are the same in each run. To look further: DEPLOY_MACHINE_FUZZ=20000 ./dev test tests/fuzz
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import deployer.ini
import fleet_alerts
import fleet_answers
import fleet_handover
import fleet_inventory
import fleet_page
import fleet_states
import fleet_table
import github
import push_deploy
import report_deploys
import setup_ground
import setup_keys
import setup_options
import setup_tree
from deployer import config, errors, files, host, inputs, memory, standing, views
from setup_work import Work

MANY = int(os.environ.get("DEPLOY_MACHINE_FUZZ", "0"))
fuzz = settings(
    max_examples=MANY or 150,
    derandomize=not MANY,
    deadline=5000,  # milliseconds for one example: none may hang
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

# --- texts of the kind that each parser reads, with damage --------------------------------------------

ANY = st.text(max_size=60)
SPECIAL = st.sampled_from(
    [
        "\0",
        "\r",
        "\n",
        "\t",
        "\x1b[2J",
        "\x85",
        "\u2028",
        "\ufeff",
        "\ud800",
        "'",
        '"',
        "\\",
        ";",
        "#",
        "=",
        "%(a)s",
        "${x}",
    ]
)
NUMBERS = st.sampled_from(["5", "0", "-1", "nan", "inf", "1e999", "1_0", "٣", "0x10", "9" * 5000, " 7 ", ""])
WORDS = st.sampled_from(
    [
        "main",
        "a..b",
        "-x",
        "../x",
        "/etc",
        ".",
        "a/b",
        "*.py",
        "**/[",
        "[!",
        "a|b",
        "x.service",
        "--now",
        "'",
        "sh -c 'x'",
        "http://h/",
        "http+unix:///s:/p",
        "https://x",
        "web",
        "python",
        "signatures",
        ".venv",
        "frontend",
        "migrate",
    ]
)
VALUES = st.one_of(NUMBERS, WORDS, ANY, SPECIAL, st.lists(st.one_of(WORDS, SPECIAL), max_size=4).map(" ".join))
KEYS = st.one_of(
    st.sampled_from(sorted(set().union(*config.KEYS.values()) | {"name", "roles", "repo", "verify", "boot_timeout"})),
    ANY,
)
SECTIONS = st.one_of(
    st.sampled_from(
        ["deploy", "machine", "DEFAULT", "step", "step python", "step x", "role web", "role ", "step a b", "\0"]
    ),
    ANY,
)
LINES = st.one_of(
    SECTIONS.map(lambda name: f"[{name}]"),
    st.tuples(KEYS, st.sampled_from(["=", " = ", ":", "", "=="]), VALUES).map("".join),
    st.tuples(st.just("   "), VALUES).map("".join),
    VALUES,
)


def ini(first: str) -> SearchStrategy[str]:
    """Mostly lines in sections as they should be, some not."""
    return st.lists(LINES, max_size=12).map(lambda lines: "\n".join([first, *lines]) if first else "\n".join(lines))


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), ANY, SPECIAL, st.just(10**400)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(ANY, inner, max_size=4)),
    max_leaves=8,
)
NAMES = (
    "schema machine roles trigger outcome commit wanted previous release started seconds steps services healthy message"
)
FIELDS = st.sampled_from([*NAMES.split(), "detail", "warnings", "running", "attempts", "bad", "kind", "why", "when"])
STEPS = st.lists(
    st.dictionaries(
        st.sampled_from(["name", "result", "seconds", "why"]), st.one_of(JSON, st.sampled_from(["ran", "failed"]))
    ),
    max_size=3,
)
RESULTS = st.builds(
    lambda base, more, steps: {**base, **more, **({"steps": steps} if steps else {})},
    st.sampled_from(
        [
            {},
            {"schema": 1},
            {"schema": 1, "outcome": "deployed"},
            {"schema": 1, "outcome": "failed", "message": "x", "detail": "a\nb"},
            {
                "schema": 1,
                "outcome": "deployed",
                "trigger": "cd",
                "started": "2026",
                "message": "",
                "seconds": 1,
                "commit": None,
            },
        ]
    ),
    st.dictionaries(FIELDS, JSON, max_size=4),
    STEPS,
)
DEEP = st.sampled_from(
    ["[" * 100_000, '{"a":' * 100_000, '{"schema":1,"x":' + "[" * 3000 + "]" * 3000 + "}", "9" * 5000]
)
JSON_TEXT = st.one_of(RESULTS.map(json.dumps), JSON.map(json.dumps), ANY, DEEP)


@pytest.fixture(scope="module")
def folder() -> Any:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def write(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


# --- deployer/ ----------------------------------------------------------------------------------------------


@fuzz
@given(st.one_of(ini(""), ini("[deploy]"), ini("[step x]"), ini("[role web]")))
def test_deploy_ini(text: str) -> None:
    try:
        parsed = config.parse(text, "deploy.ini")
    except errors.UsageError as error:
        assert str(error).startswith("deploy.ini: ")
        assert "\n" not in str(error)
        return
    assert parsed.keep >= 1
    assert 0 < parsed.health_timeout <= 1e6
    for step in parsed.steps:
        assert step.run and 0 < step.timeout <= 1e6
        assert not any(path.startswith(("/", "-")) or ".." in path.split("/") for path in step.provides + parsed.shared)
    for path in [path for step in parsed.steps for path in step.inputs]:
        if inputs.is_pattern(path):
            inputs.Pattern(path).matches("a/b/c.py")


@fuzz
@given(st.one_of(ini("[machine]"), ini("")))
@example("[machine]\nname = a\0b\n")
def test_machine_ini(folder: Path, text: str) -> None:
    write(folder / "machine.ini", text)
    try:
        machine = host.load(folder)
    except errors.UsageError as error:
        assert "\n" not in str(error)
        return
    assert not machine.verify or "signatures" in text
    assert "\0" not in machine.name + machine.repo + " ".join(machine.roles), "they become arguments"
    assert 0 < machine.boot_timeout <= 1e6
    assert not machine.repo.startswith("-")


@fuzz
@given(st.lists(st.one_of(st.tuples(KEYS, VALUES).map("=".join), VALUES, ANY), max_size=8).map("\n".join))
def test_env_file(text: str) -> None:
    for name, value in files.parse_variables(text).items():
        assert name.isidentifier()
        assert isinstance(value, str)


@fuzz
@given(
    ANY,
    st.dictionaries(st.from_regex("[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True), ANY.filter(lambda t: "\0" not in t)),
)
def test_env_file_takes_back_what_was_quoted(junk: str, values: dict[str, str]) -> None:
    quoted = {name: "".join("\\" + char if char in '"\\`$' else char for char in text) for name, text in values.items()}
    text = "# comment\n" + "".join(f'{name}="{value}"\n' for name, value in quoted.items())
    assert files.parse_variables(text) == values


def machine_in(folder: Path) -> Any:
    (folder / "state").mkdir(exist_ok=True)
    (folder / "machine.ini").unlink(missing_ok=True)
    return host.load(folder, ["web"])


WHOLE = {"schema": 1, "outcome": "failed", "trigger": "cd", "started": "2026", "message": "", "commit": None}


@fuzz
@given(JSON_TEXT, st.lists(JSON_TEXT, max_size=4), JSON_TEXT, JSON_TEXT)
@example("", [json.dumps({**WHOLE, "seconds": 10**400})], json.dumps({"schema": 1, "warnings": 5}), "")
def test_state_and_history(folder: Path, state: str, history: list[str], last: str, running: str) -> None:
    """Damaged or forged files below state/: status, history and the next deploy go on."""
    machine = machine_in(folder)
    damaged = {"state.json": state, "last.json": last, "running.json": running, "switching.json": running}
    for name, text in damaged.items():
        write(folder / "state" / name, text)
    write(folder / "state" / "history.jsonl", "\n".join(history))
    assert all({"kind", "why", "when"} <= set(about) for about in memory.bad_commits(machine).values())
    memory.read_intent(machine)
    request = memory.Request(machine, "status", "manual", ())
    status = standing.status(request)
    views.show_status(status)
    views.show_history(views.history(request))
    json.dumps(status)
    memory.append_history(machine, {"schema": 1})


# --- push_deploy.py -----------------------------------------------------------------------------------------


@fuzz
@given(JSON_TEXT, st.integers(0, 255), ANY, st.one_of(ANY, st.just("")), ANY)
def test_an_answer_of_a_machine(line: str, code: int, ssh_log: str, started: str, last_words: str) -> None:
    """From a line on stdout to what people and GitHub see."""
    result = github.parse_result(line)
    evidence = push_deploy.Evidence(code, ssh_log, started=started, result=result, last_words=last_words)
    kind, message = push_deploy.classify(evidence, "WEB_HOST")
    assert kind in ("answered", "lost", "offline", "dropped", "failed")
    push_deploy.find_own(result.get("attempts") if result else None, started)
    if kind != "answered":
        result = {"schema": 1, "outcome": "failed", "message": message}
    assert result is not None
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n")
    with contextlib.redirect_stdout(out), tempfile.NamedTemporaryFile() as output:
        os.environ.update(GITHUB_OUTPUT=output.name, GITHUB_ACTIONS="true")
        try:
            push_deploy.report(github.Console(), "web", result)
        finally:
            del os.environ["GITHUB_OUTPUT"], os.environ["GITHUB_ACTIONS"]
        assert output.read().decode().count("\n") == 1
    out.seek(0)
    obeyed_at_most(out.read(), ["::notice title=web", "::error title=web"])
    assert errors.exit_code(str(result["outcome"])) in (0, 10, 11, 12, 69, 75)


def obeyed_at_most(log: str, commands: list[str]) -> None:
    """GitHub's runner finds no other workflow command in the log; it ends lines also at a lone \\r."""
    for line in log.replace("\r", "\n").split("\n"):
        if line.strip().startswith("::") or "##[" in line:
            assert line.startswith(tuple(commands)), log


@fuzz
@given(st.one_of(ANY, SPECIAL, WORDS, st.from_regex(r"[a-z0-9.:\[\]@-]{1,20}", fullmatch=True)), st.one_of(ANY, WORDS))
def test_host_and_user(host: str, user: str) -> None:
    try:
        target = push_deploy.read_target("web", host, user)
    except push_deploy.PushError as error:
        assert "WEB_" in str(error)
        return
    for word in (target.host, target.user):
        assert not word.startswith("-")
        assert word.isprintable() and " " not in word and "@" not in word
    assert target.port.isdigit()


# --- report_deploys.py ------------------------------------------------------------------------------------------


@fuzz
@given(
    st.one_of(
        st.dictionaries(
            st.one_of(st.just("web"), ANY), st.one_of(JSON_TEXT.map(lambda t: t.encode("utf-8", "replace").hex()), JSON)
        ).map(json.dumps),
        JSON_TEXT,
    )
)
def test_results_of_the_machines(text: str) -> None:
    machines = report_deploys.read_machines(["web"], {"DEPLOY_RESULTS": text})
    assert machines[0].name == "web"
    page = report_deploys.summary(machines)
    page.encode()
    assert page.count("\n```") in (0, 2)
    lines = [f"{machine.name}: {machine.message}" for machine in machines]
    "\n".join([*lines, *report_deploys.annotation_lines(machines), report_deploys.headline(machines)]).encode()
    obeyed_at_most("\n".join(["x " + line for line in lines]), [])
    for line in report_deploys.annotation_lines(machines):
        obeyed_at_most(line, ["::error title=", "::warning title="])
    bad = any(m.is_bad for m in machines)
    assert report_deploys.verdict(machines) == int(bad)


# --- fleet_status.py ----------------------------------------------------------------------------------------

STATUS_KEYS = "machine commit activated trigger healthy reason running failing last last_failure tip drift history"
KEPT = st.builds(
    lambda values: {"schema": 1, "machines": {"web": {"alerts": {"FAILED": values, "x": values}}}},
    st.lists(st.one_of(JSON, st.sampled_from(["11", "2026-01-02T03:04:05Z", 1, True, []])), min_size=9, max_size=9),
)
FORGED = {
    "tip": st.dictionaries(st.sampled_from(["commit", "merged", "behind", "since", "held"]), JSON, max_size=2),
    "history": st.lists(st.dictionaries(st.sampled_from(["started", "outcome", "reason"]), JSON), max_size=2),
    "drift": st.lists(st.one_of(JSON, st.fixed_dictionaries({"name": ANY})), max_size=2),
}
STATUSES = st.builds(
    lambda base, more: {"schema": 1, "machine": "web", "commit": "a" * 40, **base, **more},
    st.dictionaries(st.sampled_from(STATUS_KEYS.split()), JSON, max_size=3),
    st.fixed_dictionaries({}, optional=FORGED),
)
MOMENTS = st.one_of(ANY, NUMBERS, st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z", fullmatch=True))


@fuzz
@given(
    STATUSES, st.one_of(JSON_TEXT, STATUSES.map(json.dumps), KEPT.map(json.dumps)), st.sampled_from(["answered", "off"])
)
def test_a_status_from_a_machine(folder: Path, status: dict[str, Any], kept: str, kind: str) -> None:
    """From its answer to the table, the JSON and what is kept: bounded and printable, and read again as it was."""
    machine, branch, now = fleet_states.Machine("web"), fleet_states.Branch("b" * 40, "2026-01-02T03:04:05Z"), 1.8e9
    write(folder / "fleet.json", kept)
    before = fleet_answers.load(folder / "fleet.json").machines.get("web", fleet_answers.Known())
    contact = fleet_answers.answered(status) if kind == "answered" else fleet_answers.Contact(kind)
    view, known = fleet_states.view(machine, contact, before, branch, now)
    fleet_states.newest([view.answer], ("", ""), now)
    told = fleet_alerts.tell([view], {"web": fleet_alerts.restored(before)}, now)
    assert len(fleet_alerts.text(told.lines, now)) < 2000
    shown = fleet_table.show([view], branch, 1.0, now) + fleet_table.show_history({"web": known}, ["web"])
    assert all(char.isprintable() or char == "\n" for char in shown), shown
    assert max(map(len, shown.splitlines())) <= 130
    assert len(json.dumps(fleet_table.as_json([view], branch, 1.0, False, {"web": known}))) < 100_000
    handed = fleet_handover.unpack(fleet_handover.pack(fleet_handover.Seen(now, contact), True), now)
    assert handed and handed.contact._replace(history=[*handed.contact.history]) == contact._replace(
        history=[*contact.history]
    )
    page = fleet_page.page([view], fleet_answers.Memory({"web": known}), branch, known.looked, True)
    assert all(char.isprintable() or char == "\n" for char in page), page
    fleet_answers.store(folder / "fleet.json", fleet_answers.Memory({"web": known}))
    assert fleet_answers.load(folder / "fleet.json").machines["web"].answer == known.answer


@fuzz
@given(ANY)
def test_what_another_job_hands_over(text: str) -> None:
    assert fleet_handover.unpack(text, 1.8e9) is None
    assert fleet_handover.unpack(text.encode("utf-8", "replace").hex(), 1.8e9) is None


@fuzz
@given(MOMENTS)
def test_a_time_from_a_machine(text: str) -> None:
    assert fleet_answers.seconds_of(text) >= 0 or text < "1970"


@fuzz
@given(st.one_of(ini(""), ini("[web]"), ini("[web]\non = always")))
def test_machines_ini(folder: Path, text: str) -> None:
    write(folder / "machines.ini", text)
    try:
        machines = fleet_inventory.read(folder / "machines.ini")
    except errors.UsageError as error:
        assert "\n" not in str(error)
        return
    assert all(machine.name.isascii() and not machine.name.startswith("-") for machine in machines)


# --- setup_machine.py -----------------------------------------------------------------------------------------


@fuzz
@given(st.one_of(ini("[machine]"), ini(""), st.just("")))
def test_machine_ini_is_brought_to_the_options(folder: Path, text: str) -> None:
    root = folder / "setup"
    root.mkdir(exist_ok=True)
    write(root / "machine.ini", text)
    words = ["--name", "web", "--role", "frontend", "--repo", "git@h:a.git", "--root", str(root), "--user", "deploy"]
    work = Work(setup_options.make_parser().parse_args(words), config.parse("", "x"))
    try:
        first = setup_tree.machine_ini(work)
    except setup_ground.UsageError as error:
        assert "\n" not in str(error)
        return
    (root / "machine.ini").write_text(first, encoding="utf-8", errors="surrogateescape")
    assert setup_tree.machine_ini(work) == first, "a second run changes nothing"
    with contextlib.suppress(errors.UsageError):
        parser = deployer.ini.parse(first)
        assert (parser["machine"]["name"], parser["machine"]["repo"]) == ("web", "git@h:a.git")


@fuzz
@given(ANY, ANY, st.lists(st.one_of(ANY, st.just("ssh-ed25519 AAAA ci")), max_size=4))
def test_keys_and_allowed_signers(folder: Path, key: str, signers: str, lines: list[str]) -> None:
    for read, text in ((setup_options.public_key, key), (setup_options.allowed_signers, signers)):
        write(folder / "file", text)
        with contextlib.suppress(argparse.ArgumentTypeError):
            assert read(str(folder / "file")).strip()
    others, own = setup_keys.others_and_own(lines, "ssh-ed25519 AAAA ci")
    assert sorted(others + own) == sorted(lines)
