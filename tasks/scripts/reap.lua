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

-- What no rule can hold for is no job. Raises an error, as Redis does for a value of another type.
local function read(id)
  local r = record(id)
  local known = not r or r.state == 'running' or MAY['running>' .. r.state]
  assert(not r or known and r.model ~= '' and redis.call('HEXISTS', K.job .. id, 'spec') == 1, 'a malformed record')
  return r
end

-- Does `act` to all that is due. A corrupt record must not stop the reaping of the others: it is taken out of the index,
-- and kept for a day. A Redis that refuses writes has refused the tick above, so no sound job is taken for corrupt.
local function each(index, act)
  local ids = due(index)
  for _, id in ipairs(ids) do
    local sound, why = pcall(act, id)
    if not sound then
      redis.call('ZREM', index, id)
      for _, family in ipairs({K.job, K.log, K.watch}) do redis.call('EXPIRE', family .. id, 86400) end
      redis.log(redis.LOG_WARNING, 'cannot reap ' .. id .. ': ' .. (type(why) == 'table' and why.err or tostring(why)))
    end
  end
  return #ids
end

-- A worker renews every third of its lease, so an outage of two thirds may end a lease that nobody let go of. Reapers
-- come by every second: less than 1.5 s is no outage, or a lone reaper would renew the leases of the dead for ever.
local away = math.max(1500, math.min(3000, lease * 2 / 3))
if t - tick > away or t < tick then -- Redis or everybody was away: nobody could renew, so everyone gets a full term
  for _, index in ipairs({{K.leases_, lease}, {K.apis_, 3 * lease}}) do
    for _, member in ipairs(redis.call('ZRANGE', index[1], 0, -1)) do
      redis.call('ZADD', index[1], int(t + index[2]), member)
    end
  end
  -- Nor could anybody come back for an orphan, so the time away does not count; a full term again and again would keep
  -- it for ever. Without a last time (0) it is unknown.
  for _, id in ipairs(tick > 0 and redis.call('ZRANGE', K.orphans_, 0, -1) or {}) do
    redis.call('ZINCRBY', K.orphans_, int(t - tick), id)
  end
  return {0, 0, 0, 0, 0}
end

local lost = each(K.leases_, function(id)
  local r = read(id)
  if r and r.state == 'running' then
    take_away(r, t, true, max_strikes, max_losses)
  else
    redis.call('ZREM', K.leases_, id)
  end
end)

local function unwatch(id, name)
  redis.call('SREM', K.watch .. id, name)
  local r = record(id)
  if r and r.store == 0 and not terminal(r.state) and redis.call('SCARD', K.watch .. id) == 0 then
    redis.call('ZADD', K.orphans_, int(t + grace), id)
  end
end

local gone = due(K.apis_)
for _, name in ipairs(gone) do
  for _, id in ipairs(redis.call('SRANDMEMBER', K.watched .. name, BATCH)) do
    redis.call('SREM', K.watched .. name, id)
    pcall(unwatch, id, name) -- a corrupt record has nobody to wait for
  end
  if redis.call('SCARD', K.watched .. name) == 0 then redis.call('ZREM', K.apis_, name) end
end

local orphans = each(K.orphans_, function(id)
  local r = read(id)
  redis.call('ZREM', K.orphans_, id)
  if r then cancel_unwatched(r, t) end
end)

local late = each(K.deadlines_, function(id)
  local r = read(id)
  redis.call('ZREM', K.deadlines_, id)
  if r and r.state == 'queued' then
    raise(r, t)
    finish(r, 'failed', t, 'deadline_exceeded', 'the deadline passed while the job waited in line')
  end -- a running one: step and renew tell its worker
end)

-- Parked jobs come back when others of their tenant end; this is for ends that Redis forgot, and for larger shares.
local function look_after(line)
  local best = redis.call('ZRANGE', K.parked .. line, 0, 0)[1]
  local r = best and read(best)
  if not r then
    redis.call(best and 'ZREM' or 'DEL', K.parked .. line, best)
    redis.call('SREM', K.parks_, best and '' or line)
    return
  end
  local active = K.active .. line
  for _, id in ipairs(redis.call('SMEMBERS', active)) do
    if not redis.call('ZSCORE', K.leases_, id) then redis.call('SREM', active, id) end
  end
  for _ = redis.call('SCARD', active), r.share - 1 do unpark(r) end
end

local parked = {}
for _, line in ipairs(redis.call('SMEMBERS', K.parks_)) do
  parked[line:match('^(.*):')] = true
  if not pcall(look_after, line) then redis.call('ZPOPMIN', K.parked .. line) end
end

redis.call('ZREMRANGEBYSCORE', K.workers_, '-inf', int(t))
local tickets = 0
for _, model in ipairs(redis.call('SMEMBERS', K.models_)) do
  local waiting = redis.call('ZCARD', K.waiting .. model)
  local short = waiting - redis.call('LLEN', K.queue .. model)
  if waiting > 0 then
    redis.call('EXPIRE', K.fair .. model, DAY) -- without it who comes now would stand before all who wait
  elseif not parked[model] then
    redis.call('DEL', K.length .. model) -- what was counted of records that are gone
  end
  for _ = 1, math.min(short, BATCH) do
    push_ticket(model)
    tickets = tickets + 1
  end
end
return {lost, #gone, orphans, late, tickets}
