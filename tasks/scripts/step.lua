-- step(places that the worker lacks for one job more, 0 if it has one free, then per job: id, fence, first seq, n, then n times (entry JSON,
-- new tokens), end state or '', code, message) → per job: ok | cancel | deadline | fenced | yield | behind <seq>
-- One call per engine step, for all jobs that emitted. The last of the n entries is the terminal one if there is an end
-- state. Safe to repeat: entries that are already there are skipped.
local answers, writes, channels, order, at, t = {}, {}, {}, {}, 2, now()
local batch = {} -- jobs of the batch band that go on

while ARGV[at] do -- everything is checked before the first write: a call that failed half-way would publish nothing
  local w = {id = ARGV[at], fence = tonumber(ARGV[at + 1]), first = tonumber(ARGV[at + 2]), n = tonumber(ARGV[at + 3])}
  w.from = at + 4
  at = w.from + 2 * w.n
  w.state, w.code, w.message = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  assert(w.message and (w.state == '' or w.n > 0 and w.state ~= 'queued' and MAY['running>' .. w.state]), 'malformed step')
  at = at + 3
  table.insert(writes, w)
end

local function relay(id, parts)
  if #parts == 0 then return end
  local text = '["' .. id .. '",[' .. table.concat(parts, ',') .. ']]'
  for _, api in ipairs(redis.call('SMEMBERS', K.watch .. id)) do
    if not channels[api] then
      channels[api] = {}
      table.insert(order, api)
    end
    table.insert(channels[api], text)
  end
end

-- False: somebody deleted the log; what cannot be logged must not be published.
local function write(r, w)
  local parts, fence, new = {}, int(r.fence), 0
  for i = r.seq - w.first + 2, w.n do
    local json = ARGV[w.from + 2 * i - 2]
    local entry_id = fence .. '-' .. int(w.first + i - 1)
    if not redis.call('XADD', K.log .. r.id, 'NOMKSTREAM', entry_id, 'e', json) then return false end
    new = new + tonumber(ARGV[w.from + 2 * i - 1])
    table.insert(parts, entry(entry_id, json))
  end
  r.seq = math.max(r.seq, w.first + w.n - 1)
  r.tokens = r.tokens + new
  set(r, 'seq', int(r.seq), 'tokens', int(r.tokens))
  if new > 0 and r.strikes > 0 then set(r, 'strikes', 0, 'alone', 0) end
  relay(r.id, parts)
  return true
end

-- What a step reads of a job that goes on: all that there is would cost as much as all else that it does.
local GOING_ON = {'state', 'fence', 'seq', 'tokens', 'strikes', 'cancel', 'deadline', 'score', 'firm', 'choices'}

local function answer(w, place)
  local r = record(w.id, w.state == '' and GOING_ON or nil)
  if not owned(r, w.fence) then
    local mine = r and w.state ~= '' and r.state == w.state and r.fence == w.fence and r.seq == w.first + w.n - 1
    return mine and 'ok' or 'fenced'
  end
  if w.first > r.seq + 1 then return 'behind ' .. int(r.seq) end
  if w.state ~= '' and w.first + w.n - 1 <= r.seq then return 'fenced' end -- its end would not be in the log
  if not write(r, w) then return 'fenced' end
  if w.state == '' then
    local verdict = order_for(r, t)
    if verdict == 'ok' and band_of(r) == 2 and r.firm == 0 then table.insert(batch, {place, r}) end
    return verdict
  end
  close(r, w.state, t, w.code, w.message)
  return 'ok'
end

for i, w in ipairs(writes) do table.insert(answers, answer(w, i)) end
for _, api in ipairs(order) do
  redis.call('PUBLISH', K.relay .. api, '[' .. table.concat(channels[api], ',') .. ']')
end

-- An interactive job that finds no lane gets that of a batch job, which goes back into line with its tokens: the one that
-- stands last. One at a time, for who waits may not be let in, and lanes that are on their way already count. The wait is
-- what a ticket takes to reach a lane that is free elsewhere.
local WAIT_MS = 20
local function yield(lacking)
  local model = redis.call('HGET', K.job .. batch[1][2].id, 'model')
  local first = redis.call('ZRANGE', K.waiting .. model, 0, 0, 'WITHSCORES')
  if not first[1] or tonumber(first[2]) >= SPAN then return end
  if t - tonumber(redis.call('HGET', K.job .. first[1], 'created') or t) < WAIT_MS then return end
  local wanted = redis.call('ZCOUNT', K.waiting .. model, '-inf', '(' .. int(SPAN))
  if wanted <= tonumber(redis.call('GET', K.yielding .. model) or 0) then return end
  local last = batch[1]
  for _, one in ipairs(batch) do
    lacking = lacking - one[2].choices
    if one[2].score > last[2].score then last = one end
  end
  if lacking > 0 then return end -- all of them together would not make room
  take_away(record(last[2].id), t, false)
  answers[last[1]] = 'yield'
  announce_lane(model)
end
if ARGV[1] ~= '0' and #batch > 0 then yield(tonumber(ARGV[1])) end
return answers
