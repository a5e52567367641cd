#!lua flags=allow-oom
-- KEYS manifest, head, records. ARGV own, own that is expected ("" = none), seq that is expected to come next, element.
-- 1 placed, or placed by an earlier try. 0 nothing written: something else is there. -1 there is no manifest.
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
local head = redis.call('HMGET', KEYS[2], 'own', 'first', 'fence')
if head[1] == ARGV[1] then
  if head[3] == ARGV[3] then return 1 end
  return 0
end
local first = tonumber(head[2] or '1')
if (head[1] or '') ~= ARGV[2] or first + redis.call('LLEN', KEYS[3]) ~= tonumber(ARGV[3]) then return 0 end
redis.call('RPUSH', KEYS[3], ARGV[4])
redis.call('HSET', KEYS[2], 'own', ARGV[1], 'fence', ARGV[3], 'first', string.format('%.0f', first))
return 1
