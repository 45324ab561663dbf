# What Ansible, pyinfra, Fabric and Capistrano run on the machine, each step by the tool's own means; a
# competent user skips what did not change. Sourced: . /srv/app/shared/steps.sh; python_step
set -eu
set -a
. /srv/app/shared/.env
set +a
python_step() {
    cmp -s poetry.lock .venv/.lock || { poetry sync --only main --no-root --no-interaction && cp poetry.lock .venv/.lock; }
}
node_step() {
    cmp -s package-lock.json node_modules/.lock ||
        { npm ci --no-audit --no-fund && cp package-lock.json node_modules/.lock; }
}
build_step() {
    key=$(cat package-lock.json frontend/* | sha1sum)
    [ "$key" = "$(cat static/dist/.key 2>/dev/null)" ] || { npm run build && echo "$key" >static/dist/.key; }
}
migrate_step() { .venv/bin/python manage.py migrate --noinput; }
static_step() { .venv/bin/python manage.py collectstatic --noinput; }
