#!lua
-- KEYS manifest, objects, chunk, removed. ARGV name and a zero byte, id of this write, number of the chunk from 0, offset in it, data.
-- Stores a part of a chunk of an object that is being written. Parts may come in any order, and again. 1 stored; 0 the name is taken, or the write was given up; -1 there is no such shard.
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
local there = redis.call('ZRANGEBYLEX', KEYS[2], '[' .. ARGV[1], '(' .. ARGV[1] .. '\255', 'LIMIT', 0, 1)[1]
local chunks = ARGV[3] + 1
if there then
  local id, written = there:sub(#ARGV[1] + 1):match('^(%x+)%?(%d+):')
  if id ~= ARGV[2] then return 0 end
  chunks = math.max(chunks, tonumber(written))
  redis.call('ZREM', KEYS[2], there)
elseif chunks > 1 or ARGV[4] ~= '0' or redis.call('ZSCORE', KEYS[4], ARGV[1]) then
  return 0 -- only the first part begins an object, once: this one is late
end
redis.call('ZADD', KEYS[2], 0, ARGV[1] .. ARGV[2] .. '?' .. chunks .. ':' .. redis.call('TIME')[1])
redis.call('SETRANGE', KEYS[3], ARGV[4], ARGV[5])
return 1
