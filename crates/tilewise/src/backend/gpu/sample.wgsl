// Draws a token from each row of logits. One work group per row; the result depends on the row and its draw alone.
//
// Whatever has to be found is the first element, in some order, at which a running sum exceeds a goal: the last of the
// top k (counts), the end of the nucleus and the token drawn (weights). It is found digit by digit of the order's key,
// from sums over the elements with each digit.

struct Args {
    rows: u32,
    len: u32,            // of a row
    id_shift: u32,       // brings the highest bit of an id to the top
    words: u32,          // of a result: 2 with its logprob, 1 for a token that is drawn whatever the row is
}
var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> logits: array<u32>;
@group(0) @binding(1) var<storage, read> draws: array<u32>;
@group(0) @binding(2) var<storage, read_write> sampled: array<u32>;

// What an element adds to a sum.
const COUNT = 0u;
const WEIGHT = 1u;
// Which elements there are, in which order.
const BY_LOGIT = 0u;         // those that are kept, the most probable first
const BY_ID = 1u;            // all
const EQUALS = 2u;           // those with a given logit, by id

struct Draw {
    mode: u32,           // 0 the largest, 1 among all, 2 among the most probable
    logprob: u32,
    temperature: f32,
    limit: f32,          // distance to the largest logit below which a weight is nothing
    top_k: u32,          // 0 keeps all
    top_p: u32,          // in units of 2^-32; 0 keeps all
    chance: u32,         // in units of 2^-32
}

var<workgroup> asked: Draw;

fn subtract(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return vec2<u32>(a.x - b.x, a.y - b.y - select(0u, 1u, a.x < b.x));
}

fn exceeds(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.y > b.y || (a.y == b.y && a.x > b.x);
}

fn product(a: u32, b: u32) -> vec2<u32> {
    let middle = (a >> 16u) * (b & 0xffffu);
    let other = (a & 0xffffu) * (b >> 16u);
    let outer = vec2<u32>((a & 0xffffu) * (b & 0xffffu), (a >> 16u) * (b >> 16u));
    return add(add(outer, vec2<u32>(middle << 16u, middle >> 16u)), vec2<u32>(other << 16u, other >> 16u));
}

// The part of a number that a fraction in units of 2^-32 is, rounded down.
fn part_of(a: vec2<u32>, fraction: u32) -> vec2<u32> {
    return add(vec2<u32>(product(a.x, fraction).y, 0u), product(a.y, fraction));
}

// How often b goes into a, which is less than 2^24 times.
fn times(a: vec2<u32>, b: vec2<u32>) -> u32 {
    var quotient = 0u;
    var rest = a;
    for (var bit = 24u; bit > 0u; bit--) {
        let shift = bit - 1u;
        let shifted = vec2<u32>(b.x << shift, (b.y << shift) | select(0u, b.x >> ((32u - shift) & 31u), shift > 0u));
        if !exceeds(shifted, rest) {
            rest = subtract(rest, shifted);
            quotient |= 1u << shift;
        }
    }
    return quotient;
}

struct Found {
    key: u32,            // in the order that was searched
    lowest: u32,         // the lowest id of that key
    before: vec2<u32>,   // the running sum before that key
}

struct Search {
    order: u32,
    measure: u32,
    last: Place,         // the last that is kept; of EQUALS, its key is the given one
    goal: vec2<u32>,
    top: f32,
    temperature: f32,
    limit: f32,
}

// The key at which the running sum exceeds the goal.
fn find(row: u32, thread: u32, search: Search) -> Found {
    var found = Found(0u, 0u, vec2<u32>());
    for (var shift = 32u; shift > 0u; shift -= 8u) {
        let bits = shift - 8u;
        clear_sums(thread);
        for (var begin = thread; begin < args.len; begin += 4u * THREADS) {
#for u in 0..4
            let key_$u = key_of(logits[row + min(begin + ${u}u * THREADS, args.len - 1u)]);
#end
#for u in 0..4
            {
                let id = begin + ${u}u * THREADS;
                let order = select(~(id << args.id_shift), key_$u, search.order == BY_LOGIT);
                let kept = key_$u > search.last.key || (key_$u == search.last.key && id <= search.last.id);
                let counts = select(kept, key_$u == search.last.key, search.order == EQUALS);
                let same = shift == 32u || (order ^ found.key) >> (shift & 31u) == 0u;
                if id < args.len && same && counts {
                    let place = (order >> bits) & 255u;
                    var value = vec2<u32>(1u, 0u);
                    if search.measure == WEIGHT {
                        value = weight_of(key_$u, search.top, search.temperature, search.limit);
                    }
                    add_to(place * COPIES + thread % COPIES, value);
                    if bits == 0u {
                        atomicMin(&lowest[place], id);
                    }
                }
            }
#end
        }
        collect_sums(thread);
        if thread == 0u {
            var sum = found.before;
            var i = 0u;
            while i < 15u && !exceeds(add(sum, parts[i]), search.goal) {
                sum = add(sum, parts[i]);
                i++;
            }
            i *= 16u;
            while i < 255u && !exceeds(add(sum, sums[i]), search.goal) {
                sum = add(sum, sums[i]);
                i++;
            }
            digit = 255u - i;
            before = sum;
        }
        let place = workgroupUniformLoad(&digit);
        found.before = workgroupUniformLoad(&before);
        found.key |= place << bits;
        found.lowest = atomicLoad(&lowest[place]);
        workgroupBarrier();
    }
    return found;
}

// The place of the element at which the running sum over the most probable exceeds the goal.
fn place_of(row: u32, thread: u32, search: Search) -> Place {
    let found = find(row, thread, search);
    var rank = search.goal.x - found.before.x;
    if search.measure == WEIGHT {
        let weight = weight_of(found.key, search.top, search.temperature, search.limit);
        rank = times(subtract(search.goal, found.before), max(weight, vec2<u32>(1u, 0u)));
    }
    var place = Place(found.key, found.lowest);
    // Equals are rare, but a model may have them.
    if thread == 0u {
        digit = rank;
    }
    if workgroupUniformLoad(&digit) > 0u {
        let equals = Search(EQUALS, COUNT, place, vec2<u32>(rank, 0u), search.top, search.temperature, search.limit);
        place.id = find(row, thread, equals).lowest;
    }
    return place;
}

// The token to be drawn by chance.
fn by_chance(row: u32, thread: u32, top: f32) -> u32 {
    let draw = workgroupUniformLoad(&asked);
    let all = Place(0u, NOT_FINITE);
    var search = Search(BY_LOGIT, COUNT, all, vec2<u32>(), top, draw.temperature, draw.limit);
    if draw.mode == 1u {
        let sum = sum_up_to(row, thread, all, top, draw.temperature, draw.limit);
        search.order = BY_ID;
        search.measure = WEIGHT;
        search.goal = part_of(sum, draw.chance);
        return find(row, thread, search).lowest;
    }
    if draw.top_k != 0u {
        search.goal = vec2<u32>(draw.top_k - 1u, 0u);
        search.last = place_of(row, thread, search);
    }
    search.measure = WEIGHT;
    if draw.top_p != 0u {
        let kept = part_of(sum_up_to(row, thread, search.last, top, draw.temperature, draw.limit), draw.top_p);
        // The sum has to reach this much, which is to exceed one less.
        search.goal = subtract(kept, vec2<u32>(select(0u, 1u, exceeds(kept, vec2<u32>())), 0u));
        search.last = place_of(row, thread, search);
    }
    let sum = sum_up_to(row, thread, search.last, top, draw.temperature, draw.limit);
    search.goal = part_of(sum, draw.chance);
    return place_of(row, thread, search).id;
}

@compute @workgroup_size($THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let index = group.y * groups.x + group.x;
    if index >= args.rows {
        return;
    }
    let row = index * args.len;
    let at = index * 8u;
    if thread == 0u {
        asked = Draw(draws[at], draws[at + 1u], bitcast<f32>(draws[at + 2u]), bitcast<f32>(draws[at + 3u]),
                     draws[at + 4u], draws[at + 5u], draws[at + 6u]);
    }
    let best = largest_of(row, thread);
    var id = best.id;
    if id != NOT_FINITE {
        let top = logit_of(best.key);
        if draws[at] != 0u {
            id = by_chance(row, thread, top);
        }
        if args.words == 2u && draws[at + 1u] != 0u {
            let logprob = logit_of(key_of(logits[row + id])) - top - log_sum(row, thread, top);
            if thread == 0u {
                sampled[index * 2u + 1u] = bitcast<u32>(logprob);
            }
        }
    }
    if thread == 0u {
        sampled[index * args.words] = select(id, 0u, args.words == 1u && id == NOT_FINITE);
    }
}
