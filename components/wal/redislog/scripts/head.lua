#!lua flags=no-writes
-- KEYS manifest, head, records. Returns whether there is a manifest, own, the seq of its fence, the first seq, the length.
local head = redis.call('HMGET', KEYS[2], 'own', 'fence', 'first')
return {redis.call('EXISTS', KEYS[1]), head[1], head[2], head[3], redis.call('LLEN', KEYS[3])}
