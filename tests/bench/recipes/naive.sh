# The old single-machine pipeline, run on the machine by `ssh host sh -s`: everything, in place, each time.
# $1: the repository; $2: a commit to go back to
set -eu
cd /srv/site
if [ ! -d .git ]; then git clone -q "$1" .; fi
if [ -n "${2:-}" ]; then git reset -q --hard "$2"; else git pull -q --ff-only || git reset -q --hard origin/main; fi
git rev-parse HEAD >REVISION
set -a
. /srv/app/shared/.env
set +a
poetry install --only main --no-root --no-interaction
npm ci --no-audit --no-fund
npm run build
.venv/bin/python manage.py migrate --noinput
.venv/bin/python manage.py collectstatic --noinput
sudo systemctl restart gunicorn.service
