#!/usr/bin/env bash
# Sets up a virtual environment (once) and runs every check: format, lint, types, import contract, tests.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
if [ ! -x .venv/bin/python ]; then "$python" -m venv .venv; fi
.venv/bin/python -m pip install --quiet --editable '.[dev]'
export OMP_NUM_THREADS=1 MLFLOW_DISABLE_TELEMETRY=true
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
.venv/bin/lint-imports
exec .venv/bin/python -m pytest --numprocesses "${WORKERS:-2}" --dist loadgroup "$@"
