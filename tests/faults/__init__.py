"""Faults on purpose: deploys that are killed, machines whose power is cut, requests that must not be lost.

trees.py   what a root holds, in a form in which two of them can be compared
kills.py   SIGKILL to a deploy at a chosen moment, and what must hold then and after the next run
cuts.py    a disk of its own for /srv/app, copied at an instant: what was not written by then is gone
load.py    steady requests while the application is deployed

Used by tests/machine/test_faults.py (samples) and tests/bench/faults.py (campaigns).
"""
