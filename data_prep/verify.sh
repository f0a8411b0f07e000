#!/bin/sh
# Checks that data-bin holds what binarize wrote: data_prep/verify.sh CORPUS; --help tells the options.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -P -m data_prep.verify "$@"
