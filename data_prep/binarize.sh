#!/bin/sh
# Turns the pieces of a corpus into what fairseq trains on: data_prep/binarize.sh CORPUS; --help tells the options.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -P -m data_prep.binarize "$@"
