-- Returns those of the given commands that the ACL refuses. It executes none of them.
--
-- KEYS: one key of the fleet
-- ARGV: the channel of hints, then the commands

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
