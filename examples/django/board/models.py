from django.db import models


class Notice(models.Model):
    """One notice on the board."""

    text = models.TextField()
    written = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-written"]


class JobRun(models.Model):
    """One run of a periodic job: what it did, on which machine and commit, and until when it took."""

    job = models.CharField(max_length=100)
    machine = models.CharField(max_length=100)
    commit = models.CharField(max_length=40, blank=True)
    started = models.DateTimeField(auto_now_add=True)
    ended = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-started"]
