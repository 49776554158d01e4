-- Adds and removes networks that a fleet denies at run time, and returns those that have changed.
-- denial_message.py describes the fields; denial_ledger.py does the same in Python.
--
-- KEYS: layout, nodes, slots, waiting, about, denials, denials:order, denials:ends
-- ARGV: the message (MessagePack), the channel of hints
--
-- denials: HASH with a field for each network, and with version: of the last change; cut: of the
-- last removal; born: when the hash was created. A version is a time, so that a version is not used
-- again after Redis was flushed.

local LAYOUT = '1'
local MOST = 10000
local PAGE = 100
local EXPIRED = 1000

local after, born, goes_on, add, remove = unpack(cmsgpack.unpack(ARGV[1]))
local layout, denials, order, ends = KEYS[1], KEYS[6], KEYS[7], KEYS[8]

local time = redis.call('TIME')
local now = math.floor((time[1] * 1000000 + time[2]) / 1000)

local found = redis.call('GET', layout)
if found and found ~= LAYOUT then
  return redis.error_reply('LAYOUT the fleet has layout ' .. found .. ', this node has ' .. LAYOUT)
end

local function number(field) return tonumber(redis.call('HGET', denials, field) or 0) end
local version, cut, made = number('version'), number('cut'), number('born')

local function drop(network)
  redis.call('ZREM', order, network)
  redis.call('ZREM', ends, network)
  return redis.call('HDEL', denials, network)
end

for _, network in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', now, 'LIMIT', 0, EXPIRED)) do
  drop(network)
end

local function text(value) return string.format('%.0f', value) end

local changed, full = false, 0
for _, network in ipairs(remove) do
  if drop(network) > 0 then
    version = math.max(version + 1, now)
    cut, changed = version, true
  end
end
for _, each in ipairs(add) do
  local network, words, by, node, since, age, left, only_new = unpack(each)
  local exists = redis.call('HEXISTS', denials, network) > 0
  if not exists and redis.call('ZCARD', order) >= MOST then
    full = full + 1
  elseif not (exists and only_new) then
    if made == 0 then
      made = now
      redis.call('HSET', denials, 'born', text(made))
    end
    version, changed = math.max(version + 1, now), true
    if not only_new then since = now - age end
    local until_ = left > 0 and now + left or 0
    redis.call('HSET', denials, network, cmsgpack.pack({words, by, node, since, until_}))
    redis.call('ZADD', order, text(version), network)
    if until_ > 0 then
      redis.call('ZADD', ends, text(until_), network)
    else
      redis.call('ZREM', ends, network)
    end
  end
end
if changed then
  redis.call('HSET', denials, 'version', text(version), 'cut', text(cut))
  redis.call('PUBLISH', ARGV[2], 'denials')
end

local whole = not goes_on and (made ~= born or after < cut)
if whole then after = 0 end
local page, last = {}, after
local names = redis.call('ZRANGEBYSCORE', order, '(' .. text(after), '+inf', 'WITHSCORES', 'LIMIT', 0, PAGE)
for i = 1, #names, 2 do
  local packed = redis.call('HGET', denials, names[i])
  last = tonumber(names[i + 1])
  if packed then
    local words, by, node, since, until_ = unpack(cmsgpack.unpack(packed))
    if until_ == 0 or until_ > now then
      page[#page + 1] = {names[i], words, by, node, since, until_ == 0 and 0 or until_ - now}
    end
  end
end
return cmsgpack.pack({version, made, whole, #names == 2 * PAGE, last, full, page})
