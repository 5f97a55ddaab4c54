-- Has wrk send what a file lists, in turn: a line has, with tabs between, the method, the path, the body, and headers.
-- Wherever a line says {n} stands a number that no other request has, so that what is kept of requests would pile up.

local requests, at, number = {}, 0, 0

function init(arguments)
    for line in io.lines(arguments[1]) do
        local parts = {}
        for part in (line .. "\t"):gmatch("([^\t]*)\t") do
            parts[#parts + 1] = part
        end
        local headers = {}
        for i = 4, #parts do
            local name, value = parts[i]:match("^([^:]+): (.*)$")
            headers[name] = value
        end
        local body = parts[3] ~= "" and parts[3] or nil
        requests[#requests + 1] = wrk.format(parts[1], parts[2], headers, body)
    end
    number = tonumber(arguments[2])
end

function request()
    at = at % #requests + 1
    number = number + 1
    return (requests[at]:gsub("{n}", string.format("%012d", number)))
end
