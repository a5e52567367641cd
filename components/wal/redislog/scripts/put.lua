#!lua
-- KEYS manifest, objects, chunk 0, removed. ARGV name and a zero byte, id of this write, size, data.
-- Stores an object of one chunk, or of none when it is empty. 1 stored, by this or an earlier try; 0 the name is taken, or was a while ago; -1 there is no such shard.
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
local member = ARGV[1] .. ARGV[2] .. '=' .. ARGV[3]
local there = redis.call('ZRANGEBYLEX', KEYS[2], '[' .. ARGV[1], '(' .. ARGV[1] .. '\255', 'LIMIT', 0, 1)[1]
if there == member then return 1 end
if there or redis.call('ZSCORE', KEYS[4], ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[2], 0, member)
if #ARGV[4] > 0 then redis.call('SET', KEYS[3], ARGV[4]) end
return 1
