-- renew(lease ms, per job: id, fence, seq) → per job: ok | cancel | deadline | lost | behind <seq>. Safe to repeat.
local lease, t, answers = tonumber(ARGV[1]), now(), {}
for i = 2, #ARGV, 3 do
  local r = record(ARGV[i])
  if not owned(r, tonumber(ARGV[i + 1])) then
    table.insert(answers, 'lost')
  else
    redis.call('ZADD', K.leases_, int(t + lease), r.id)
    if tonumber(ARGV[i + 2]) > r.seq then
      table.insert(answers, 'behind ' .. int(r.seq))
    else
      table.insert(answers, order_for(r, t))
    end
  end
end
return answers
