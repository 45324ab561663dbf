"""Runs the periodic jobs until it is told to end."""

import logging
import os
import signal
import socket
import threading
import time
from typing import Any

from django.core.management.base import BaseCommand
from django.db import DatabaseError, close_old_connections
from django.utils import timezone

from board.models import JobRun
from board.revision import COMMIT

log = logging.getLogger("scheduler")


class Command(BaseCommand):
    help = "Run the periodic jobs. SIGTERM ends it as soon as the running job is done."

    def handle(self, *args: Any, **options: Any) -> None:
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        signal.signal(signal.SIGINT, lambda *_: stop.set())
        interval = float(os.environ.get("SCHEDULER_INTERVAL", "60"))
        log.info("scheduler started: commit %s, every %g s", COMMIT, interval)
        while not stop.is_set():
            try:
                self.run_job()
            except DatabaseError:
                log.exception("the job failed; it runs again in %g s", interval)
                close_old_connections()
            stop.wait(interval)
        log.info("scheduler ended cleanly")

    def run_job(self) -> None:
        """The periodic job: here it only records that it ran; JOB_SECONDS makes it a long one."""
        run = JobRun.objects.create(job="tick", machine=socket.gethostname(), commit=COMMIT)
        time.sleep(float(os.environ.get("JOB_SECONDS", "0")))
        run.ended = timezone.now()
        run.save()
