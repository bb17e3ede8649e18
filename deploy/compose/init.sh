#!/bin/sh
# What has to be there before the first start; run as root, with no more than the right to give files
# away. Running it again changes nothing that is there.
#
#   docker compose up                                               # runs it first
#   docker compose run --rm init token ops --scope admin --table '*'  # gatherd's own commands
set -eu

gatherd_uid=10001 scorer_uid=10002 prometheus_uid=65534
secrets=/run/gatherd

as_gatherd() {
  setpriv --reuid="$gatherd_uid" --regid="$gatherd_uid" --clear-groups --inh-caps=-all "$@"
}

# Engines that don't give a new volume the owner of what it covers leave it to root.
chown "$gatherd_uid:$gatherd_uid" /data /snapshots "$secrets"
chown "$prometheus_uid:$prometheus_uid" /prometheus

if [ $# -gt 0 ]; then
  as_gatherd gatherd "$@"
  exit
fi

# make_token NAME UID OPTION...: a token in a file that only UID reads, and its hash among the server's;
# a new one when either is missing: it was interrupted, or somebody revoked it to have another.
make_token() {
  name=$1 uid=$2
  shift 2
  is_known=$(as_gatherd grep -cs "\"name\": \"$name\"" "$secrets/tokens" || true)
  if ! [ -s "$secrets/$name" ] || [ "$is_known" != 1 ]; then
    as_gatherd rm -f "$secrets/$name"
    [ "$is_known" != 1 ] || as_gatherd gatherd token "$name" --revoke --tokens "$secrets/tokens"
    as_gatherd gatherd token "$name" "$@" --tokens "$secrets/tokens" --out "$secrets/$name"
  fi
  chown "$uid:$uid" "$secrets/$name"
}

make_token scorer "$scorer_uid" --scope read --scope update --table words
make_token prometheus "$prometheus_uid" --scope metrics
as_gatherd chmod 0400 "$secrets/tokens"

# A table to begin with: GATHERD_DEMO= for none.
if [ -n "${DEMO:-}" ] && ! [ -e /data/tables/words ]; then
  as_gatherd gatherd import words /opt/demo/tokens.safetensors#embedding.weight \
    --keys /opt/demo/tokens.txt --optimizer adagrad --lr 0.05
fi
