-- The order in line. A job's score is its band (interactive, normal, batch) and within it its start tag, by start-time fair
-- queueing (Goyal, Vin and Cheng, SIGCOMM 1996): a tenant's jobs follow one another at the distance of their costs over
-- its weight, and begin at the band's virtual time, the start tag of the job that was claimed last. So a tenant that has
-- been idle comes next, however long another tenant's line is. Costs are tokens, tags are sixteenths of a token.
local SPAN = 2251799813685248 -- 2^51: three bands stay exact in a double, and one lasts for 40 years at 100k tokens/s
local ASSUMED = 256 -- tokens of an answer, until some have ended
local DAY = 86400

local function band_of(r) return math.floor(r.score / SPAN) end

-- A ticket is a Celery message with a fresh task id: a revoked or repeated id must not swallow later tickets.
local function push_ticket(model)
  local task_id = 'ticket-' .. int(now()) .. '-' .. redis.call('INCR', K.tickets_) -- the counter alone may be rolled back
  local message = TICKET:gsub('@TASK@', task_id):gsub('@MODEL@', model)
  redis.call('LPUSH', K.queue .. model, message)
end

local function stand(model, id, score)
  redis.call('ZADD', K.waiting .. model, int(score), id)
  if redis.call('LLEN', K.queue .. model) < redis.call('ZCARD', K.waiting .. model) then push_ticket(model) end
end

-- What waits, for the limits. A count that is down to nothing is deleted, so an empty line has none.
local function count(r, sign)
  for field, by in pairs({tokens = sign * r.cost, ['jobs ' .. r.tenant] = sign}) do
    if redis.call('HINCRBY', K.length .. r.model, field, int(by)) <= 0 then redis.call('HDEL', K.length .. r.model, field) end
  end
end

-- Tokens that a job will cost: its prompt, and as many as answers of this model had lately.
local function cost_of(model, prompt, choices, most)
  local answer = tonumber(redis.call('HGET', K.pace .. model, 'answer') or ASSUMED)
  return prompt + choices * math.min(most, math.ceil(answer))
end

-- The place of a new job, at the end of its tenant's jobs.
local function score_of(r, band)
  local fair, field = K.fair .. r.model, band .. ' ' .. r.tenant
  local tags = redis.call('HMGET', fair, band, field)
  local virtual, finish = tonumber(tags[1] or 0), tonumber(tags[2] or 0)
  if finish <= virtual then
    finish = virtual
    redis.call('HSET', fair, band, int(virtual + 1)) -- who comes later stands behind, also among idle tenants
  end
  redis.call('HSET', fair, field, int(finish + math.ceil(16 * r.cost / r.weight)))
  redis.call('EXPIRE', fair, DAY)
  return band * SPAN + finish
end

-- What a job really cost is known at its end; one that never ran cost nothing.
local function settle(r)
  local fair, field = K.fair .. r.model, band_of(r) .. ' ' .. r.tenant
  local finish = tonumber(redis.call('HGET', fair, field) or 0)
  local real = r.attempt > 0 and r.prompt + r.tokens or 0
  local tags = math.ceil(16 * (r.cost - real) / r.weight)
  if finish > 0 then redis.call('HSET', fair, field, int(math.max(0, finish - tags))) end
  if redis.call('HEXISTS', K.rate .. r.tenant, 'tokens') == 1 then
    redis.call('HINCRBYFLOAT', K.rate .. r.tenant, 'tokens', int(r.cost - real))
  end
end

-- True if the tenant has its share of this model's lanes. What a lost write left in the set has no lease.
local function at_share(r)
  local name = K.active .. r.model .. ':' .. r.tenant
  if r.share == 0 or redis.call('SCARD', name) < r.share then return false end
  for _, id in ipairs(redis.call('SMEMBERS', name)) do
    if not redis.call('ZSCORE', K.leases_, id) then redis.call('SREM', name, id) end
  end
  return redis.call('SCARD', name) >= r.share
end

-- Aside, at its own score, until a job of its tenant ends.
local function park(r)
  local line = r.model .. ':' .. r.tenant
  redis.call('ZREM', K.waiting .. r.model, r.id)
  redis.call('ZADD', K.parked .. line, int(r.score), r.id)
  redis.call('SADD', K.parks_, line)
end

-- The tenant's best parked job back into line.
local function unpark(model, tenant)
  local line = model .. ':' .. tenant
  local best = redis.call('ZPOPMIN', K.parked .. line)
  if best[1] then stand(model, best[1], tonumber(best[2])) end
  if redis.call('EXISTS', K.parked .. line) == 0 then redis.call('SREM', K.parks_, line) end
end

-- Into line at its original score: "back at the head" would let a poison job be always next.
local function place(r)
  count(r, 1)
  if at_share(r) then park(r) else stand(r.model, r.id, r.score) end
end

local function leave_line(r)
  count(r, -1)
  if redis.call('ZREM', K.waiting .. r.model, r.id) == 0 then
    local line = r.model .. ':' .. r.tenant
    redis.call('ZREM', K.parked .. line, r.id)
    if redis.call('EXISTS', K.parked .. line) == 0 then redis.call('SREM', K.parks_, line) end
  end
end

-- Its lane is free for another job of its tenant.
local function leave_lane(r)
  if r.share == 0 then return end
  redis.call('SREM', K.active .. r.model .. ':' .. r.tenant, r.id)
  unpark(r.model, r.tenant)
end

-- Its place in line, 1 is next; jobs of its own tenant that are parked before it count, those of others do not.
local function position_of(model, tenant, id, score)
  local rank = redis.call('ZRANK', K.waiting .. model, id)
  if rank then return rank + 1 end
  local parked = redis.call('ZRANK', K.parked .. model .. ':' .. tenant, id)
  return parked and parked + 1 + redis.call('ZCOUNT', K.waiting .. model, '-inf', '(' .. int(score)) or 0
end
