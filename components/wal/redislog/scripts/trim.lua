#!lua flags=allow-oom
-- KEYS head, records. ARGV own, seq below which records go. The last record stays. 1 done, 0 another epoch owns the log.
local head = redis.call('HMGET', KEYS[1], 'own', 'first')
if head[1] ~= ARGV[1] then return 0 end
local first = tonumber(head[2])
local below = math.min(tonumber(ARGV[2]), first + redis.call('LLEN', KEYS[2]) - 1)
if below > first then
  redis.call('LTRIM', KEYS[2], below - first, -1)
  redis.call('HSET', KEYS[1], 'first', string.format('%.0f', below))
end
return 1
