#!lua flags=allow-oom
-- KEYS manifest, head, records. From its end on nothing is written to the shard until it is made again.
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('UNLINK', KEYS[3])
return 1
