#!lua flags=allow-oom
-- KEYS objects, chunks that go. ARGV name and a zero byte, the state that the object is expected in, the state that it gets ("" = it is forgotten).
-- 1 done, 0 the object is in another state.
local member = ARGV[1] .. ARGV[2]
if not redis.call('ZSCORE', KEYS[1], member) then return 0 end
if #KEYS > 1 then redis.call('UNLINK', unpack(KEYS, 2)) end
if ARGV[3] ~= ARGV[2] then
  redis.call('ZREM', KEYS[1], member)
  if ARGV[3] ~= '' then redis.call('ZADD', KEYS[1], 0, ARGV[1] .. ARGV[3]) end
end
return 1
