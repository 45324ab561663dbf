"""The cases that once were deployed stale or half made.

Each has a witness, the shortest sequence that shows it, and the patch that takes its mend out of the program again (see
tests/program/preloaded.py). With it the oracle must find the case, in the witness and at random; without it nothing.

An empty patch means that the case is not mended yet: then the oracle must find it in the program as it is.
"""

from __future__ import annotations

from typing import NamedTuple

from oracle import sequences


class Mend(NamedTuple):
    """One case, and what mends it."""

    case: str  # its name in the issue
    what: str  # what goes wrong without the mend
    witness: str
    patch: str = ""

    @property
    def parts(self) -> tuple[str, ...]:
        return sequences.parse(self.witness).names


MENDS = [
    Mend(
        "A1 uv",
        "a member of a uv workspace is imported from the release of an earlier commit",
        "uv-workspace keep=1: docs",
    ),
    Mend("A1 uv copy", "a package of the repository is not copied again", "uv-path keep=1: uv-path.member"),
    Mend("A1 pip", "-e ./libs/greet is imported from the release of an earlier commit", "uvpip-editable keep=1: docs"),
    Mend("A1 pip here", "-e . is imported from the release of an earlier commit", "uvpip-here keep=1: docs"),
    Mend("A1 pip copy", "./libs/greet is not copied again", "uvpip-path keep=1: uvpip-path.member"),
    Mend(
        "A1 Poetry", "develop = true is imported from the release of an earlier commit", "poetry-develop keep=1: docs"
    ),
    Mend("A1 Poetry copy", "develop = false is not copied again", "poetry-copy keep=1: poetry-copy.member"),
    Mend("A2 -r", "what a requirements file includes is not seen", "uvpip-includes keep=1: uvpip-includes.base"),
    Mend("A2 -c", "what binds an included file is not seen", "uvpip-includes keep=1: uvpip-includes.versions"),
    Mend("A3", "a build script whose sources are not in frontend/ is not run", "npm-build-anywhere keep=1:"),
    Mend("A4 configuration", "a configuration file in the root is not seen", "npm-build keep=1: npm-build.config"),
    Mend("A4 script", "the build's own script is not seen", "npm-build keep=1: npm-build.script"),
    Mend("A4 template", "a template that is scanned is not seen", "scan-py keep=1: scan-py.page"),
    Mend("A4 new template", "a new file that a pattern finds is not seen", "scan-js keep=1: scan-js.new"),
    Mend("A4 new folder", "a file in a new folder is not seen", "scan-sh keep=1: scan-sh.deeper"),
    Mend("A4 link", "what is behind a symlink is not seen", "link keep=1: link.behind"),
    Mend("A5", "a class in a .py file is not seen by collectstatic", "collect keep=1: collect.storage"),
    Mend("A6", "manage.py in a subfolder: nothing is done, and that is a success", "collect-backend keep=1:"),
    Mend("A8", "files that a skipped step left beside its sources are missing", "messages keep=1: docs"),
    Mend("A8 used later", "what a later step reads of them is missing", "left keep=1: left.b"),
    Mend("A8 SQLite", "a database in the release is empty after the next deploy", "sqlite-inside keep=1: docs"),
    Mend("A9 same commit", "a value of .env changed and nothing is done", "bake keep=1: flavour"),
    Mend("A9 next commit", "a value of .env changed and a step is skipped", "bake keep=1: flavour+docs"),
    Mend("A9 database", ".env names another database, and its tables are not made", "schema keep=1: database+docs"),
    Mend("A10", "packages that NODE_ENV=production left out stay out", "npm-build keep=1: production production"),
    Mend("A11", "an environment in a subfolder names the release that made it", "own-venv keep=1: docs"),
    Mend("A11 cwd", "the same, made by a step with cwd", "own-venv-cwd keep=1: docs"),
    Mend("A12 patches", "a patch of a package is not seen", "npm-patched keep=1: npm-patched.patch"),
    Mend("A12 .npmrc", "an .npmrc that appears is not seen", "npm-patched keep=1: npm-patched.unpatched"),
    Mend("A12 .python-version", "a .python-version that appears is not seen", "uv keep=1: uv.pin"),
    Mend("A13", "the environment is for the Python that was here before", "uv keep=1: python"),
    Mend("A13 tool", "a tool of the machine was upgraded and its step is skipped", "stamp keep=1: stamp+docs"),
    Mend("A14", "the steps of a role that was added are not run", "worker keep=1: role"),
    Mend("A16 bare", "a package.json without dependencies is refused", "npm-bare keep=1:"),
    Mend("A16 removed", "[step node] with an empty run is refused", "npm-unused keep=1:"),
    Mend("A16 uploads", "a folder below shared/ is linked, and nobody makes it", "uploads keep=1:"),
    Mend("C3", "a file takes the place of a folder where old files stay", "pack keep=1: pack.folder pack.file"),
    Mend(
        "npm tarball", "a package in the repository is packed again under its name", "npm-build keep=1: npm-build.tool"
    ),
    Mend("npm folder", "npm in a subfolder: nothing is done, and that is a success", "npm-folder-found keep=1:"),
    Mend("npm cwd", "what a build in a subfolder reads is not seen", "npm-folder keep=1: npm-folder.config"),
    Mend("rewrites", "a file that a skipped step would change is as the commit has it", "rewrites keep=1: docs"),
    Mend("moves", "a file that a skipped step would take away is there", "moves keep=1: docs"),
    Mend("beside", "what a skipped step left beside what it provides is missing", "beside keep=1: docs"),
    Mend("mode", "that a file may be run now is not seen", "mode keep=1: mode.program"),
    Mend("packages", "what a step reads of installed packages is not seen", "uv of-packages keep=1: uv.upgrade"),
    Mend("REVISION", "a step that reads REVISION is skipped", "revision keep=1: docs"),
    Mend("DEPLOY_COMMIT", "a step that is told the commit is skipped", "version keep=1: docs"),
    Mend("chain", "what an earlier step has made anew is not seen", "chain keep=1: chain.a"),
    Mend("keys", "a changed cwd or env is not seen", "keys keep=1: keys.mode"),
]
