#!/bin/sh
# What judges the report and the crate: Chromium, a driver for it, and the format's own validator, in
# an environment of its own.
#   tests/report/make_tools.sh .venv .venv-report
set -eu
plain=$1 own=$2 here=$(dirname "$0")
if ! command -v chromium > /dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends chromium > /dev/null
  else
    echo "There is no Chromium, and only root on Debian gets it here: its tests are skipped." >&2
  fi
fi
rm -rf "$own"
"$plain/bin/python" -m venv "$own"
"$own/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
# What this version carries is the JSON-LD context of RO-Crate 1.1, which the validator wants.
"$own/bin/pip" install --quiet --disable-pip-version-check --no-deps \
  --target "$own/context" rocrate==0.13.0
touch "$own/complete"
