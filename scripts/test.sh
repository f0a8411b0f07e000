#!/usr/bin/env bash
# All tests: format, lint, types, then pytest with the arguments given, for example: bash scripts/test.sh -m slow
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
ruff format --check .
ruff check .
mypy
exec python -m pytest "$@"
