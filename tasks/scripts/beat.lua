-- beat(worker, ttl ms, card): the worker lives, and this is how it looks
redis.call('SET', K.worker .. ARGV[1], ARGV[3], 'PX', ARGV[2])
redis.call('ZADD', K.workers_, int(now() + tonumber(ARGV[2])), ARGV[1])
return 'ok'
