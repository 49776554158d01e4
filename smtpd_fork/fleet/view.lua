-- Returns the nodes and the counts of a fleet. view.py describes the fields; ledger.py does the same
-- in Python. It writes nothing.
--
-- KEYS: layout, nodes, slots, waiting, about, denials, then the keys to read
-- ARGV: the question (MessagePack)

local MOST_NODES = 100

local after, rates = unpack(cmsgpack.unpack(ARGV[1]))
local nodes, slots, waiting, abouts = unpack(KEYS, 2, 5)
local FIRST = 6

local time = redis.call('TIME')
local us = time[1] * 1000000 + time[2]
local now = math.floor(us / 1000)

local alive, found, living = {}, {}, 0
local leases = redis.call('ZRANGE', nodes, 0, -1, 'WITHSCORES')
for i = 1, #leases, 2 do
  local name, ends = leases[i], tonumber(leases[i + 1])
  if ends > now then
    alive[name] = true
    living = living + 1
    if living > after and #found < MOST_NODES then
      found[#found + 1] = {name, ends - now}
    end
  end
end

local have, open = {}, {}
local state = redis.call('HGETALL', slots)
for i = 1, #state, 2 do
  have[state[i]], open[state[i]] = string.match(state[i + 1], '^(%d+) (%d+)$')
end
local waits = {}
for _, name in ipairs(redis.call('ZRANGE', waiting, 0, -1)) do waits[name] = true end
for _, node in ipairs(found) do
  local name = node[1]
  node[3], node[4] = tonumber(have[name] or 0), tonumber(open[name] or 0)
  node[5] = waits[name] or false
  node[6] = redis.call('HGET', abouts, name) or ''
end

local held, ahead = {}, {}
for index, rate in ipairs(rates) do
  local key = KEYS[FIRST + index]
  held[index], ahead[index] = {}, 0
  if rate then
    ahead[index] = math.max(0, tonumber(redis.call('GET', key) or us) - us)
  else
    local by_node = redis.call('HGETALL', key)
    for i = 1, #by_node, 2 do
      if alive[by_node[i]] and #held[index] < MOST_NODES then
        table.insert(held[index], {by_node[i], tonumber(by_node[i + 1])})
      end
    end
  end
end

return cmsgpack.pack({living, found, held, ahead})
