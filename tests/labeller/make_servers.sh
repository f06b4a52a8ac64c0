#!/bin/sh
# Make .venv-labeller beside .venv: .venv's packages and, over them, requirements.txt's.
#   tests/labeller/make_servers.sh .venv .venv-labeller
set -eu
plain=$1 own=$2 here=$(dirname "$0")
rm -rf "$own"
"$plain/bin/python" -m venv "$own"
site=$("$own/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$plain/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/plain.pth"
"$own/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
# Its modules import each other as `src`, under which the wheel does not install them.
"$own/bin/pip" install --quiet --disable-pip-version-check --no-deps \
  --target "$own/proxy/src" ollama-openai-proxy==0.7.0
touch "$own/complete"
