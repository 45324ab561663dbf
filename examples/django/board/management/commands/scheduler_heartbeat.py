"""Is the scheduler at work? For `check =` of the scheduler's role in deploy.ini."""

import os
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from board.models import JobRun
from board.revision import COMMIT


class Command(BaseCommand):
    help = "Succeed if a job of this commit began within the last two intervals."

    def handle(self, *args: Any, **options: Any) -> None:
        seconds = 2 * float(os.environ.get("SCHEDULER_INTERVAL", "60")) + float(os.environ.get("JOB_SECONDS", "0"))
        since = timezone.now() - timedelta(seconds=seconds)
        if not JobRun.objects.filter(commit=COMMIT, started__gte=since).exists():
            raise CommandError(f"no job of {COMMIT[:8]} began within the last {seconds:g} s")
