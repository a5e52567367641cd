#!lua
-- KEYS head, records. ARGV own, seq, element, and "again" when an earlier try may have been executed.
-- 1 appended. 0 refused, nothing written. 2 an earlier try wrote it. 3 refused, but what an earlier try did is not known any more.
-- 4 refused, nothing written: the log has lost records that were before this one.
local head = redis.call('HMGET', KEYS[1], 'own', 'first')
local seq, first = tonumber(ARGV[2]), tonumber(head[2])
local length
if head[1] == ARGV[1] then
  length = redis.call('LLEN', KEYS[2])
  if seq == first + length then
    redis.call('RPUSH', KEYS[2], ARGV[3])
    return 1
  end
  if seq > first + length then return 4 end
end
if not ARGV[4] then return 0 end
if not first or seq < first then return 3 end
length = length or redis.call('LLEN', KEYS[2])
if seq < first + length and redis.call('LINDEX', KEYS[2], seq - first) == ARGV[3] then return 2 end
return 0
