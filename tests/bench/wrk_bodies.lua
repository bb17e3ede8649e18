-- Sends requests that were prepared before: wrk … URL -- FILE PATH NAME=VALUE…
-- FILE holds bodies, each behind its length as 4 little-endian bytes; PATH and headers are theirs.
-- At the end: a line of JSON with what was counted.
local requests, position = {}, 0

function init(args)
  local file = assert(io.open(args[1], "rb"))
  local headers = {}
  for i = 3, #args do
    local name, value = args[i]:match("^([^=]+)=(.*)$")
    headers[name] = value
  end
  while true do
    local prefix = file:read(4)
    if not prefix then break end
    local a, b, c, d = prefix:byte(1, 4)
    local body = file:read(a + b * 256 + c * 65536 + d * 16777216)
    requests[#requests + 1] = wrk.format("POST", args[2], headers, body)
  end
  file:close()
end

function request()
  position = position % #requests + 1
  return requests[position]
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %f, "bytes": %d, "errors": %d, "p50": %f, "p99": %f}\n',
    summary.requests, summary.duration / 1e6, summary.bytes,
    e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
