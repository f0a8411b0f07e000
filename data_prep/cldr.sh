#!/bin/sh
# Writes the embedded corpus of dates, quantities, names and lists: data_prep/cldr.sh CORPUS; --help tells the options.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -P -m data_prep.cldr "$@"
