#!/bin/sh
# OpenAI's Python client and the crate async-openai against the example `serve`.
#   cargo build --release --example serve && tests/serve/run.sh
# PYTHON names the interpreter (3.9 or newer), SERVE the program; SERVE_VENV a folder to keep the
# virtual environment in.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
scratch=$(mktemp -d)
server=
trap 'test -z "$server" || kill "$server" 2>/dev/null || true; rm -rf "$scratch"' EXIT

venv=${SERVE_VENV:-$scratch/venv}
if [ ! -x "$venv/bin/python" ]; then
    "${PYTHON:-python3}" -m venv "$venv"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --requirement "$here/requirements.txt"

export OPENAI_API_KEY=test-key
GPT_OSS_API_KEY=$OPENAI_API_KEY "${SERVE:-$root/target/release/examples/serve}" --port 0 \
    >"$scratch/address" 2>"$scratch/log" &
server=$!
for _ in $(seq 600); do
    test -s "$scratch/address" && break
    kill -0 "$server" || { cat "$scratch/log"; exit 1; }
    sleep 0.1
done
OPENAI_BASE_URL=$(head -n 1 "$scratch/address")v1
export OPENAI_BASE_URL

"$venv/bin/python" "$here/openai_client.py" || { tail -n 30 "$scratch/log"; exit 1; }
cargo test --manifest-path "$root/tests/async-openai/Cargo.toml" \
    --target-dir "$root/target/async-openai" --locked

# It stops when it is told to, with nothing left to do.
kill -TERM "$server"
wait "$server"
server=
if grep -q panicked "$scratch/log"; then
    cat "$scratch/log"
    exit 1
fi
