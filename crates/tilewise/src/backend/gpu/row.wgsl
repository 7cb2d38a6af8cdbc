// What kernels share that look at a whole row of logits: the order of its elements and sums of their weights.
//
// Logits are compared as integers in the same order. Weights are integers too, in units of 2^-40 of the largest: sums
// do not depend on the order in which threads add them.

const THREADS = ${THREADS}u;
const COPIES = 8u;           // of each digit's sum, so that neighbours seldom add to the same
const NOT_FINITE = 0xffffffffu;
const MINUS_INFINITY = 0x007fffffu;
const INFINITY = 0xff800000u;

// An element's place: larger keys first, lower ids among equals.
struct Place {
    key: u32,
    id: u32,
}

var<workgroup> low: array<atomic<u32>, ${256 * 8}>;
var<workgroup> high: array<atomic<u32>, ${256 * 8}>;
var<workgroup> sums: array<vec2<u32>, 256>;
var<workgroup> parts: array<vec2<u32>, 16>;
var<workgroup> lowest: array<atomic<u32>, 256>;
var<workgroup> largest: atomic<u32>;
var<workgroup> smallest: atomic<u32>;
var<workgroup> first: atomic<u32>;
var<workgroup> digit: u32;
var<workgroup> before: vec2<u32>;

// Two words are a number: x is the lower.
fn add(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let x = a.x + b.x;
    return vec2<u32>(x, a.y + b.y + select(0u, 1u, x < a.x));
}

// An integer that orders as the logit does; both zeros are one.
fn key_of(bits: u32) -> u32 {
    if bits == 0x80000000u {
        return 0x80000000u;
    }
    return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}

fn logit_of(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, key >= 0x80000000u));
}

// The weight of a logit, of 1 at most, in units of 2^-40.
fn weight_of(key: u32, top: f32, temperature: f32, limit: f32) -> vec2<u32> {
    let below = logit_of(key) - top;
    if key <= MINUS_INFINITY || !(below >= limit) {
        return vec2<u32>();
    }
    let weight = min(exp(below / temperature), 1.0) * 256.0;
    let whole = floor(weight);
    return vec2<u32>(u32((weight - whole) * 4294967296.0), u32(whole));
}

fn add_to(place: u32, value: vec2<u32>) {
    let old = atomicAdd(&low[place], value.x);
    let up = value.y + select(0u, 1u, old + value.x < old);
    if up != 0u {
        atomicAdd(&high[place], up);
    }
}

fn clear_sums(thread: u32) {
    for (var i = thread; i < 256u * COPIES; i += THREADS) {
        atomicStore(&low[i], 0u);
        atomicStore(&high[i], 0u);
    }
    for (var i = thread; i < 256u; i += THREADS) {
        atomicStore(&lowest[i], NOT_FINITE);
    }
    workgroupBarrier();
}

// Adds up the copies: sums[d] is that of the digit 255 - d, the first in order.
fn collect_sums(thread: u32) {
    workgroupBarrier();
    for (var i = thread; i < 256u; i += THREADS) {
        var sum = vec2<u32>();
        for (var copy = 0u; copy < COPIES; copy++) {
            let at = (255u - i) * COPIES + copy;
            sum = add(sum, vec2<u32>(atomicLoad(&low[at]), atomicLoad(&high[at])));
        }
        sums[i] = sum;
    }
    workgroupBarrier();
    if thread < 16u {
        var sum = vec2<u32>();
        for (var i = 0u; i < 16u; i++) {
            sum = add(sum, sums[thread * 16u + i]);
        }
        parts[thread] = sum;
    }
    workgroupBarrier();
}

// The sum of the weights of all elements up to a place.
fn sum_up_to(row: u32, thread: u32, last: Place, top: f32, temperature: f32, limit: f32) -> vec2<u32> {
    clear_sums(thread);
    var sum = vec2<u32>();
    for (var begin = thread; begin < args.len; begin += 4u * THREADS) {
#for u in 0..4
        let key_$u = key_of(logits[row + min(begin + ${u}u * THREADS, args.len - 1u)]);
#end
#for u in 0..4
        {
            let id = begin + ${u}u * THREADS;
            if id < args.len && (key_$u > last.key || (key_$u == last.key && id <= last.id)) {
                sum = add(sum, weight_of(key_$u, top, temperature, limit));
            }
        }
#end
    }
    add_to(thread % (256u * COPIES), sum);
    collect_sums(thread);
    if thread == 0u {
        var all = vec2<u32>();
        for (var i = 0u; i < 16u; i++) {
            all = add(all, parts[i]);
        }
        before = all;
    }
    return workgroupUniformLoad(&before);
}

// The first of the largest elements; of a row that is not finite, a place with the id NOT_FINITE.
fn largest_of(row: u32, thread: u32) -> Place {
    if thread == 0u {
        atomicStore(&largest, 0u);
        atomicStore(&smallest, NOT_FINITE);
        atomicStore(&first, NOT_FINITE);
    }
    workgroupBarrier();
    var best = Place(0u, NOT_FINITE);
    var least = NOT_FINITE;
    for (var begin = thread; begin < args.len; begin += 4u * THREADS) {
#for u in 0..4
        let key_$u = key_of(logits[row + min(begin + ${u}u * THREADS, args.len - 1u)]);
#end
#for u in 0..4
        {
            let id = begin + ${u}u * THREADS;
            if id < args.len {
                // Ids ascend, so the first of equals stays.
                if key_$u > best.key {
                    best = Place(key_$u, id);
                }
                least = min(least, key_$u);
            }
        }
#end
    }
    atomicMax(&largest, best.key);
    atomicMin(&smallest, least);
    workgroupBarrier();
    let top = atomicLoad(&largest);
    if best.key == top {
        atomicMin(&first, best.id);
    }
    // NaN orders above infinity or below its negative, by its sign.
    let finite = top < INFINITY && top > MINUS_INFINITY && atomicLoad(&smallest) >= MINUS_INFINITY;
    workgroupBarrier();
    if thread == 0u {
        before = vec2<u32>(top, select(NOT_FINITE, atomicLoad(&first), finite));
    }
    let found = workgroupUniformLoad(&before);
    return Place(found.x, found.y);
}

// The natural logarithm of the sum of the weights of all elements, at temperature 1.
fn log_sum(row: u32, thread: u32, top: f32) -> f32 {
    let sum = sum_up_to(row, thread, Place(0u, NOT_FINITE), top, 1.0, -28.0);
    return log(f32(sum.y) / 256.0 + f32(sum.x) / 1099511627776.0);
}
