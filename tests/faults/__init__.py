"""Faults on purpose: deploys that are killed, machines whose power is cut, requests that must not be lost.

trees.py   what a root holds, in a form in which two of them can be compared
kills.py   SIGKILL to a deploy at a chosen moment, and what must hold then and after the next run
cuts.py    a disk of its own for /srv/app, copied at an instant: what was not written by then is gone
load.py    steady requests, each behind the one before, while the application is deployed

Deploys that go well or not, under a load that does not wait for answers:

open_loop.py    the load: requests that begin on a timetable
application.py  what is deployed: the example with long requests, and with a defect to choose
replacing.py    a web service is replaced: no request fails, or waits, or meets what is not well
falling_ill.py  what was well at first and falls ill is taken back
scheduling.py   the scheduler: never two, a job may end
state.py        what a machine says of itself

Used by tests/machine/test_faults.py and test_replacing.py (samples) and tests/bench/faults.py (campaigns).
"""
