-- What later jobs are expected to take, as moving averages: tokens of an answer, apart for each band, and the time of one
-- on a lane. While jobs wait, lanes are full and each is slower than alone, so that is kept apart for both cases.
local function learn(r, t)
  local answer = r.tokens / math.max(1, r.choices)
  if answer == 0 then return end
  local pace, kind = K.pace .. r.model, 'answer ' .. band_of(r)
  local load = redis.call('EXISTS', K.waiting .. r.model) == 1 and 'busy_ms' or 'idle_ms'
  local new = {(t - r.claimed) / answer, answer, answer}
  local names = {load, kind, kind .. ' ' .. r.tenant}
  local old = redis.call('HMGET', pace, unpack(names))
  for i, name in ipairs(names) do
    local before = tonumber(old[i] or new[i])
    redis.call('HSET', pace, name, string.format('%.3f', before + (new[i] - before) / 10))
  end
  redis.call('EXPIRE', pace, DAY)
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
  if r.state == 'running' then
    leave_lane(r)
    unpark(r)
    announce_lane(r.model)
  elseif leave_line(r) then
    unpark(r)
  end
  settle(r)
  move(r, state)
  set(r, 'state', state, 'finished', int(t), 'code', code or '', 'message', message or '')
  for _, index in ipairs({K.leases_, K.deadlines_, K.orphans_}) do redis.call('ZREM', index, r.id) end
  expire(r)
  if state == 'succeeded' then learn(r, t) end
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
  leave_lane(r)
  move(r, 'queued')
  set(r, 'state', 'queued', 'alone', 0, 'worker', '')
  place(r)
end
