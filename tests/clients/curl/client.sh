#!/bin/sh
# Lookups and an update over REST and Connect: sh client.sh http://HOST:8000 TOKEN REQUEST_ID
set -eu
url=$1 token=$2 request_id=$3

ask() {
  curl --silent --show-error --fail-with-body --max-time 10 -H "Authorization: Bearer $token" "$@"
}
json='Content-Type: application/json'

# Raw bytes: int64 ids in, float32 vectors out, both little-endian.
printf '\004\0\0\0\0\0\0\0\024\0\0\0\0\0\0\0' |
  ask -H 'Content-Type: application/octet-stream' -H 'Accept: application/octet-stream' \
    --data-binary @- "$url/v1/tables/words:lookup" | od -A n -v -w16 -t f4

# JSON over REST; with 503, 429 and lost connections, curl tries again after a pause.
ask --retry 4 --retry-all-errors -H "$json" \
  -d '{"keys": ["king", "queen"]}' "$url/v1/tables/words:lookup"
echo

# An error is a 4xx or 5xx whose JSON has a reason. This key doesn't exist.
ask -H "$json" -d '{"keys": ["kng"]}' "$url/v1/tables/words:lookup" || true
echo

# The same over Connect, where bytes are base64: "kng" has 3 bytes.
ask -H "$json" "$url/gatherd.v1.EmbeddingService/Lookup" -d '{"table": "words",
  "keys": {"strings": {"shape": [1], "lengths": "AwAAAA==", "data": "a25n"}}}' || true
echo

# An update: with its Idempotency-Key it may be sent again, and is done once.
add() {
  ask --retry 4 --retry-all-errors -H "$json" -H "Idempotency-Key: $request_id" \
    -d '{"ids": [4], "values": [[0.5, 0.5, 0.5, 0.5]]}' "$url/v1/tables/words:scatterAdd"
}
add
echo
add
echo
