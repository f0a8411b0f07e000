#!/bin/sh
# Cleans the collected text of a corpus: data_prep/clean.sh CORPUS --config SOURCES.yaml; --help tells the options.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -P -m data_prep.clean "$@"
