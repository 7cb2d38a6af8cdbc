// Where queries, keys and values are, and which keys a row sees.

// Where the vector of a query's head starts.
fn q_start(sequence: Sequence, item: Item, row: u32) -> u32 {
    var index = sequence.index;
    var query = row / args.group;
    var query_begin = sequence.query_begin;
#if MERGES == 0
    if item.rows_at != 0u {
        let at = item.rows_at - 1u + (row - item.row_begin) * 3u;
        index = plan[at];
        query = plan[at + 1u];
        query_begin = plan[args.sequences_at + index * 6u + 1u];
    }
#end
    let head = item.head * args.group + row % args.group;
    let token = select(index * args.q_batch + query * args.q_token, (query_begin + query) * args.q_token,
                       args.q_batch == 0xffffffffu);
    return args.q_offset + token + head * args.q_head;
}

#if MERGES == 0
// Where the partial state of an item's row goes.
fn state_start(item: Item, row: u32) -> u32 {
    var at = item.partial - 1u + row * (DV + 2u);
    if item.rows_at != 0u {
        at = plan[item.rows_at - 1u + row * 3u + 2u];
    }
    return at;
}
#end

// Where an item's keys and values start: elements before the first, or the page of a key.
#if PAGED
fn page_of(sequence: Sequence, key: u32) -> u32 {
    return plan[args.pages_at + sequence.page_begin + key / ${PAGE}u];
}
fn slot(item: Item, page: u32, key: u32) -> u32 {
    return (page * args.heads + item.head - args.first_head) * ${PAGE}u + key % ${PAGE}u;
}
fn key_start(item: Item, page: u32, key: u32) -> u32 { return slot(item, page, key) * D; }
fn value_start(item: Item, page: u32, key: u32) -> u32 { return slot(item, page, key) * DV; }
#else
fn k_begin(sequence: Sequence, item: Item) -> u32 {
    let token = select(sequence.index * args.k_batch, sequence.key_begin * args.k_token, args.k_batch == 0xffffffffu);
    return args.k_offset + token + item.head * args.k_head;
}
fn v_begin(sequence: Sequence, item: Item) -> u32 {
    let token = select(sequence.index * args.v_batch, sequence.key_begin * args.v_token, args.v_batch == 0xffffffffu);
    return args.v_offset + token + item.head * args.v_head;
}
#end

// The keys that a row sees are those from x to before y.
fn visible(sequence: Sequence, item: Item, row: u32) -> vec2<u32> {
    let query = i32((item.row_begin + row) / args.group);
    let keys = i32(sequence.keys);
    let position = query + keys - i32(sequence.queries);
    var end = keys;
    if (args.mask & 1u) != 0u {
        end = min(end, query + max(keys - i32(sequence.queries), 0) + 1);
    }
    if (args.mask & 4u) != 0u {
        end = min(end, clamp(position + i32(args.right) + 1, 0, keys));
    }
    var begin = 0;
    if (args.mask & 2u) != 0u {
        begin = clamp(position - i32(args.left), 0, keys);
    }
#if MERGES == 0
    // All rows of a joint item see all of its keys.
    if item.rows_at != 0u {
        begin = i32(item.key_begin);
        end = i32(item.key_end);
    }
#end
    return vec2<u32>(u32(begin), u32(end));
}

fn sees(sequence: Sequence, item: Item, row: u32, key: u32) -> bool {
    let range = visible(sequence, item, row);
    return item.row_begin + row < item.row_end && key >= max(range.x, item.key_begin)
        && key < min(range.y, item.key_end);
}

#if Q_WORDS
fn q_at(i: u32) -> f32 {
    let word = q[i >> 1u];
#if Q_F16
    return unpack2x16float(word)[i & 1u];
#else
    return bitcast<f32>(select(word << 16u, word & 0xffff0000u, (i & 1u) == 1u));
#end
}
#else
#if Q_PAIRS
fn q_at(i: u32) -> f32 { return q[i >> 1u][i & 1u]; }
#else
fn q_at(i: u32) -> f32 { return q[i]; }
#end
#end
// Two neighbours; with Q_PAIRS every vector begins at an even element.
#if Q_PAIRS == 0
fn q_pair(i: u32) -> vec2<f32> { return vec2<f32>(q_at(i), q_at(i + 1u)); }
#else
#if Q_WORDS == 0
fn q_pair(i: u32) -> vec2<f32> { return q[i >> 1u]; }
#else
#if Q_F16
fn q_pair(i: u32) -> vec2<f32> { return unpack2x16float(q[i >> 1u]); }
#else
fn q_pair(i: u32) -> vec2<f32> { return bitcast<vec2<f32>>(vec2<u32>(q[i >> 1u] << 16u, q[i >> 1u] & 0xffff0000u)); }
#end
#end
#end

#if KV_WORDS
fn kv_of(word: u32, i: u32) -> f32 {
#if KV_F16
    return unpack2x16float(word)[i & 1u];
#else
    return bitcast<f32>(select(word << 16u, word & 0xffff0000u, (i & 1u) == 1u));
#end
}
fn k_at(i: u32) -> f32 { return kv_of(k[i >> 1u], i); }
fn v_at(i: u32) -> f32 { return kv_of(v[i >> 1u], i); }
#end
