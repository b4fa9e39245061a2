-- cancel(id) → cancelled | requested | already <state> | gone
local r = record(ARGV[1])
if not r then return 'gone' end
return cancel_job(r, now())
