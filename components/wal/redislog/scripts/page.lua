#!lua flags=no-writes
-- KEYS manifest, head, records. ARGV from, bytes after which a page is full.
-- Returns whether there is a manifest, the first seq ('' = there never was a record), the seq that comes next, then elements from "from" on.
-- It takes few elements at a time while it does not know how long they are.
local exists, first, length = redis.call('EXISTS', KEYS[1]), redis.call('HGET', KEYS[2], 'first'), redis.call('LLEN', KEYS[3])
if not first then return {exists, '', '1'} end
local at, bytes, step = tonumber(ARGV[1]) - tonumber(first), 0, 1
local page = {exists, first, string.format('%.0f', tonumber(first) + length)}
if at < 0 then return page end
while at < length and bytes < tonumber(ARGV[2]) do
  for _, element in ipairs(redis.call('LRANGE', KEYS[3], at, at + step - 1)) do
    page[#page + 1] = element
    bytes = bytes + #element
  end
  at, step = at + step, math.min(2 * step, 16)
end
return page
