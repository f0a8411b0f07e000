#!/bin/sh
# Collects the text of a corpus from the sources that a YAML file describes: data_prep/collect.sh SOURCES.yaml CORPUS; --help tells the options.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -P -m data_prep.collect "$@"
