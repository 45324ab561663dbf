#!/bin/sh
# Runs deploy_machine.py, which lies beside this file, with the host's python3.
# All arguments and the exit code are passed through; see deploy_machine.py --help.
set -u

# `command -v` finds how this file was called through PATH; links are followed to the real place.
self=$(command -v -- "$0") || self=$0
self=$(readlink -f -- "$self") || exit 2
script=${self%/*}/deploy_machine.py

if [ ! -r "$script" ]; then
    echo "deploy_machine.sh: $script is missing: copy both files of scripts/ to the same place" >&2
    exit 2
fi
if ! command -v python3 >/dev/null 2>&1; then
    echo "deploy_machine.sh: python3 is not installed: apt install python3, or dnf install python3" >&2
    exit 2
fi
if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
    echo "deploy_machine.sh: Python 3.9 or newer is needed, but $(command -v python3) is $(python3 --version 2>&1)" >&2
    exit 2
fi
exec python3 "$script" "$@"
