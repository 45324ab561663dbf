"""The rooms of deploy_machine.py: each module has one concern and imports only from those above it.

From top to bottom: errors, log, run, files, config, memory, mirror, releases, steps, build, services, switching,
carrier, handover, deploy, views, cli. docs/contributing.md has the plan; tests/unit/test_architecture.py holds the
code to it.
"""

VERSION = "0.1.0"
