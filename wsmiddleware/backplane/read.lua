-- Where a subject stands, and entries of it. Begins with subject.lua.
--
-- ARGV[4]  ms that entries are kept
-- ARGV[5]  the offset after which is read; "" for no entries. [6] how many at most; [7] bytes
--
-- Gives EPOCH, TOP, FORKS, and for each entry its offset and its envelope ("" where another tool
-- has put something else there).

stand()
redis.call('PEXPIRE', KEYS[2], ARGV[3])
local answer = {epoch, digits(top), forks}
if ARGV[5] == '' or tonumber(ARGV[5]) >= top then
  return answer
end
forget(now - tonumber(ARGV[4]))

local from, left, room = digits(tonumber(ARGV[5]) + 1) .. '-0', tonumber(ARGV[6]), tonumber(ARGV[7])
local found
repeat
  -- Few at a time: they may be large.
  local entries = redis.call('XRANGE', KEYS[1], from, digits(top) .. '-0', 'COUNT', math.min(left, 16))
  found = #entries
  for _, entry in ipairs(entries) do
    local fields = entry[2]
    local data = fields[1] == 't' and fields[3] == 'd' and fields[4] or ''
    local offset, rest = string.match(entry[1], '^(%d+)-(%d+)$')
    from, left, room = '(' .. entry[1], left - 1, room - #data
    if rest == '0' then
      answer[#answer + 1] = offset
      answer[#answer + 1] = data
    end
    if room <= 0 then
      break
    end
  end
until found == 0 or left <= 0 or room <= 0
return answer
