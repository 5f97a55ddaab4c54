-- Has wrk go through the requests of a file again and again: a line is a path, or a path and the body to post there.
-- All are formatted before the first is sent, so that this costs wrk little more than one request repeated.

local requests, at = {}, 0

function init(arguments)
    for line in io.lines(arguments[1]) do
        local path, body = line:match("^(%S+) ?(.*)$")
        if body == "" then
            requests[#requests + 1] = wrk.format("GET", path)
        else
            requests[#requests + 1] = wrk.format("POST", path, nil, body)
        end
    end
end

function request()
    at = at % #requests + 1
    return requests[at]
end
