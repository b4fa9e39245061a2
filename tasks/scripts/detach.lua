-- detach(id, api, grace ms) → watchers left: the last reader in this API process went away. A job that is not stored
-- and has no watcher left is cancelled after the grace (0: at once).
local id, api, grace = ARGV[1], ARGV[2], tonumber(ARGV[3])
redis.call('SREM', K.watch .. id, api)
redis.call('SREM', K.watched .. api, id)
local left = redis.call('SCARD', K.watch .. id)
local r = record(id)
if r and left == 0 and r.store == 0 and not terminal(r.state) then
  local t = now()
  if grace == 0 then cancel_unwatched(r, t) else redis.call('ZADD', K.orphans_, int(t + grace), id) end
end
return left
