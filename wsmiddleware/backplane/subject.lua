-- What publish.lua and read.lua begin with: where a subject stands.
--
-- KEYS[1]  its stream: entries "OFFSET-0" with t (ms, when it came) and d (the envelope)
-- KEYS[2]  its meta: epoch, top, line (whose history: the master_replid), oldest (ms; no entry is
--          older), forks ("EPOCH:SHARED,…", oldest first)
-- ARGV[1]  "1": compare the line
-- ARGV[2]  what is only the caller's, for the names of new epochs
-- ARGV[3]  ms that the meta is kept

local MAX_FORKS = 8

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local epoch, top, forks, oldest

-- Lua's own way writes 1e+14 for a number of 15 digits.
local function digits(number)
  return string.format('%.0f', number)
end

local function new_epoch()
  return string.sub(redis.sha1hex(table.concat({ARGV[2], KEYS[1], clock[1], clock[2]}, ':')), 1, 16)
end

-- New at each start of a master and at each promotion. Where INFO is forbidden, '' compares nothing.
local function line_now()
  local info = redis.pcall('INFO', 'replication')
  return type(info) == 'string' and string.match(info, 'master_replid:(%x+)') or ''
end

-- Nothing is known of the stream any more: what is left of it goes, too.
local function begin()
  redis.call('DEL', KEYS[1])
  epoch, top, forks, oldest = new_epoch(), 0, '', now
  redis.call('HSET', KEYS[2], 'epoch', epoch, 'top', 0, 'line', line_now(), 'oldest', digits(now),
    'forks', '')
end

-- It goes on here, but what came after `top` may have been lost: from now on another epoch.
local function fork()
  forks = (forks == '' and '' or forks .. ',') .. epoch .. ':' .. digits(top)
  local _, commas = string.gsub(forks, ',', ',')
  if commas >= MAX_FORKS then
    forks = string.gsub(forks, '^[^,]*,', '')
  end
  epoch = new_epoch()
end

local function stand()
  local meta = redis.call('HMGET', KEYS[2], 'epoch', 'top', 'line', 'oldest', 'forks')
  epoch, top, oldest, forks = meta[1], tonumber(meta[2] or ''), tonumber(meta[4] or ''), meta[5]
  if not (epoch and top and oldest and forks) then
    return begin()
  end
  if ARGV[1] == '1' then
    local line = line_now()
    if line ~= '' and line ~= meta[3] then
      if meta[3] ~= '' then
        fork()
      end
      redis.call('HSET', KEYS[2], 'epoch', epoch, 'line', line, 'forks', forks)
    end
  end
end

-- Drop what came before `limit` (ms); looks only where something can be that old.
local function forget(limit)
  if oldest >= limit then
    return
  end
  local dropped
  repeat
    oldest, dropped = now, 0
    local last
    for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 8)) do
      local came = entry[2][1] == 't' and tonumber(entry[2][2]) or 0
      if came >= limit then
        oldest = came
        break
      end
      last, dropped = entry[1], dropped + 1
    end
    if last then
      local offset, rest = string.match(last, '^(%d+)-(%d+)$')
      redis.call('XTRIM', KEYS[1], 'MINID', '=', offset .. '-' .. digits(tonumber(rest) + 1))
    end
  until dropped < 8
  redis.call('HSET', KEYS[2], 'oldest', digits(oldest))
end
