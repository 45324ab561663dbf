"""The cases that once were deployed stale or half made.

Each has a witness, the shortest sequence that shows it, and the patch that takes its mend out of the program again (see
tests/program/preloaded.py). With it the oracle must find the case, in the witness and at random; without it nothing.

Those without a patch are not mended: the oracle must find them in the program as it is.
"""

from __future__ import annotations

from typing import NamedTuple

from oracle import judge, sequences


class Mend(NamedTuple):
    """One case, and what mends it."""

    case: str  # its name in the issue
    what: str  # what goes wrong without the mend
    witness: str
    patch: str = ""

    @property
    def parts(self) -> tuple[str, ...]:
        return sequences.parse(self.witness).names


# --- patches: each takes one mend out

NOTHING_IS_OBSERVED = "inputs.View.values = lambda *_: {}"
NOTHING_BELONGS = "environments.names_release = lambda *_, **__: False"
NOBODY_LOOKS_IN_VAIN = "inputs.where_it_looked = lambda *_: set()"
NOTHING_SHARED_COUNTS = "observe.folders_below = lambda *_: []"
NOTHING_IS_LEFT = "build.left_by = lambda *_: []"
RELEASES_LAST = 'deploy.what_changed = lambda *_: ""'
NOTHING_LIES_IN_FOLDERS = """
look = shapes.look
shapes.look = lambda *given: look(*given)._replace(places={})
complaints.check = lambda *_: None
"""


def without_observed(condition: str) -> str:
    """What was observed counts, but for the names of which this is true."""
    return f"""
        values = inputs.View.values
        inputs.View.values = lambda *given: {{n: v for n, v in values(*given).items() if not ({condition})}}
    """


def without_known(condition: str) -> str:
    """The same for what is known beforehand."""
    counts = f"{{n: v for n, v in known(*given).items() if not ({condition})}}"
    return f"known = inputs.fingerprint_of\ninputs.fingerprint_of = lambda *given: {counts}"


NO_TOOL_COUNTS = without_known("n.startswith(tools.PROGRAM)")
NO_VARIABLE_COUNTS = without_known("n == '.env'")
OLD_BUILD = """
    defaults = config.defaults
    config.defaults = lambda: defaults().replace("inputs = package.json ", "inputs = package.json frontend/ ")
    complaints.check = lambda *_: None
"""

MENDS = [
    Mend(
        "A1 uv",
        "a member of a uv workspace is imported from the release of an earlier commit",
        "uv-workspace keep=1: docs",
        NOTHING_BELONGS,
    ),
    Mend(
        "A1 uv copy",
        "a package of the repository is not copied again",
        "uv-path keep=1: uv-path.member",
        NOTHING_BELONGS + "\n" + NOTHING_IS_OBSERVED,
    ),
    Mend(
        "A1 pip",
        "-e ./libs/greet is imported from the release of an earlier commit",
        "uvpip-editable keep=1: docs",
        NOTHING_BELONGS,
    ),
    Mend(
        "A1 pip here",
        "-e . is imported from the release of an earlier commit",
        "uvpip-here keep=1: docs",
        NOTHING_BELONGS,
    ),
    Mend(
        "A1 pip copy",
        "./libs/greet is not copied again",
        "uvpip-path keep=1: uvpip-path.member",
        NOTHING_BELONGS + "\n" + NOTHING_IS_OBSERVED,
    ),
    Mend(
        "A1 Poetry",
        "develop = true is imported from the release of an earlier commit",
        "poetry-develop keep=1: docs",
        NOTHING_BELONGS,
    ),
    Mend(
        "A1 Poetry copy",
        "develop = false is not copied again",
        "poetry-copy keep=1: poetry-copy.member",
        NOTHING_BELONGS + "\n" + NOTHING_IS_OBSERVED,
    ),
    Mend(
        "A2 -r",
        "what a requirements file includes is not seen",
        "uvpip-includes keep=1: uvpip-includes.base",
        NOTHING_IS_OBSERVED,
    ),
    Mend(
        "A2 -c",
        "what binds an included file is not seen",
        "uvpip-includes keep=1: uvpip-includes.versions",
        NOTHING_IS_OBSERVED,
    ),
    Mend("A3", "a build script whose sources are not in frontend/ is not run", "npm-build-anywhere keep=1:", OLD_BUILD),
    Mend(
        "A4 configuration",
        "a configuration file in the root is not seen",
        "npm-build keep=1: npm-build.config",
        NOTHING_IS_OBSERVED,
    ),
    Mend(
        "A4 new configuration",
        "a configuration file that a program looks for and that appears is not seen",
        "npm-build keep=1: npm-build.config",
        NOBODY_LOOKS_IN_VAIN,
    ),
    Mend("A4 script", "the build's own script is not seen", "npm-build keep=1: npm-build.script", NOTHING_IS_OBSERVED),
    Mend("A4 template", "a template that is scanned is not seen", "scan-py keep=1: scan-py.page", NOTHING_IS_OBSERVED),
    Mend(
        "A4 new template",
        "a new file that a pattern finds is not seen",
        "scan-js keep=1: scan-js.new",
        without_observed("n.startswith(inputs.NAMES)"),
    ),
    Mend(
        "A4 new folder",
        "a file in a new folder is not seen",
        "scan-sh keep=1: scan-sh.deeper",
        without_observed("n.startswith(inputs.NAMES)"),
    ),
    Mend("A4 link", "what is behind a symlink is not seen", "link keep=1: link.behind", NOTHING_IS_OBSERVED),
    Mend(
        "A5",
        "a class in a .py file is not seen by collectstatic",
        "collect keep=1: collect.storage",
        NOTHING_IS_OBSERVED,
    ),
    Mend(
        "A6",
        "manage.py in a subfolder: nothing is done, and that is a success",
        "collect-backend keep=1:",
        NOTHING_LIES_IN_FOLDERS,
    ),
    Mend(
        "A8", "files that a skipped step left beside its sources are missing", "messages keep=1: docs", NOTHING_IS_LEFT
    ),
    Mend("A8 used later", "what a later step reads of them is missing", "left keep=1: left.b", NOTHING_IS_LEFT),
    Mend("A8 SQLite", "a database in the release is gone with it", "sqlite-inside keep=1: docs", NOTHING_IS_LEFT),
    Mend("A9 same commit", "a value of .env changed and nothing is done", "bake keep=1: flavour", RELEASES_LAST),
    Mend(
        "A9 next commit",
        "a value of .env changed and a step is skipped",
        "bake keep=1: flavour+docs",
        NO_VARIABLE_COUNTS,
    ),
    Mend(
        "A9 database",
        ".env names another database, and its tables are not made",
        "schema keep=1: database+docs",
        f"{NO_VARIABLE_COUNTS}\n{NOTHING_SHARED_COUNTS}",  # each finds it
    ),
    Mend(
        "A9 asked",
        "an older state of the database was put in its place, and it is not asked",
        "django keep=1: restored+docs",
        "migrations.ask = lambda *_: migrations.Answer()",
    ),
    Mend(
        "A10",
        "packages that NODE_ENV=production left out stay out",
        "npm-build keep=1: production production",
        NO_VARIABLE_COUNTS,
    ),
    Mend(
        "A11",
        "an environment in a subfolder names the release that made it",
        "own-venv keep=1: docs",
        "environments.relocate = lambda *_: None",
    ),
    Mend(
        "A11 cwd",
        "the same, made by a step with cwd",
        "own-venv-cwd keep=1: docs",
        "environments.relocate = lambda *_: None",
    ),
    Mend(
        "A12 patches",
        "a patch of a package is not seen",
        "npm-patched keep=1: npm-patched.patch",
        NOTHING_IS_OBSERVED,
    ),
    Mend(
        "A12 .npmrc",
        "an .npmrc that appears is not seen",
        "npm-patched keep=1: npm-patched.unpatched",
        NOTHING_IS_OBSERVED,
    ),
    Mend("A12 .python-version", "a .python-version that appears is not seen", "uv keep=1: uv.pin", NOTHING_IS_OBSERVED),
    Mend("A13", "the environment is for the Python that was here before", "uv keep=1: python", RELEASES_LAST),
    Mend(
        "A13 next commit",
        "the environment is kept for another Python",
        "uv keep=1: python+docs",
        without_known("n == 'Python'"),
    ),
    Mend(
        "A13 tool",
        "a tool of the machine was upgraded and its step is skipped",
        "stamp keep=1: stamp+docs",
        NO_TOOL_COUNTS,
    ),
    Mend("A14", "the steps of a role that was added are not run", "worker keep=1: role", RELEASES_LAST),
    Mend(
        "A16 bare",
        "a package.json without dependencies is refused",
        "npm-bare keep=1:",
        "shapes.is_idle = lambda *_: False",
    ),
    Mend(
        "A16 removed",
        "[step node] with an empty run is refused",
        "npm-unused keep=1:",
        "complaints.Subject.is_removed = lambda *_: False",
    ),
    Mend(
        "A16 uploads",
        "a folder below shared/ is linked, and nobody makes it",
        "uploads keep=1:",
        "sharing.make_folder = lambda *_: None",
    ),
    Mend(
        "C3",
        "a file takes the place of a folder where old files stay",
        "pack keep=1: pack.folder pack.file",
        """
        import contextlib, types
        switching.contextlib = types.SimpleNamespace(suppress=lambda *_: contextlib.nullcontext())
        """,
    ),
    Mend(
        "npm tarball",
        "a package in the repository is packed again under its name",
        "npm-build keep=1: npm-build.tool",
        NOTHING_IS_OBSERVED,
    ),
    Mend(
        "npm folder",
        "npm in a subfolder: nothing is done, and that is a success",
        "npm-folder-found keep=1:",
        NOTHING_LIES_IN_FOLDERS,
    ),
    Mend(
        "npm cwd",
        "what a build in a subfolder reads is not seen",
        "npm-folder keep=1: npm-folder.config",
        NOTHING_IS_OBSERVED,
    ),
    Mend(
        "rewrites",
        "a file that a skipped step would change is as the commit has it",
        "rewrites keep=1: docs",
        NOTHING_IS_LEFT,
    ),
    Mend("moves", "a file that a skipped step would take away is there", "moves keep=1: docs", NOTHING_IS_LEFT),
    Mend(
        "beside", "what a skipped step left beside what it provides is missing", "beside keep=1: docs", NOTHING_IS_LEFT
    ),
    Mend(
        "mode",
        "that a file may be run now is not seen",
        "mode keep=1: mode.program",
        "inputs.identity = lambda entry: entry.oid",
    ),
    Mend(
        "packages",
        "what a step reads of installed packages is not seen",
        "uv of-packages keep=1: uv.upgrade",
        without_observed("n.startswith(inputs.MADE)"),
    ),
    Mend(
        "chain",
        "what an earlier step has made anew is not seen",
        "chain keep=1: chain.a",
        without_observed("n.startswith(inputs.MADE)"),
    ),
    Mend(
        "REVISION",
        "a step that reads REVISION is skipped",
        "revision keep=1: docs",
        without_observed("n == 'REVISION'"),
    ),
    Mend(
        "DEPLOY_COMMIT",
        "a step that is told the commit is skipped",
        "version keep=1: docs",
        "commands.EACH_COMMIT = ()",
    ),
    Mend("keys", "a changed env is not seen", "keys keep=1: keys.mode", without_known("n == 'env'")),
    Mend(
        "optional file",
        "a file that a program looked for in vain appears",
        "optional keep=1: optional.file",
        NOBODY_LOOKS_IN_VAIN,
    ),
    Mend(
        "optional folder",
        "a folder that a program looked for in vain appears",
        "optional keep=1: optional.folder",
        NOBODY_LOOKS_IN_VAIN,
    ),
    Mend(
        "absolute",
        "what a step made names a release that is removed",
        "absolute keep=1: docs",
        'files.holding = lambda *_: ""',
    ),
    Mend(
        "shared",
        "a file below shared/ that a step reads changed, and it is skipped",
        "setting keep=1: setting+docs",
        NOTHING_SHARED_COUNTS,
    ),
    Mend(
        "shared, same commit",
        "a file below shared/ changed, and the same commit is not made ready anew",
        "setting keep=1: setting",
        RELEASES_LAST,
    ),
]

# What is known not to be seen: docs/deploy-ini.md says so. A witness that shows nothing any more belongs above.
LIMITS = [
    Mend("elsewhere", "a file appears that was looked for where the program read nothing", "vain keep=1: vain.file"),
]

DEAR = {"pip": 6, "poetry": 6, "django": 6, "own": 3, "npm": 2, "uv": 1}  # what takes long, roughly in seconds


def cost(mend: Mend) -> int:
    return sum(seconds for part in mend.parts for name, seconds in DEAR.items() if part.startswith(name))


# each mechanism once, with its cheapest witness
SAMPLE = [
    min((mend for mend in MENDS if mend.patch == patch), key=cost) for patch in dict.fromkeys(m.patch for m in MENDS)
]


def missed(mend: Mend) -> str:
    """What is wrong: the case is not found in its witness without the mend, or is found there with it."""
    witness = sequences.parse(mend.witness)
    found = judge.judge(witness, mend.patch).difference
    if not found or found.kind == "breaks":
        return f"{mend.case}: {mend.what}: the oracle must find that in '{witness}' with its patch: {found}"
    still = judge.judge(witness).difference
    return f"{mend.case}: {mend.what}: not mended, see '{witness}': {still}" if still else ""
