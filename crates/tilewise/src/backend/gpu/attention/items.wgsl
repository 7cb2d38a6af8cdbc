// What a plan's buffer holds, and where rows of the output are.

const CHUNK = 1024u;

// Some rows of one KV head of one sequence, with some of its keys. Row r is query r / group, head r % group. Rows of a
// joint item are of several sequences, whose pages of its keys are those of the first.
struct Item {
    sequence: u32,
    head: u32,
    row_begin: u32,
    row_end: u32,
    key_begin: u32,
    key_end: u32,
    partial: u32,        // decode: one more than where partial states go, 0 where the item finishes its rows;
                         // prefill: where its threads put what they carry from chunk to chunk
    rows_at: u32,        // joint: one more than where the plan has, for each row, its sequence, its query there, and
                         // where its state goes
}

struct Sequence {
    index: u32,
    query_begin: u32,    // among all queries
    queries: u32,
    key_begin: u32,      // among all contiguous keys
    keys: u32,
    page_begin: u32,     // in the page table
}

fn read_item(at: u32) -> Item {
    return Item(plan[at], plan[at + 1u], plan[at + 2u], plan[at + 3u], plan[at + 4u], plan[at + 5u], plan[at + 6u],
                plan[at + 7u]);
}

fn read_sequence(at: u32) -> Sequence {
    return Sequence(plan[at], plan[at + 1u], plan[at + 2u], plan[at + 3u], plan[at + 4u], plan[at + 5u]);
}

// Where a row's output is, in vectors of DV; and its lse.
fn out_row(sequence: Sequence, item: Item, row: u32) -> u32 {
    let query = row / args.group;
    let head = item.head * args.group + row % args.group;
    let token = select(sequence.index * args.out_batch + query * args.out_token,
                       (sequence.query_begin + query) * args.out_token, args.out_batch == 0u);
    return token + head * args.out_head;
}
