-- One publication of a subject with history. Begins with subject.lua.
--
-- KEYS[3]  the last number of this producer that was carried out on this subject
-- KEYS[4]  the same of the producer whose publication must have been carried out before it
-- ARGV[4]  the envelope, whose place for epoch and offset is bytes 3 to 26
-- ARGV[5]  entries kept; [6] ms that they are kept
-- ARGV[7]  its number; [8] that of the one before it, or 0
-- ARGV[9]  ms that the number is kept; [10] the channel of pub/sub
--
-- Gives "EPOCH:OFFSET"; 0 for a repetition; -1 where the one before it was not carried out.

local number = tonumber(ARGV[7])
local last = tonumber(redis.call('GET', KEYS[3]) or '0')
if last >= number then
  return 0
elseif ARGV[8] ~= '0' and tonumber(redis.call('GET', KEYS[4]) or '0') < tonumber(ARGV[8]) then
  return -1
end

stand()

local offset, stamped

local function append()
  local following = top + 1
  offset = digits(following)
  stamped = string.sub(ARGV[4], 1, 2) .. epoch
    .. struct.pack('>I4I4', math.floor(following / 4294967296), following % 4294967296)
    .. string.sub(ARGV[4], 27)
  return redis.pcall('XADD', KEYS[1], 'MAXLEN', '=', ARGV[5], offset .. '-0', 't', digits(now),
    'd', stamped)
end

local added = append()
local fault = type(added) == 'table' and added.err or ''
if string.find(fault, 'smaller') or string.find(fault, 'WRONGTYPE') then
  -- Another tool has written there: what it is now cannot go on.
  begin()
  added = append()
end
if type(added) == 'table' and added.err then
  return added
end
redis.call('HSET', KEYS[2], 'top', offset)
redis.call('SET', KEYS[3], ARGV[7], 'PX', ARGV[9])
redis.call('PEXPIRE', KEYS[1], ARGV[6])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
forget(now - tonumber(ARGV[6]))
-- What cannot be heard has been stored all the same, and is found by the look at the tops.
redis.pcall('PUBLISH', ARGV[10], stamped)
return epoch .. ':' .. offset
