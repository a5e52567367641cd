#!lua flags=allow-oom
-- KEYS manifest. ARGV tag that is expected ("" = no manifest), new tag, data. 1 swapped, by this or an earlier try; 0 another tag is there.
local tag = redis.call('HGET', KEYS[1], 'tag')
if tag == ARGV[2] then return 1 end
if (tag or '') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'tag', ARGV[2], 'data', ARGV[3])
return 1
