"""A build backend of one file (PEP 517 and 660): it packs what has the project's name, beside it or in src/."""

import glob
import os
import re
import zipfile


def build_wheel(directory, settings=None, metadata=None):
    name = named("name")
    paths = [f"{name}.py", *sorted(glob.glob(f"{name}/**/*.py", root_dir=sources(), recursive=True))]
    found = [path for path in paths if os.path.isfile(os.path.join(sources(), path))]
    return pack(directory, {path: read(os.path.join(sources(), path)) for path in found})


def build_editable(directory, settings=None, metadata=None):
    return pack(directory, {f"_{named('name')}.pth": sources() + "\n"})


def sources():
    return os.path.abspath("src" if os.path.isdir("src") else ".")


def read(path):
    with open(path) as file:
        return file.read()


def named(key):
    return re.search(f'^{key} = "(.*)"', read("pyproject.toml"), re.MULTILINE).group(1)


def depends():
    found = re.search(r"^dependencies = \[(.*?)\]", read("pyproject.toml"), re.MULTILINE | re.DOTALL)
    return re.findall(r'"([^"]+)"', found.group(1)) if found else []


def pack(directory, files):
    name, version = named("name"), named("version")
    info = f"{name}-{version}.dist-info"
    requires = "".join(f"Requires-Dist: {each}\n" for each in depends())
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: backend\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    wheel = f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(directory, wheel), "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel
