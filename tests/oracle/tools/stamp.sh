#!/bin/sh
# A tool on the machine, in its version {n}: stamp IN OUT
case $1 in
--version) echo "stamp {n}" ;;
*) { cat "$1" && echo "stamped by version {n}"; } >"$2" ;;
esac
