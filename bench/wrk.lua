-- What wrk asks for, where it is not one URL, and how it tells of latencies.
--
--   (nothing)                       the URL that it was given
--   zipf PREFIX URLS                PREFIX0 to PREFIX(URLS - 1), the n-th in proportion to 1 / n
--   uniform PREFIX URLS             the same URLs, each as likely as the others
--   each PREFIX FIRST               PREFIXFIRST, and on from there: no URL twice
--
-- Prints "latency" and the microseconds that half, 99 % and 99.9 % of the requests did not take longer than.

local SEQUENCE = 131072

local function zipf(prefix, urls)
    -- The same for every server.
    math.randomseed(42)
    local sums, sum = {}, 0
    for n = 1, urls do
        sum = sum + 1 / n
        sums[n] = sum
    end
    local requests, sequence = {}, {}
    for i = 1, SEQUENCE do
        local wanted, low, high = math.random() * sum, 1, urls
        while low < high do
            local middle = math.floor((low + high) / 2)
            if sums[middle] < wanted then low = middle + 1 else high = middle end
        end
        sequence[i] = low
        requests[low] = requests[low] or wrk.format(nil, prefix .. (low - 1))
    end
    local at = 0
    return function()
        at = at % SEQUENCE + 1
        return requests[sequence[at]]
    end
end

local function uniform(prefix, urls)
    math.randomseed(42)
    local before, after = wrk.format(nil, prefix .. "@"):match("^(.-)@(.*)$")
    return function()
        return before .. math.random(0, urls - 1) .. after
    end
end

local function each(prefix, first)
    local at = first - 1
    return function()
        at = at + 1
        return wrk.format(nil, prefix .. at)
    end
end

function init(args)
    if args[1] == "zipf" then request = zipf(args[2], tonumber(args[3])) end
    if args[1] == "uniform" then request = uniform(args[2], tonumber(args[3])) end
    if args[1] == "each" then request = each(args[2], tonumber(args[3])) end
end

function done(summary, latency)
    io.write(string.format("latency %d %d %d\n", latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
