-- submit(options as JSON: tasks/store.py, spec) →
--   {created, id, position, created ms, requests left, tokens left} | {existing, id} | {conflict, id}
--   | {full, how many, of what: jobs, tokens or tenant} | {limited, requests or tokens, ms until there is room, left, left}
-- All limits are checked before anything is written, so a refused submit costs nothing. A limit of 0 is none.
local o, spec = cjson.decode(ARGV[1]), ARGV[2]
local idem_name = o.idem ~= '' and o.tenant .. ':' .. o.idem or ''
if o.idem ~= '' then
  local held = redis.call('GET', K.idem .. idem_name)
  if held then
    local other, other_hash = held:match('^(%S+) (%S+)$')
    if redis.call('EXISTS', K.job .. other) == 1 then
      if o.api ~= '' and other_hash == o.hash then -- it attaches next: until then the reaper must not end the orphan
        redis.call('ZADD', K.orphans_, 'XX', 'GT', int(now() + o.term), other)
      end
      return {other_hash == o.hash and 'existing' or 'conflict', other}
    end
  end
end
if redis.call('EXISTS', K.job .. o.id) == 1 then return {'conflict', o.id} end

local t = now()
local cost = cost_of(o.model, o.band, o.tenant, o.prompt, o.choices, o.most)
-- Only what stands before it is in its way: neither less urgent jobs nor those that wait for a tenant's own.
local waiting = redis.call('ZCOUNT', K.waiting .. o.model, '-inf', '(' .. int((o.band + 1) * SPAN))
if waiting >= o.max_jobs then return {'full', waiting, 'jobs'} end
local counts = redis.call('HMGET', K.length .. o.model, 'jobs ' .. o.tenant, 'tokens 0', 'tokens 1', 'tokens 2')
local tokens, mine = 0, tonumber(counts[1] or 0)
for band = 0, o.band do tokens = tokens + tonumber(counts[band + 2] or 0) end
-- An empty line takes any job: one that is larger than the limit could never run.
if o.max_tokens > 0 and tokens > 0 and tokens + cost > o.max_tokens then return {'full', tokens, 'tokens'} end
local most_mine = o.max_waiting > 0 and o.max_waiting or o.share > 0 and o.max_jobs or mine + 1
if mine >= most_mine then return {'full', mine, 'tenant'} end

-- A token bucket for each rate, full after a minute without use. One request may be larger than it: it then needs all of
-- it, and leaves a debt.
local rate, levels, left = K.rate .. o.tenant, {}, {}
local rates = {{'requests', o.requests, 1}, {'tokens', o.tokens, cost}}
if o.requests > 0 or o.tokens > 0 then
  local was = redis.call('HMGET', rate, 'at', 'requests', 'tokens')
  local passed = math.max(0, t - tonumber(was[1] or t))
  for i, b in ipairs(rates) do levels[i] = math.min(b[2], tonumber(was[i + 1] or b[2]) + passed * b[2] / 60000) end
end
for i, b in ipairs(rates) do
  local most, need = b[2], b[3]
  if most > 0 and levels[i] < math.min(need, most) then
    local wait = math.ceil((math.min(need, most) - levels[i]) * 60000 / most)
    return {'limited', b[1], wait, math.floor(levels[1]), math.floor(levels[2])}
  end
  left[i] = (levels[i] or 0) - need
end

local r = {id = o.id, model = o.model, tenant = o.tenant, prompt = o.prompt, cost = cost, weight = o.weight, share = o.share}
r.score = score_of(r, o.band)
for i, b in ipairs(rates) do
  if b[2] > 0 then
    redis.call('HSET', rate, 'at', int(t), b[1], left[i])
    redis.call('EXPIRE', rate, DAY)
  end
end
set(r, 'state', 'queued', 'model', o.model, 'tenant', o.tenant, 'fence', 0, 'seq', 0, 'attempt', 0, 'strikes', 0,
    'losses', 0, 'tokens', 0, 'cancel', 0, 'store', o.store, 'score', int(r.score), 'created', int(t), 'keep', o.keep,
    'idem', idem_name, 'deadline', o.deadline > 0 and int(t + o.deadline) or 0, 'prompt', o.prompt, 'choices', o.choices,
    'cost', int(cost), 'weight', o.weight, 'share', o.share, 'spec', spec)
if o.idem ~= '' then redis.call('SET', K.idem .. idem_name, o.id .. ' ' .. o.hash) end
if o.deadline > 0 then redis.call('ZADD', K.deadlines_, int(t + o.deadline), o.id) end
if o.listed then
  local list = K.jobs .. o.tenant
  redis.call('ZADD', list, int(t), o.id)
  -- Those at the front whose records are gone. A job may wait for days, so its age alone does not say it.
  for _, old in ipairs(redis.call('ZRANGE', list, 0, 1)) do
    if redis.call('EXISTS', K.job .. old) == 0 then redis.call('ZREM', list, old) end
  end
  redis.call('EXPIRE', list, 30 * DAY)
end
if o.api ~= '' then watch(o.id, o.api, t, o.term) end
redis.call('SADD', K.models_, o.model)
place(r)
local position = position_of(o.model, o.tenant, o.id, r.score)
return {'created', o.id, position, t, math.floor(left[1]), math.floor(left[2])}
