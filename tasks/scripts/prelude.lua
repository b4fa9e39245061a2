-- Put before every script, after the generated tables K (keys), MAY (transitions) and TICKET (a Celery message); then
-- come line.lua (the order in line) and ends.lua (how jobs end and change owners).
-- Times are milliseconds by Redis' clock. A record r is the part of job:{id} that the rules need, as numbers.
-- A script checks everything first and writes afterwards: one that failed half-way would keep its writes.

local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- tostring() would turn numbers of 15 digits and more into 1e+15
local function int(n) return string.format('%.0f', n) end

local FIELDS = {'state', 'model', 'tenant', 'fence', 'seq', 'attempt', 'strikes', 'losses', 'claim_seq', 'tokens', 'cancel',
                'store', 'deadline', 'score', 'created', 'started', 'claimed', 'alone', 'firm', 'keep', 'idem', 'prompt',
                'choices', 'cost', 'weight', 'share'}
local TEXT = {state = true, model = true, tenant = true, idem = true}

local function record(id, fields)
  fields = fields or FIELDS
  local values = redis.call('HMGET', K.job .. id, unpack(fields))
  if not values[1] then return nil end
  local r = {id = id}
  for i, name in ipairs(fields) do
    r[name] = TEXT[name] and (values[i] or '') or tonumber(values[i] or 0)
  end
  if r.weight == 0 then r.weight = 1 end -- a record of an older version
  return r
end

local function terminal(state) return state ~= 'queued' and state ~= 'running' end

local function owned(r, fence) return r and r.state == 'running' and r.fence == fence end

-- What the owner of a running job has to know: go on, or stop and say why.
local function order_for(r, t)
  if r.cancel == 1 then return 'cancel' end
  return r.deadline > 0 and r.deadline < t and 'deadline' or 'ok'
end

local function set(r, ...) redis.call('HSET', K.job .. r.id, ...) end

local function move(r, state)
  assert(MAY[r.state .. '>' .. state], 'illegal transition ' .. r.state .. ' > ' .. state)
  r.state = state
end

-- Before every change of owner. The clock makes a fence unique even when Redis lost its last writes.
local function raise(r, t)
  r.fence = math.max(r.fence + 1, t - r.created)
  set(r, 'fence', int(r.fence))
end

-- One message per relay channel: a list of [job, [[entry id, entry], …]], already JSON.
local function publish(id, entries)
  local apis = redis.call('SMEMBERS', K.watch .. id)
  for _, api in ipairs(apis) do
    redis.call('PUBLISH', K.relay .. api, '[["' .. id .. '",[' .. table.concat(entries, ',') .. ']]]')
  end
end

local function entry(entry_id, json) return '["' .. entry_id .. '",' .. json .. ']' end

local function append(r, json)
  r.seq = r.seq + 1
  local entry_id = int(r.fence) .. '-' .. int(r.seq)
  redis.call('XADD', K.log .. r.id, entry_id, 'e', json)
  set(r, 'seq', int(r.seq))
  publish(r.id, {entry(entry_id, json)})
end

-- From now on this API process relays the job. One that dies before it ever reaped must be missed too, hence `apis`;
-- `term` (ms) is how long it may be silent.
local function watch(id, api, t, term)
  redis.call('SADD', K.watch .. id, api)
  redis.call('SADD', K.watched .. api, id)
  redis.call('ZADD', K.apis_, 'NX', int(t + term), api)
end
