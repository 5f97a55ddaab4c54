-- What nginx answers a lookup by: the key is looked up in shared memory, the profile in Redis, over a connection that
-- is kept. The few lines of Redis's protocol are here because no client of it is packaged with nginx's Lua module.

local lookup = {}
local PREFIX = #"/v1/profiles/id/" + 1
local IDLE_MS, CONNECTIONS = 60000, 64

-- The value of a key, false where there is none; else nil and an error.
local function get(redis, key)
    local ok, failure = redis:send({"*2\r\n$3\r\nGET\r\n$", #key, "\r\n", key, "\r\n"})
    if not ok then return nil, failure end
    local head
    head, failure = redis:receive()
    if not head then return nil, failure end
    local bytes = head:byte(1) == 36 and tonumber(head:sub(2))  -- a "$", then the length
    if not bytes then return nil, head end
    if bytes < 0 then return false end
    local value
    value, failure = redis:receive(bytes)
    if not value then return nil, failure end
    ok, failure = redis:receive(2)  -- the end of the line
    if not ok then return nil, failure end
    return value
end

function lookup.answer(address)
    local sent = ngx.var.http_authorization
    if not sent or not ngx.shared.keys:get(sent) then return ngx.exit(401) end
    local redis = ngx.socket.tcp()
    local ok, failure = redis:connect(address)
    if not ok then
        ngx.log(ngx.ERR, failure)
        return ngx.exit(503)
    end
    local profile
    profile, failure = get(redis, ngx.var.uri:sub(PREFIX))
    if profile == nil then
        ngx.log(ngx.ERR, failure)
        redis:close()
        return ngx.exit(503)
    end
    redis:setkeepalive(IDLE_MS, CONNECTIONS)
    if not profile then return ngx.exit(404) end
    ngx.header.content_length = #profile
    ngx.print(profile)
end

return lookup
