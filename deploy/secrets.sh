#!/usr/bin/env bash
# Make what a deployment must keep to itself, once, in deploy/secrets: the keys of an admin and of Prometheus
# with their hashes for the servers, the servers' receipt secret, and Grafana's password.
set -euo pipefail
umask 077
directory=${1:-$(dirname "$0")/secrets}
if [ -e "$directory/apprentice.env" ]; then
  echo "$directory/apprentice.env is there already; delete it to make all anew" >&2
  exit 1
fi
mkdir -p "$directory"
cd "$directory"

key() { printf '%s' "$(openssl rand -hex 32)" >"$1.key"; }
digest() { openssl dgst -sha256 -r <"$1.key" | cut -d ' ' -f 1; }

key admin
key metrics
key grafana
chmod 644 metrics.key grafana.key # containers read them as users of their own; the directory is closed
cat >apprentice.env <<END
APPRENTICE_SERVER_SECRET=$(openssl rand -hex 32)
APPRENTICE_SERVER_KEYS_ADMIN=$(digest admin)
APPRENTICE_SERVER_KEYS_METRICS=$(digest metrics)
APPRENTICE_SERVER_ADMINS=admin
END
echo "made in $PWD: apprentice.env for the servers, metrics.key for Prometheus, grafana.key, Grafana's password,"
echo "and admin.key, your bearer key"
