#!/usr/bin/env bash
# Write the embedded corpus: bash data_prep/cldr.sh CORPUS [options of `python -m data_prep.cldr`]
set -euo pipefail
corpus=$(realpath -m "${1:?usage: bash data_prep/cldr.sh CORPUS [options]; --help lists the options}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec python -m data_prep.cldr --output "$corpus" "${@:2}"
