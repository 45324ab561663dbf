"""A build backend of one file (PEP 517 and 660): it packs the module of the project's name, beside it or in src/."""

import os
import re
import zipfile


def build_wheel(directory, settings=None, metadata=None):
    name, version = about()
    with open(os.path.join(sources(), name + ".py")) as module:
        return pack(directory, name, version, {name + ".py": module.read()})


def build_editable(directory, settings=None, metadata=None):
    name, version = about()
    return pack(directory, name, version, {f"_{name}.pth": sources() + "\n"})


def sources():
    return os.path.abspath("src" if os.path.isdir("src") else ".")


def about():
    with open("pyproject.toml") as project:
        text = project.read()
    return [re.search(f'^{key} = "(.*)"', text, re.MULTILINE).group(1) for key in ("name", "version")]


def pack(directory, name, version, files):
    info = f"{name}-{version}.dist-info"
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: backend\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    wheel = f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(directory, wheel), "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel
