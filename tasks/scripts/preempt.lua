-- preempt(id) → preempted | ended <state> (it had to end anyway) | already <state> (it does not run) | gone
-- Back into line with its tokens, so that a more urgent job takes the lane. Its worker learns by `fenced` or `lost`.
local r = record(ARGV[1])
if not r then return 'gone' end
if r.state ~= 'running' then return 'already ' .. r.state end
take_away(r, now(), false)
return r.state == 'queued' and 'preempted' or 'ended ' .. r.state
