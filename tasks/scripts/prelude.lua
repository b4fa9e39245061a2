-- Put before every script, after the generated tables K (keys), MAY (transitions) and TICKET (a Celery message).
-- Times are milliseconds by Redis' clock. A record r is the part of job:{id} that the rules need, as numbers.
-- A script checks everything first and writes afterwards: one that failed half-way would keep its writes.

local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- tostring() would turn numbers of 15 digits and more into 1e+15
local function int(n) return string.format('%.0f', n) end

local FIELDS = {'state', 'model', 'fence', 'seq', 'attempt', 'strikes', 'losses', 'claim_seq', 'tokens', 'cancel',
                'store', 'deadline', 'score', 'created', 'started', 'alone', 'keep', 'idem'}
local TEXT = {state = true, model = true, idem = true}

local function record(id)
  local values = redis.call('HMGET', K.job .. id, unpack(FIELDS))
  if not values[1] then return nil end
  local r = {id = id}
  for i, name in ipairs(FIELDS) do
    r[name] = TEXT[name] and (values[i] or '') or tonumber(values[i] or 0)
  end
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

-- A ticket is a Celery message with a fresh task id: a revoked or repeated id must not swallow later tickets.
local function push_ticket(model)
  local task_id = 'ticket-' .. int(now()) .. '-' .. redis.call('INCR', K.tickets_) -- the counter alone may be rolled back
  local message = TICKET:gsub('@TASK@', task_id):gsub('@MODEL@', model)
  redis.call('LPUSH', K.queue .. model, message)
end

-- Into line at its original score: "back at the head" would let a poison job be always next.
local function place(r)
  redis.call('ZADD', K.waiting .. r.model, int(r.score), r.id)
  if redis.call('LLEN', K.queue .. r.model) < redis.call('ZCARD', K.waiting .. r.model) then push_ticket(r.model) end
end

-- From now on this API process relays the job. One that dies before it ever reaped must be missed too, hence `apis`;
-- `term` (ms) is how long it may be silent.
local function watch(id, api, t, term)
  redis.call('SADD', K.watch .. id, api)
  redis.call('SADD', K.watched .. api, id)
  redis.call('ZADD', K.apis_, 'NX', int(t + term), api)
end

-- A finished job goes some time after its end. Its idempotency key goes with the record: earlier, it would run twice.
local function expire(r)
  redis.call('EXPIRE', K.log .. r.id, r.keep)
  redis.call('EXPIRE', K.watch .. r.id, r.keep)
  redis.call('EXPIRE', K.job .. r.id, r.keep + 3600)
  if r.idem ~= '' then redis.call('EXPIRE', K.idem .. r.idem, r.keep + 3600) end
end

-- The bookkeeping of every end; the terminal entry is already in the log. Only this sets a terminal state.
local function close(r, state, t, code, message)
  move(r, state)
  set(r, 'state', state, 'finished', int(t), 'code', code or '', 'message', message or '')
  redis.call('ZREM', K.waiting .. r.model, r.id)
  for _, index in ipairs({K.leases_, K.deadlines_, K.orphans_}) do redis.call('ZREM', index, r.id) end
  expire(r)
  if state == 'succeeded' and r.started > 0 then
    local pace = K.pace .. r.model
    local before = tonumber(redis.call('HGET', pace, 'lane_ms') or t - r.started)
    redis.call('HSET', pace, 'lane_ms', int(before + 0.2 * (t - r.started - before)))
    redis.call('EXPIRE', pace, 86400)
  end
end

-- Writes the terminal entry and closes. The caller holds the fence, or has raised it.
local function finish(r, state, t, code, message)
  local json = {k = 'end', state = state, tokens = r.tokens, code = code, message = message}
  append(r, cjson.encode(json))
  close(r, state, t, code, message)
end

-- Returns cancelled, requested, or "already <state>". An accepted cancel is durable: claim, step and requeue read it.
local function cancel_job(r, t)
  if terminal(r.state) then return 'already ' .. r.state end
  if r.state == 'running' then
    set(r, 'cancel', 1)
    return 'requested'
  end
  raise(r, t)
  finish(r, 'cancelled', t, 'cancelled')
  return 'cancelled'
end

-- Nobody listens any more: an idempotency key must not lead a later caller to an answer that was cut off.
local function cancel_unwatched(r, t)
  redis.call('ZREM', K.orphans_, r.id)
  if r.idem ~= '' then
    redis.call('DEL', K.idem .. r.idem)
    set(r, 'idem', '') -- the key may be another job's before this one has ended
    r.idem = ''
  end
  return cancel_job(r, t)
end

-- Away from its owner: back in line at its own place, unless it has to end. `loss`: the owner died or fell silent.
local function take_away(r, t, loss, max_strikes, max_losses)
  raise(r, t)
  if r.cancel == 1 then return finish(r, 'cancelled', t, 'cancelled') end
  if r.deadline > 0 and r.deadline < t then
    return finish(r, 'failed', t, 'deadline_exceeded', 'the deadline passed while the job ran')
  end
  if loss then
    r.losses = r.losses + 1
    if r.seq == r.claim_seq + 1 then r.strikes = r.strikes + 1 end
    set(r, 'losses', r.losses, 'strikes', r.strikes)
    if (r.strikes >= max_strikes and r.alone == 1) or r.losses >= max_losses then
      return finish(r, 'failed', t, 'poisoned', 'its worker died ' .. r.losses .. ' times')
    end
  end
  redis.call('ZREM', K.leases_, r.id)
  move(r, 'queued')
  set(r, 'state', 'queued', 'alone', 0, 'worker', '')
  place(r)
end
