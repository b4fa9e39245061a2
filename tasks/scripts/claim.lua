-- claim(model, worker, lease ms, age ms or '' for none by their age)
--   → {none} | {draining} | {claimed, id, fence, attempt, seq, strikes, firm: 1 if let in for its age, spec}
local model, worker, lease, age = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
if redis.call('EXISTS', K.draining .. worker) == 1 then return {'draining'} end
local EVERY = 10 -- claims; and a worker lets so many in for their age that they have one lane of ten
local t = now()
local line, fair = K.waiting .. model, K.fair .. model

-- Ageing: now and then the first of a less urgent band, if it has waited long. It keeps its lane, or it would never end.
local function aged(head)
  local turn = redis.call('HINCRBY', fair, 'claims', 1)
  redis.call('EXPIRE', fair, DAY)
  if not age or turn % EVERY ~= 0 then return nil end
  for band = math.floor(tonumber(head[2]) / SPAN) + 1, 2 do
    local first = redis.call('ZRANGEBYSCORE', line, int(band * SPAN), '(' .. int((band + 1) * SPAN), 'LIMIT', 0, 1)[1]
    if first and t - tonumber(redis.call('HGET', K.job .. first, 'created') or t) > age then return first end
  end
end

local function start(r, firm)
  r.attempt, r.claim_seq = r.attempt + 1, r.seq
  leave_line(r)
  move(r, 'running')
  set(r, 'state', 'running', 'attempt', r.attempt, 'claim_seq', int(r.seq), 'worker', worker, 'claimed', int(t),
      'alone', r.strikes > 0 and 1 or 0, 'firm', firm and 1 or 0)
  if r.started == 0 then set(r, 'started', int(t)) end
  redis.call('ZADD', K.leases_, int(t + lease), r.id)
  if r.share > 0 then redis.call('SADD', K.active .. model .. ':' .. r.tenant, r.id) end
  local band = band_of(r)
  local virtual = tonumber(redis.call('HGET', fair, band) or 0)
  redis.call('HSET', fair, band, int(math.max(virtual, r.score - band * SPAN)))
  if redis.call('EXISTS', K.yielding .. model) == 1 and redis.call('DECR', K.yielding .. model) <= 0 then
    redis.call('DEL', K.yielding .. model)
  end
  append(r, cjson.encode({k = 'started', attempt = r.attempt, tokens = r.tokens}))
  return {'claimed', r.id, int(r.fence), r.attempt, int(r.seq), r.strikes, firm and 1 or 0,
          redis.call('HGET', K.job .. r.id, 'spec')}
end

local dropped = 0
for _ = 1, 64 do -- bounded: what cannot be claimed is dropped or parked, and reaping repairs the tickets
  local head = redis.call('ZRANGE', line, 0, 0, 'WITHSCORES')
  if not head[1] or dropped == 32 then return {'none'} end
  local firm = aged(head)
  local id = firm or head[1]
  local r = record(id)
  if r and r.state == 'queued' then
    if at_share(r) then
      park(r)
    else
      raise(r, t)
      if r.cancel == 1 then
        finish(r, 'cancelled', t, 'cancelled')
      elseif r.deadline > 0 and r.deadline < t then
        finish(r, 'failed', t, 'deadline_exceeded', 'the deadline passed while the job waited in line')
      else
        return start(r, firm)
      end
      dropped = dropped + 1
    end
  else
    redis.call('ZREM', line, id)
    dropped = dropped + 1
  end
end
return {'none'}
