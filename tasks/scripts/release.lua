-- release(id, fence) → ok | lost: the owner gives the job back (drain, preemption); no strike, no loss
local r = record(ARGV[1])
if not owned(r, tonumber(ARGV[2])) then return 'lost' end
take_away(r, now(), false)
return 'ok'
