#!/bin/sh
# Cuts the text of a corpus into pieces: data_prep/encode.sh CORPUS; --help tells the options.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -P -m data_prep.encode "$@"
