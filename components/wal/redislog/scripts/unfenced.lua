#!lua
-- append.lua without the fence: for builds with the tag nofence alone, whose tests must fail.
redis.call('RPUSH', KEYS[2], ARGV[3])
return 1
