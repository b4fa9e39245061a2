-- submit(id, model, tenant, idempotency key or '', body hash, limit, band, deadline ms or 0, keep s, store, listed, api
--        or '', spec, term ms) → {created, id, position, created ms} | {existing, id} | {conflict, id} | {full, waiting}
local id, model, tenant, idem, hash = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local limit, band, deadline = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local keep, store, listed, api, spec = tonumber(ARGV[9]), ARGV[10], ARGV[11], ARGV[12], ARGV[13]
local idem_name = ''
if idem ~= '' then
  idem_name = tenant .. ':' .. idem
  local held = redis.call('GET', K.idem .. idem_name)
  if held then
    local other, other_hash = held:match('^(%S+) (%S+)$')
    if redis.call('EXISTS', K.job .. other) == 1 then
      if api ~= '' and other_hash == hash then -- it attaches next: until then the reaper must not end the orphan
        redis.call('ZADD', K.orphans_, 'XX', 'GT', int(now() + tonumber(ARGV[14])), other)
      end
      return {other_hash == hash and 'existing' or 'conflict', other}
    end
  end
end
if redis.call('EXISTS', K.job .. id) == 1 then return {'conflict', id} end
local waiting = redis.call('ZCARD', K.waiting .. model)
if waiting >= limit then return {'full', waiting} end
local t = now()
local r = {id = id, model = model, score = band * 1e12 + redis.call('INCR', K.order_)}
set(r, 'state', 'queued', 'model', model, 'fence', 0, 'seq', 0, 'attempt', 0, 'strikes', 0, 'losses', 0, 'tokens', 0,
    'cancel', 0, 'store', store, 'score', int(r.score), 'created', int(t), 'keep', keep, 'idem', idem_name,
    'deadline', deadline > 0 and int(t + deadline) or 0, 'spec', spec)
if idem ~= '' then redis.call('SET', K.idem .. idem_name, id .. ' ' .. hash) end
if deadline > 0 then redis.call('ZADD', K.deadlines_, int(t + deadline), id) end
if listed == '1' then
  redis.call('ZADD', K.jobs .. tenant, int(t), id)
  -- Those at the front whose records are gone. A job may wait for days, so its age alone does not say it.
  for _, old in ipairs(redis.call('ZRANGE', K.jobs .. tenant, 0, 7)) do
    if redis.call('EXISTS', K.job .. old) == 0 then redis.call('ZREM', K.jobs .. tenant, old) end
  end
  redis.call('EXPIRE', K.jobs .. tenant, 30 * 86400)
end
if api ~= '' then watch(id, api, t, tonumber(ARGV[14])) end
redis.call('SADD', K.models_, model)
place(r)
return {'created', id, redis.call('ZRANK', K.waiting .. model, id) + 1, t}
