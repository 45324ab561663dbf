# Releases with linked directories, as Capistrano's users have them; environments are shared and updated in place.
# VIRTUAL_ENV: else Poetry writes the release, which is removed one day, into the scripts it installs.
lock "3.17.2"
set :application, "board"
set :repo_url, ENV.fetch("BENCH_REPO")
set :branch, "main"
set :deploy_to, "/srv/site"
set :keep_releases, 5
set :format, :dot
set :linked_dirs, %w[.venv node_modules]

namespace :deploy do
  task :steps do
    on roles(:app) do
      within release_path do
        execute :sh, "-c", <<~SH.strip.gsub("\n", "; ").shellescape
          test -x .venv/bin/python || python3 -m venv --clear /srv/site/shared/.venv
          export VIRTUAL_ENV=/srv/site/shared/.venv
          . /srv/app/shared/steps.sh
          python_step
          cmp -s package-lock.json node_modules/.lock || { cp package.json package-lock.json .npmrc /srv/site/shared/ && npm ci --no-audit --no-fund --prefix /srv/site/shared && cp package-lock.json node_modules/.lock; }
          test ! -d /srv/site/current/static/dist || cp -a /srv/site/current/static/dist static/
          build_step
          migrate_step
          static_step
        SH
      end
    end
  end
  after :updated, :steps

  task :restart do
    on roles(:app) do
      execute :sudo, :systemctl, :restart, "gunicorn.service"
    end
  end
  after :published, :restart
end
