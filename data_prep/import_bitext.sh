#!/bin/sh
# Imports text that is line-aligned over two languages at a time: data_prep/import_bitext.sh FOLDER CORPUS --pairs eng-deu,eng-fra; --help tells the options.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -P -m data_prep.import_corpus bitext "$@"
