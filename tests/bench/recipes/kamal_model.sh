# Kamal's model, with what is here in the place of Docker, a registry and kamal-proxy; run on the machine by `ssh host sh
# -s`. The new version starts beside the old one; once it answers its health check, the proxy is switched to it; the old
# one ends what is under way there, and is stopped. Nothing is watched afterwards. The numbers are Kamal's defaults.
# $1: the repository; $2: a version to go back to
set -eu
deploy_timeout=30 drain_timeout=30 interval=1 check_timeout=5
cd /srv/site
test -d repo.git || git clone -q --mirror "$1" repo.git
git -C repo.git fetch -q
new=$(git -C repo.git rev-parse "${2:-main}")
old=$(basename "$(readlink current || true)")
[ "$new" != "$old" ] || exit 0

# The image: Python's packages and the built frontend are layers, made again only when what they are made of changed.
if [ ! -e "releases/$new/.built" ]; then
    rm -rf "releases/$new"
    mkdir -p "releases/$new" layers
    git -C repo.git archive "$new" | tar -x -C "releases/$new"
    cd "releases/$new"
    echo "$new" >REVISION
    . /srv/app/shared/steps.sh
    VIRTUAL_ENV=/srv/site/layers/python-$(sha1sum <poetry.lock | cut -c1-12)
    export VIRTUAL_ENV
    ln -s "$VIRTUAL_ENV" .venv
    test -x .venv/bin/python || python3 -m venv --clear "$VIRTUAL_ENV"
    python_step
    frontend=/srv/site/layers/frontend-$(cat package-lock.json frontend/* | sha1sum | cut -c1-12)
    test -d "$frontend" || { node_step && build_step && mv static/dist "$frontend" && rm -rf node_modules; }
    cp -a "$frontend" static/dist
    static_step
    migrate_step
    touch .built
    cd /srv/site
fi

# Beside the old one, on a socket of its own; if it is not well in time it is stopped, and the old one has gone on.
socket=/run/web-$new/web.sock
sudo systemctl enable -q --now "web@$new.service"
end=$(($(date +%s) + deploy_timeout))
until [ "$(curl -s -m $check_timeout -o /dev/null -w '%{http_code}' --unix-socket "$socket" localhost/healthz)" = 200 ]; do
    if [ "$(date +%s)" -ge $end ]; then
        sudo systemctl disable -q --now "web@$new.service"
        echo "$new was not healthy within $deploy_timeout s" >&2
        exit 1
    fi
    sleep $interval
done

# The switch. nginx's old workers end when their last request has its answer.
workers=$(pgrep -d, -f 'nginx: worker process')
echo "upstream web { server unix:$socket; }" | sudo tee /etc/nginx/conf.d/web.conf >/dev/null
ln -sfn "releases/$new" current
sudo systemctl reload nginx.service
end=$(($(date +%s) + drain_timeout))
while ps -p "$workers" >/dev/null && [ "$(date +%s)" -lt $end ]; do sleep 0.2; done
test -z "$old" || sudo systemctl disable -q --now "web@$old.service"

# the last five stay
# shellcheck disable=SC2012  # they are named by their commits
ls -dt releases/* | tail -n +6 | xargs -r rm -rf
