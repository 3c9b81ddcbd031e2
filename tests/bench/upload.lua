-- Uploads 10 MiB with each request; what was measured is told as in report.lua.
wrk.method = "POST"
wrk.body = string.rep("x", 10 * 1024 * 1024)

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '{"requests":%d,"micros":%d,"errors":%d,"p50":%.1f,"p99":%.1f,"p999":%.1f}\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
