-- The order in line. A job's score is its band (interactive, normal, batch) and within it its start tag, by start-time fair
-- queueing (Goyal, Vin and Cheng, SIGCOMM 1996): a tenant's jobs follow one another at the distance of their costs over
-- its weight, and begin at the band's virtual time, the start tag of the job that was claimed last. So a tenant that has
-- been idle comes next, however long another tenant's line is. Costs are tokens, tags are sixteenths of a token:
-- a band's span lasts for 40 years at 100k tokens/s.
local DAY = 86400

local function band_of(r) return math.floor(r.score / SPAN) end

-- A ticket is a Celery message with a fresh task id: a revoked or repeated id must not swallow later tickets.
local function push_ticket(model)
  local task_id = 'ticket-' .. int(now()) .. '-' .. redis.call('INCR', K.tickets_) -- the counter alone may be rolled back
  local message = TICKET:gsub('@TASK@', task_id):gsub('@MODEL@', model)
  redis.call('LPUSH', K.queue .. model, message)
end

-- Counts of what waits. One that is down to nothing is deleted, so an empty line has none.
local function count(model, field, by)
  if by ~= 0 and redis.call('HINCRBY', K.length .. model, field, int(by)) <= 0 then
    redis.call('HDEL', K.length .. model, field)
  end
end

local function count_job(r, sign)
  count(r.model, 'jobs', sign)
  count(r.model, 'jobs ' .. r.tenant, sign)
end

local function count_tokens(r, sign)
  count(r.model, 'tokens ' .. band_of(r), sign * r.cost)
  count(r.model, 'answers ' .. band_of(r), sign * (r.cost - r.prompt))
end

local function stand(r)
  redis.call('ZADD', K.waiting .. r.model, int(r.score), r.id)
  count_tokens(r, 1)
  if redis.call('LLEN', K.queue .. r.model) < redis.call('ZCARD', K.waiting .. r.model) then push_ticket(r.model) end
end

-- True if it stood in line.
local function step_out(r)
  local stood = redis.call('ZREM', K.waiting .. r.model, r.id) == 1
  if stood then count_tokens(r, -1) end
  return stood
end

-- Tokens that a job will cost: its prompt, and as many as answers in its band had lately, its tenant's or else anybody's.
local function cost_of(model, band, tenant, prompt, choices, most)
  local seen = redis.call('HMGET', K.pace .. model, 'answer ' .. band .. ' ' .. tenant, 'answer ' .. band)
  return prompt + choices * math.min(most, math.ceil(tonumber(seen[1] or seen[2] or ASSUMED)))
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

-- What a job really cost is known at its end; one that never ran cost nothing. While nobody waits nobody is owed anything,
-- so then time goes on to where the tenant is.
local function settle(r)
  local fair, band = K.fair .. r.model, band_of(r)
  local tags = redis.call('HMGET', fair, band, band .. ' ' .. r.tenant)
  local real = r.attempt > 0 and r.prompt + r.tokens or 0
  if tags[2] then
    local finish = math.max(0, tonumber(tags[2]) - math.ceil(16 * (r.cost - real) / r.weight))
    redis.call('HSET', fair, band .. ' ' .. r.tenant, int(finish))
    if finish > tonumber(tags[1] or 0) and redis.call('EXISTS', K.waiting .. r.model) == 0 then
      redis.call('HSET', fair, band, int(finish))
    end
  end
  if redis.call('HEXISTS', K.rate .. r.tenant, 'tokens') == 1 then
    redis.call('HINCRBYFLOAT', K.rate .. r.tenant, 'tokens', int(r.cost - real))
    redis.call('EXPIRE', K.rate .. r.tenant, DAY)
  end
end

-- True if the tenant has its share of this model's lanes. What lost writes left in the set is the reaper's.
local function at_share(r)
  return r.share > 0 and redis.call('SCARD', K.active .. r.model .. ':' .. r.tenant) >= r.share
end

-- Aside, at its own score, until a job of its tenant ends.
local function park(r)
  local line = r.model .. ':' .. r.tenant
  step_out(r)
  redis.call('ZADD', K.parked .. line, int(r.score), r.id)
  redis.call('SADD', K.parks_, line)
end

-- Its tenant's best parked job back into line.
local function unpark(r)
  if r.share == 0 then return end
  local line = r.model .. ':' .. r.tenant
  local best = redis.call('ZPOPMIN', K.parked .. line)
  local first = best[1] and record(best[1])
  if first then stand(first) end
  if redis.call('EXISTS', K.parked .. line) == 0 then redis.call('SREM', K.parks_, line) end
end

-- Into line at its original score: "back at the head" would let a poison job be always next.
local function place(r)
  count_job(r, 1)
  if at_share(r) then park(r) else stand(r) end
end

-- True if it stood in line, and was not parked.
local function leave_line(r)
  count_job(r, -1)
  if step_out(r) then return true end
  local line = r.model .. ':' .. r.tenant
  redis.call('ZREM', K.parked .. line, r.id)
  if redis.call('EXISTS', K.parked .. line) == 0 then redis.call('SREM', K.parks_, line) end
  return false
end

local function leave_lane(r)
  if r.share > 0 then redis.call('SREM', K.active .. r.model .. ':' .. r.tenant, r.id) end
end

-- Its lane is free, or will be at once: an interactive job that waits for one has no need of another.
local function announce_lane(model)
  local first = redis.call('ZRANGE', K.waiting .. model, 0, 0, 'WITHSCORES')
  if first[1] and tonumber(first[2]) < SPAN then
    redis.call('INCR', K.yielding .. model)
    redis.call('PEXPIRE', K.yielding .. model, 2000)
  end
end

-- Its place in line, 1 is next; jobs of its own tenant that are parked before it count, those of others do not.
local function position_of(model, tenant, id, score)
  local rank = redis.call('ZRANK', K.waiting .. model, id)
  if rank then return rank + 1 end
  local parked = redis.call('ZRANK', K.parked .. model .. ':' .. tenant, id)
  return parked and parked + 1 + redis.call('ZCOUNT', K.waiting .. model, '-inf', '(' .. int(score)) or 0
end
