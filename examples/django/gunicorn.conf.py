"""gunicorn's settings. The socket is systemd's (gunicorn@.socket)."""

import os

wsgi_app = "mysite.wsgi:application"
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
timeout = 30
graceful_timeout = 30
accesslog = "-"
# in memory: the heartbeat of a worker must not wait for a disk
worker_tmp_dir = "/dev/shm"
