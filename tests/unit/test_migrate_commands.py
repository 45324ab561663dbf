"""Which commands are known to be Django's `migrate`, and which of them can be asked what they would do."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from deployer import config, migrations

ASKED = """\
python manage.py migrate
python manage.py migrate --noinput
python3.11 -u -W error manage.py migrate --no-input -v 2
.venv/bin/python backend/manage.py migrate --database=other
/usr/bin/python3 -Xdev ./manage.py migrate --database other --verbosity 0 --skip-checks
./manage.py migrate
env A=b C= python manage.py migrate --traceback
poetry run python manage.py migrate
env A=b poetry run ./manage.py migrate
uv run python manage.py migrate
uv run --no-sync --env-file=x python manage.py migrate
pipenv run python manage.py migrate
pdm run python manage.py migrate
django-admin migrate --settings x.y --pythonpath .
.venv/bin/django-admin migrate
python -m django migrate --settings=x.y --fake-initial
"""
ONLY_NAMED = """\
python manage.py migrate board
python manage.py migrate board zero
python manage.py migrate --run-syncdb
python manage.py migrate --fake
python manage.py migrate --database
python manage.py migrate -- board
python -E manage.py migrate
python -I -m django migrate
python -c 'import django' manage.py migrate
env -i python manage.py migrate
uv run --with x python manage.py migrate
sh -c 'python manage.py migrate'
sh -c 'cd backend && python manage.py migrate; true'
bash -ec "(django-admin migrate)"
nice python manage.py migrate
"""
NOT_NAMED = """\
python manage.py migrate_schemas
python manage.py makemigrations
python migrate.py
make migrate
./deploy.sh
npx prisma migrate deploy
alembic upgrade head
echo manage.py
"""


def step(line: str) -> config.Step:
    return config.Step("x", tuple(shlex.split(line)))


@pytest.mark.parametrize("line", ASKED.splitlines())
def test_what_can_be_asked(line: str) -> None:
    assert (step(line).migrates, step(line).can_be_asked) == (True, True)


@pytest.mark.parametrize("line", ONLY_NAMED.splitlines())
def test_what_is_run_each_time(line: str) -> None:
    assert (step(line).migrates, step(line).can_be_asked) == (True, False)


@pytest.mark.parametrize("line", NOT_NAMED.splitlines())
def test_what_is_something_else(line: str) -> None:
    assert (step(line).migrates, step(line).can_be_asked) == (False, False)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (migrations.Answer(), ""),
        (migrations.Answer(ahead=("a.0003_x",)), ""),
        (migrations.Answer(("a.0001_x",)), "1 migration is not applied: a.0001_x"),
        (migrations.Answer(("a.0001_x", "b.0002_y")), "2 migrations are not applied: a.0001_x, b.0002_y"),
        (migrations.Answer(handlers=("a.f",)), "nothing is unapplied, but a.f runs with it"),
        (migrations.Answer(handlers=("a.f", "b.g")), "nothing is unapplied, but a.f, b.g run with it"),
        (migrations.Answer(problem="E: x"), "the database could not be asked what is applied: E: x"),
        (migrations.Answer(("a.0001_x",), problem="E: x"), "the database could not be asked what is applied: E: x"),
    ],
)
def test_why_it_is_run_after_all(answer: migrations.Answer, why: str) -> None:
    assert answer.why == why
