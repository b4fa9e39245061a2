-- where(ids…) → the place in line of each (1 is next), 0 for one that does not wait
local places = {}
for i, id in ipairs(ARGV) do
  local r = redis.call('HMGET', K.job .. id, 'state', 'model', 'tenant', 'score')
  places[i] = r[1] == 'queued' and position_of(r[2], r[3], id, tonumber(r[4])) or 0
end
return places
