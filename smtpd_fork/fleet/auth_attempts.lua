-- Adds an attempt to authenticate to its name, and returns all attempts of this name by all nodes.
-- auth_attempts.py describes the fields; auth_attempt_ledger.py does the same in Python.
--
-- KEYS: layout, nodes, slots, waiting, about, denials, then those of the name and of the hash key
-- ARGV: the message (MessagePack)
--
-- A name is a HASH: attempt -> time until which it counts.

local LAYOUT = '1'

local attempt, most, period, key = unpack(cmsgpack.unpack(ARGV[1]))
local layout, name, of_hash = KEYS[1], KEYS[7], KEYS[8]

local time = redis.call('TIME')
local now = math.floor((time[1] * 1000000 + time[2]) / 1000)

local found = redis.call('GET', layout)
if found and found ~= LAYOUT then
  return redis.error_reply('LAYOUT the fleet has layout ' .. found .. ', this node has ' .. LAYOUT)
end

local known = redis.call('GET', of_hash)
if not known then
  known = key
  redis.call('SET', of_hash, key)
end
redis.call('PEXPIRE', of_hash, period)
if known ~= key then return cmsgpack.pack({known, {}}) end

local attempts, count, old = {}, 0, {}
local stored = redis.call('HGETALL', name)
for i = 1, #stored, 2 do
  local ends = tonumber(stored[i + 1])
  -- Later than possible: the clock was set back.
  if ends <= now or ends > now + period then
    old[#old + 1] = stored[i]
  else
    attempts[stored[i]], count = ends, count + 1
  end
end

if #old > 0 then redis.call('HDEL', name, unpack(old)) end
if attempt ~= '' and (count < most or attempts[attempt]) then
  attempts[attempt] = now + period
  redis.call('HSET', name, attempt, string.format('%.0f', now + period))
  redis.call('PEXPIRE', name, period)
end

local answer = {}
for each, ends in pairs(attempts) do
  answer[#answer + 1] = {each, ends - now}
end
return cmsgpack.pack({known, answer})
