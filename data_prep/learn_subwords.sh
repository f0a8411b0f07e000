#!/bin/sh
# Learns the joint subwords of a corpus: data_prep/learn_subwords.sh CORPUS; --help tells the options.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -P -m data_prep.learn_subwords "$@"
