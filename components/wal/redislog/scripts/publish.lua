#!lua
-- KEYS objects. ARGV name and a zero byte, id of this write, size.
-- Makes an object that is being written readable. 1 done, by this or an earlier try; 0 the write was given up.
local member = ARGV[1] .. ARGV[2] .. '=' .. ARGV[3]
local there = redis.call('ZRANGEBYLEX', KEYS[1], '[' .. ARGV[1], '(' .. ARGV[1] .. '\255', 'LIMIT', 0, 1)[1]
if there == member then return 1 end
if not there or there:sub(#ARGV[1] + 1):match('^(%x+)%?') ~= ARGV[2] then return 0 end
redis.call('ZREM', KEYS[1], there)
redis.call('ZADD', KEYS[1], 0, member)
return 1
