-- reap(lease ms, grace ms, max strikes, max losses, api or '') → {requeued or ended, apis lost, orphans, late, tickets}
-- Every second, in every API process and every worker: atomic and idempotent, so no lock. `api` also renews the caller.
local lease, grace = tonumber(ARGV[1]), tonumber(ARGV[2])
local max_strikes, max_losses, api = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local BATCH = 64
local t = now()
local tick = tonumber(redis.call('GET', K.tick_) or 0)
redis.call('SET', K.tick_, int(t))
if api ~= '' then redis.call('ZADD', K.apis_, int(t + 3 * lease), api) end

local function due(index) return redis.call('ZRANGEBYSCORE', index, '-inf', '(' .. int(t), 'LIMIT', 0, BATCH) end

if t - tick > 3000 or t < tick then -- Redis or everybody was away: nobody could renew, so everyone gets a full term
  for _, index in ipairs({{K.leases_, lease}, {K.apis_, 3 * lease}}) do
    for _, member in ipairs(redis.call('ZRANGE', index[1], 0, -1)) do
      redis.call('ZADD', index[1], int(t + index[2]), member)
    end
  end
  return {0, 0, 0, 0, 0}
end

local lost = due(K.leases_)
for _, id in ipairs(lost) do
  local r = record(id)
  if r and r.state == 'running' then
    take_away(r, t, true, max_strikes, max_losses)
  else
    redis.call('ZREM', K.leases_, id)
  end
end

local gone = due(K.apis_)
for _, name in ipairs(gone) do
  for _, id in ipairs(redis.call('SRANDMEMBER', K.watched .. name, BATCH)) do
    redis.call('SREM', K.watched .. name, id)
    redis.call('SREM', K.watch .. id, name)
    local r = record(id)
    if r and r.store == 0 and not terminal(r.state) and redis.call('SCARD', K.watch .. id) == 0 then
      redis.call('ZADD', K.orphans_, int(t + grace), id)
    end
  end
  if redis.call('SCARD', K.watched .. name) == 0 then redis.call('ZREM', K.apis_, name) end
end

local orphans = due(K.orphans_)
for _, id in ipairs(orphans) do
  local r = record(id)
  redis.call('ZREM', K.orphans_, id)
  if r then cancel_unwatched(r, t) end
end

local late = due(K.deadlines_)
for _, id in ipairs(late) do
  local r = record(id)
  redis.call('ZREM', K.deadlines_, id)
  if r and r.state == 'queued' then
    raise(r, t)
    finish(r, 'failed', t, 'deadline_exceeded', 'the deadline passed while the job waited in line')
  end -- a running one: step and renew tell its worker
end

redis.call('ZREMRANGEBYSCORE', K.workers_, '-inf', int(t))
local tickets = 0
for _, model in ipairs(redis.call('SMEMBERS', K.models_)) do
  local short = redis.call('ZCARD', K.waiting .. model) - redis.call('LLEN', K.queue .. model)
  for _ = 1, math.min(short, BATCH) do
    push_ticket(model)
    tickets = tickets + 1
  end
end
return {#lost, #gone, #orphans, #late, tickets}
