-- claim(model, worker, lease ms) → {none} | {draining} | {claimed, id, fence, attempt, seq, strikes, spec}
local model, worker, lease = ARGV[1], ARGV[2], tonumber(ARGV[3])
if redis.call('EXISTS', K.draining .. worker) == 1 then return {'draining'} end
local t = now()
for _ = 1, 32 do -- bounded: what cannot be claimed is dropped, and reaping repairs the tickets
  local best = redis.call('ZPOPMIN', K.waiting .. model)
  if not best[1] then return {'none'} end
  local r = record(best[1])
  if r and r.state == 'queued' then
    raise(r, t)
    if r.cancel == 1 then
      finish(r, 'cancelled', t, 'cancelled')
    elseif r.deadline > 0 and r.deadline < t then
      finish(r, 'failed', t, 'deadline_exceeded', 'the deadline passed while the job waited in line')
    else
      r.attempt, r.claim_seq = r.attempt + 1, r.seq
      move(r, 'running')
      set(r, 'state', 'running', 'attempt', r.attempt, 'claim_seq', int(r.seq), 'worker', worker,
          'alone', r.strikes > 0 and 1 or 0)
      if r.started == 0 then set(r, 'started', int(t)) end
      redis.call('ZADD', K.leases_, int(t + lease), r.id)
      append(r, cjson.encode({k = 'started', attempt = r.attempt, tokens = r.tokens}))
      return {'claimed', r.id, int(r.fence), r.attempt, int(r.seq), r.strikes, redis.call('HGET', K.job .. r.id, 'spec')}
    end
  end
end
return {'none'}
