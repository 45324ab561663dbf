from __future__ import annotations

from pathlib import Path

import pytest

from small_app import DEPLOY_INI, App


@pytest.fixture
def app(tmp_path: Path) -> App:
    app = App(tmp_path)
    app.commit({"deploy.ini": DEPLOY_INI, "src/a": "a\n", "one.sql": "1;\n", "code.py": "print(1)\n"}, "first")
    return app
