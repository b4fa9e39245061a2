-- attach(id, api, term ms) → {state, fence, seq} | {gone}: this API process relays the job from now on
local r = record(ARGV[1])
if not r then return {'gone'} end
watch(r.id, ARGV[2], now(), tonumber(ARGV[3]))
redis.call('ZREM', K.orphans_, r.id)
if terminal(r.state) then expire(r) end -- a reader that has just begun gets the full time to read
return {r.state, int(r.fence), int(r.seq)}
