-- Returns which of some commands the ACL refuses; none of them is run.
--
-- KEYS: one of the fleet's
-- ARGV: the channel of hints, then commands

local refused = {}
for i = 2, #ARGV do
  local command, allowed = ARGV[i]
  if command == 'TIME' then
    allowed = redis.acl_check_cmd(command)
  elseif command == 'PUBLISH' then
    allowed = redis.acl_check_cmd(command, ARGV[1], 'x')
  else
    allowed = redis.acl_check_cmd(command, KEYS[1], '1', 'x')
  end
  if not allowed then refused[#refused + 1] = string.lower(command) end
end
return refused
