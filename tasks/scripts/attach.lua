-- attach(id, api) → {state, fence, seq} | {gone}: this API process relays the job from now on
local r = record(ARGV[1])
if not r then return {'gone'} end
redis.call('SADD', K.watch .. r.id, ARGV[2])
redis.call('SADD', K.watched .. ARGV[2], r.id)
redis.call('ZREM', K.orphans_, r.id)
if terminal(r.state) then -- a reader that has just begun gets the full time to read
  redis.call('EXPIRE', K.log .. r.id, r.keep)
  redis.call('EXPIRE', K.watch .. r.id, r.keep)
  redis.call('EXPIRE', K.job .. r.id, r.keep + 3600)
end
return {r.state, int(r.fence), int(r.seq)}
