#!/bin/sh
# Imports text that is line-aligned over many languages: data_prep/import_multiparallel.sh FOLDER CORPUS --pairs eng-deu,eng-fra; --help tells the options.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -P -m data_prep.import_corpus multiparallel "$@"
