-- step(per job: id, fence, first seq, n, then n times (entry JSON, new tokens), end state or '', code, message)
--   → per job: ok | cancel | deadline | fenced | behind <seq>
-- One call per engine step, for all jobs that emitted. The last of the n entries is the terminal one if there is an end
-- state. Safe to repeat: entries that are already there are skipped.
local answers, channels, order, at, t = {}, {}, {}, 1, now()

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

local function write(r, first, n, from)
  local parts, fence, new = {}, int(r.fence), 0
  for i = r.seq - first + 2, n do
    local json = ARGV[from + 2 * i - 2]
    local entry_id = fence .. '-' .. int(first + i - 1)
    redis.call('XADD', K.log .. r.id, 'NOMKSTREAM', entry_id, 'e', json)
    new = new + tonumber(ARGV[from + 2 * i - 1])
    table.insert(parts, entry(entry_id, json))
  end
  r.seq = math.max(r.seq, first + n - 1)
  set(r, 'seq', int(r.seq), 'tokens', int(r.tokens + new))
  if new > 0 then set(r, 'strikes', 0, 'alone', 0) end
  relay(r.id, parts)
end

while ARGV[at] do
  local id, fence, first, n = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local from = at + 4
  at = from + 2 * n
  local state, code, message = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  at = at + 3
  local r = record(id)
  if not owned(r, fence) then
    local mine = r and state ~= '' and r.state == state and r.fence == fence and r.seq == first + n - 1
    table.insert(answers, mine and 'ok' or 'fenced')
  elseif first > r.seq + 1 then
    table.insert(answers, 'behind ' .. int(r.seq))
  else
    write(r, first, n, from)
    if state ~= '' then close(r, state, t, code, message) end
    table.insert(answers, state == '' and order_for(r, t) or 'ok')
  end
end
for _, api in ipairs(order) do
  redis.call('PUBLISH', K.relay .. api, '[' .. table.concat(channels[api], ',') .. ']')
end
return answers
