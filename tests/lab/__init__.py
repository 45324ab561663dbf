"""Real machines for tests: Debian in systemd-nspawn, joined by network namespaces without a way out.

image.py     builds (once) the root file system that all machines are overlays of
network.py   a hub namespace with a bridge, and one namespace for each machine and for the runner
machine.py   one machine: boot, run commands, shut down, cut its power
world.py     a whole environment: services machine, scheduler, frontend, the application's repository
empty_debian.py  a Debian as its installer leaves it, with what it would get from the Internet, for the tutorial's test
registry.py  runs on the services machine: a Python index and an npm registry
page.py      what ./dev demo shows, as one HTML page
__main__.py  ./dev lab
"""
