"""What every Python that a step starts runs first, as its `sitecustomize`: it waits for Django's commands to be loaded.

commands.py puts a folder at the front of PYTHONPATH in which a link of that name leads here. Where Django is never
loaded this costs next to nothing; where it is, migrate_locked.py beside this file takes over its command `migrate`.
Nothing in here may break a program, of whatever Python: hence types in comments, and no error that is not caught.
"""

import os
import sys

VARIABLE = "DEPLOY_MIGRATE"  # what migrate_locked.py is to do
WAITS_FOR = "django.core.management.base"
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Finder:
    """Finds what Django's commands are made of as it would be found, but loads it with a Loader; then it is gone."""

    def find_spec(self, name, path=None, target=None):
        # type: (str, Any, Any) -> Any
        if name != WAITS_FOR:
            return None
        sys.meta_path.remove(self)
        from importlib import util  # noqa: PLC0415

        spec = util.find_spec(name)
        if spec and hasattr(spec.loader, "exec_module"):
            spec.loader = Loader(spec.loader)  # type: ignore[assignment]
        return spec


class Loader:
    """Loads a module with its own loader, and hands it to migrate_locked.py."""

    def __init__(self, own):
        # type: (Any) -> None
        self.own = own

    def create_module(self, spec):
        # type: (Any) -> Any
        return self.own.create_module(spec)

    def exec_module(self, module):
        # type: (Any) -> None
        module.__spec__.loader = module.__loader__ = self.own
        self.own.exec_module(module)
        try:
            load_migrate_locked().take_over(module, os.environ[VARIABLE])
        except Exception:
            tell("no lock for migrations")


def load_migrate_locked():
    # type: () -> Any
    from importlib import util  # noqa: PLC0415

    place = os.path.join(os.path.dirname(os.path.realpath(__file__)), "migrate_locked.py")
    spec = util.spec_from_file_location("deploy_migrate_locked", place)
    assert spec and spec.loader
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tell(what):
    # type: (str) -> None
    """Say in one line what went wrong; must itself not fail."""
    try:
        error = sys.exc_info()[1]
        sys.stderr.write("deploy-machine: %s: %s: %s\n" % (what, type(error).__name__, " ".join(str(error).split())))
    except Exception:
        return


def make_way():
    # type: () -> None
    """Run the sitecustomize that would be found if this one were not there, in the place of this one."""
    own, here = sys.modules.pop("sitecustomize", None), os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if path != here]
    if own:
        sys.modules["deploy_site_hook"] = own  # Python 2 empties a module that nobody refers to
    try:
        import sitecustomize  # type: ignore[import-not-found] # noqa: PLC0415
    except ImportError:
        if getattr(sys.exc_info()[1], "name", "sitecustomize") != "sitecustomize":
            raise
    finally:
        if own:
            sys.modules.setdefault("sitecustomize", own)


def main():
    # type: () -> None
    try:
        if VARIABLE in os.environ and sys.version_info >= (3, 7):
            sys.meta_path.insert(0, Finder())
    except Exception:
        tell("no lock for migrations")
    make_way()


if __name__ == "sitecustomize":
    main()
