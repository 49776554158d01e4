-- Processes one message of a node: its counts, and its questions about clients. sync.py describes
-- the fields; ledger.py does the same in Python. All reads and decisions precede all writes: so a
-- refused client uses up nothing, and an error changes nothing.
--
-- KEYS: layout, nodes, slots, waiting, about, denials, then those of the message
-- ARGV: the message (MessagePack), the channel of hints

local LAYOUT = '1'
local LONGEST_LEASE = 60000
local A_FEW = 16

local node, lease, keep, limit, sessions, want, survey, waits, leaves, about, counts, clients =
  unpack(cmsgpack.unpack(ARGV[1]))
local layout, nodes, slots, waiting, abouts, denials = unpack(KEYS, 1, 6)
local FIRST = 6

-- Read.

local time = redis.call('TIME')
local us = time[1] * 1000000 + time[2]
local now = math.floor(us / 1000)

local found = redis.call('GET', layout)
if found and found ~= LAYOUT then
  return redis.error_reply('LAYOUT the fleet has layout ' .. found .. ', this node has ' .. LAYOUT)
end

-- Only a survey reads all nodes, as a fleet may have hundreds.
local known = {[node] = false}
local function alive(name)
  if known[name] == nil then
    local ends = redis.call('ZSCORE', nodes, name)
    known[name] = ends and tonumber(ends) > now or false
  end
  return known[name]
end

local mine_ends = redis.call('ZSCORE', nodes, node)
local fresh = not mine_ends or tonumber(mine_ends) <= now
local living = redis.call('ZCOUNT', nodes, '(' .. now, '+inf') + (fresh and 1 or 0)
local dead = redis.call('ZRANGEBYSCORE', nodes, '-inf', now, 'LIMIT', 0, A_FEW)
-- A lease that ends too late: the clock was set back.
local wrong = redis.call('ZRANGEBYSCORE', nodes, '(' .. now + LONGEST_LEASE, '+inf', 'LIMIT', 0, A_FEW)

local before = tonumber(string.match(redis.call('HGET', slots, node) or '0', '^%d+'))
local granted, all = want, -1
if survey or (limit > 0 and want > before) then
  local held = 0
  all = sessions
  local state = redis.call('HGETALL', slots)
  for i = 1, #state, 2 do
    if alive(state[i]) then
      local have, open = string.match(state[i + 1], '^(%d+) (%d+)$')
      held, all = held + tonumber(have), all + tonumber(open)
    end
  end
  granted = math.min(want, limit - held)
end
granted = limit > 0 and math.max(sessions, granted) or 0

local waited = redis.call('ZSCORE', waiting, node)
local others_wait = redis.call('ZCARD', waiting) - (waited and 1 or 0)

local version = tonumber(redis.call('HGET', denials, 'version') or 0)
redis.call('HEXISTS', abouts, node) -- fails here, before any write, if the key has another type

local mine, others, gone = {}, {}, {}
for i = 1, #counts, 2 do
  mine[counts[i]] = counts[i + 1]
end
for index in pairs(mine) do
  local sum, stale = 0, {}
  local by_node = redis.call('HGETALL', KEYS[FIRST + index])
  for i = 1, #by_node, 2 do
    if alive(by_node[i]) then
      sum = sum + tonumber(by_node[i + 1])
    elseif by_node[i] ~= node then
      stale[#stale + 1] = by_node[i]
    end
  end
  others[index], gone[index] = sum, stale
end

-- Decide about the clients. A client has four numbers for each limit: key, limit, interval, most.

local due, verdicts = {}, {}
for c = 1, #clients do
  local checks = clients[c]
  local refused, count = 0, 0
  for i = 1, #checks, 4 do
    local index, most = checks[i], checks[i + 1]
    if checks[i + 2] == 0 then
      count = others[index] + mine[index] + 1
      if count > most then refused = (i + 3) / 4 break end
    else
      if not due[index] then
        due[index] = tonumber(redis.call('GET', KEYS[FIRST + index]) or us)
        -- Later than possible: the clock was set back.
        due[index] = math.min(due[index], us + checks[i + 2] + checks[i + 3])
      end
      local ahead = due[index] - us
      if ahead > checks[i + 3] then
        refused, count = (i + 3) / 4, math.floor(ahead / checks[i + 2] + 0.5) + 1
        break
      end
    end
  end
  verdicts[#verdicts + 1] = refused
  verdicts[#verdicts + 1] = refused > 0 and count or 0
  if refused == 0 then
    for i = 1, #checks, 4 do
      local index = checks[i]
      if checks[i + 2] == 0 then
        mine[index] = mine[index] + 1
      else
        due[index] = math.max(due[index], us) + checks[i + 2]
      end
    end
  end
end

-- Write.

local function forget(name)
  redis.call('ZREM', nodes, name)
  redis.call('ZREM', waiting, name)
  redis.call('HDEL', slots, name)
  redis.call('HDEL', abouts, name)
end

redis.call('SET', layout, LAYOUT, 'PX', keep)
for _, name in ipairs(dead) do if name ~= node then forget(name) end end
for _, name in ipairs(wrong) do redis.call('ZADD', nodes, now + lease, name) end
if leaves then
  forget(node)
else
  redis.call('ZADD', nodes, now + lease, node)
  redis.call('HSET', slots, node, string.format('%d %d', granted, sessions))
  if about ~= '' then redis.call('HSET', abouts, node, about) end
  if waits then redis.call('ZADD', waiting, now, node) elseif waited then redis.call('ZREM', waiting, node) end
end
for _, key in ipairs({nodes, slots, waiting, abouts}) do redis.call('PEXPIRE', key, keep) end
for index, count in pairs(mine) do
  local key = KEYS[FIRST + index]
  if #gone[index] > 0 then redis.call('HDEL', key, unpack(gone[index])) end
  if count > 0 and not leaves then
    redis.call('HSET', key, node, count)
    redis.call('PEXPIRE', key, keep)
  else
    redis.call('HDEL', key, node)
  end
end
for index, at in pairs(due) do
  if at > us then
    redis.call('SET', KEYS[FIRST + index], string.format('%.0f', at), 'PX', math.ceil((at - us) / 1000))
  end
end
-- This node is the only one, perhaps as Redis has lost its data: then the other nodes must send
-- their counts at once.
if fresh and living == 1 then redis.call('PUBLISH', ARGV[2], 'empty') end
if waits and not waited then redis.call('PUBLISH', ARGV[2], 'waiting') end
if others_wait > 0 and (granted < before or leaves or #dead > 0) then
  redis.call('PUBLISH', ARGV[2], 'room')
end

return cmsgpack.pack({fresh, living, granted, all, others_wait, version, verdicts})
