"""./dev bench: how fast deploys are, measured on real machines beside other tools and beside the floors.

cases.py       what is measured, round by round
contenders.py  how each tool deploys the same application; recipes/ has their files
load.py        its case of good and bad deploys under load
floors.py      what no tool can avoid: ssh, git fetch, a restart until healthy, ...
machines.py    the machines, and new commits
tools.py       installs the other tools, pinned
probe.py       the stopwatch: it runs in the runner's namespace, and on the machines
faults.py      ./dev bench faults: kills, power cuts, load (the parts are in tests/faults)
oracle.py      its campaign of incremental and fresh deploys (the parts are in tests/oracle)
report.py      medians, ratios, bars, tables; and their places in the documents
"""
