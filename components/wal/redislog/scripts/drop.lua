#!lua flags=allow-oom
-- KEYS objects, removed, chunks that go. ARGV name and a zero byte, the state that the object is expected in, the state that it gets ("" = it is forgotten),
-- seconds for which a name that is forgotten is not taken again.
-- 1 done, 0 the object is in another state.
local member = ARGV[1] .. ARGV[2]
if not redis.call('ZSCORE', KEYS[1], member) then return 0 end
if #KEYS > 2 then redis.call('UNLINK', unpack(KEYS, 3)) end
if ARGV[3] == ARGV[2] then return 1 end
redis.call('ZREM', KEYS[1], member)
if ARGV[3] ~= '' then
  redis.call('ZADD', KEYS[1], 0, ARGV[1] .. ARGV[3])
  return 1
end
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. now - ARGV[4])
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[4])
return 1
