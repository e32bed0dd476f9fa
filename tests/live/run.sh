#!/bin/sh
# Compares the release build of `generate` with mlx-lm, in a virtual environment made for this run.
#   cargo build --release --example generate && tests/live/run.sh [--seed N]
# PYTHON names the interpreter (3.11 or newer); LIVE_VENV a folder to keep the environment in.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv=${LIVE_VENV:-}
if [ -z "$venv" ]; then
    venv=$(mktemp -d)
    trap 'rm -rf "$venv"' EXIT
fi
if [ ! -x "$venv/bin/python" ]; then
    "${PYTHON:-python3}" -m venv "$venv"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --requirement "$here/../golden/requirements.txt"
"$venv/bin/python" "$here/compare.py" "$@"
