#!/bin/sh
# Learns subwords, encodes and binarizes: from raw text to data-bin: data_prep/prepare.sh CORPUS; --help tells the options.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -P -m data_prep.prepare "$@"
