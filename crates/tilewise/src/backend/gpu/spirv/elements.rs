//! What WGSL cannot say of a matrix, but SPIR-V can: operations on the elements that each thread holds.
//!
//! In a kernel's text they are functions of these names, whose bodies only have the right types; a call becomes what the
//! function stands for. Matrices C are of f32. Some operations are of rows: a value for each row that a thread has elements
//! of is kept in the first of these, and the others, which nobody reads, take no registers.
//!
//! | function | |
//! |---|---|
//! | `matrix_exp2(x)` | 2 to the power of each element |
//! | `matrix_times(x, y)` | the products of elements |
//! | `matrix_peak(x)` | a number: the largest of this thread's elements that are numbers |
//! | `matrix_factor_of(x)` | the matrix A with the same elements, rounded to f16 |
//! | `matrix_of_rows(x)` | each element is the value of its row |
//! | `matrix_between(x, y, first, end, z)` | elements are `z` where those of `y` are below the row's `first`, or not below its `end` |
//! | `matrix_row_add(x, y)` | to each row's value of `x` the elements of `y` are added, those of this thread |
//! | `matrix_row_peaks(x)` | the largest of this thread's elements of each row that are numbers |
//! | `matrix_row(x, n)`, `matrix_set_row(x, n, z)` | the value of this thread's n-th row |
//! | `matrix_element(x, n)`, `matrix_factor(x, n)`, `matrix_weight(x, n)` | an element of a matrix C, A or B |
//! | `matrix_of_words(words)` | the matrix B whose elements are the halves of words, in the order of elements |

use std::collections::HashMap;

use super::super::elements::Elements;
use super::{CAPABILITY, CONSTANT, DECORATE, FLOAT16, FUNCTION, HEADER, Instructions, TYPE_FLOAT};

const NO_CONTRACTION: u32 = 42;
const UNDEFINED: u32 = 1;
const NAME: u32 = 5;
const MEMBER_NAME: u32 = 6;
const EXTENDED_IMPORT: u32 = 11;
const EXTENDED: u32 = 12;
const TYPE_BOOL: u32 = 20;
const TYPE_INT: u32 = 21;
const TYPE_VECTOR: u32 = 23;
const FUNCTION_END: u32 = 56;
const FUNCTION_CALL: u32 = 57;
const EXTRACT: u32 = 81;
const INSERT: u32 = 82;
const CONVERT: u32 = 115;
const BITCAST: u32 = 124;
const ADD: u32 = 129;
const MULTIPLY: u32 = 133;
const AND: u32 = 167;
const SELECT: u32 = 169;
const LESS: u32 = 184;
const NOT_LESS: u32 = 190;
// Of the extended instructions of GLSL. The second takes the other operand where one is no number.
const EXP2: u32 = 29;
const NUMBERS_MAX: u32 = 80;

#[derive(Debug, Clone, Copy)]
enum Operation {
    Exp2,
    Times,
    Peak,
    FactorOf,
    OfRows,
    Between,
    RowAdd,
    RowPeaks,
    Row,
    SetRow,
    Element,
    OfWords,
}

const OPERATIONS: [(&str, Operation); 14] = [
    ("matrix_exp2", Operation::Exp2),
    ("matrix_times", Operation::Times),
    ("matrix_peak", Operation::Peak),
    ("matrix_factor_of", Operation::FactorOf),
    ("matrix_of_rows", Operation::OfRows),
    ("matrix_between", Operation::Between),
    ("matrix_row_add", Operation::RowAdd),
    ("matrix_row_peaks", Operation::RowPeaks),
    ("matrix_row", Operation::Row),
    ("matrix_set_row", Operation::SetRow),
    ("matrix_element", Operation::Element),
    ("matrix_factor", Operation::Element),
    ("matrix_weight", Operation::Element),
    ("matrix_of_words", Operation::OfWords),
];

/// A module without names, in which calls of the functions above are the operations that they stand for.
pub(super) fn elementwise(words: &[u32], elements: Option<&Elements>) -> Result<Vec<u32>, String> {
    let of = |operation: u32| Instructions(&words[HEADER..]).filter(move |i| i[0] & 0xffff == operation);
    let stand_ins: HashMap<u32, Operation> = of(NAME)
        .filter_map(|i| {
            let name = text(&i[2..]);
            Some((i[1], OPERATIONS.iter().find(|(own, _)| *own == name)?.1))
        })
        .collect();
    let mut writer = Writer::of(words);
    let mut decorations_at = None;
    // Where words hold what is rounded, the module may have no type for it yet.
    let declares_half = writer.half == 0 && !stand_ins.is_empty();
    if declares_half {
        writer.half = writer.new_id();
        writer.put(CAPABILITY, &[FLOAT16]);
    }
    let declares_pair = writer.pair == 0 && stand_ins.values().any(|own| matches!(own, Operation::OfWords));
    if declares_pair {
        writer.pair = writer.new_id();
    }
    let mut leaving = false;
    for instruction in Instructions(&words[HEADER..]) {
        if instruction[0] & 0xffff == DECORATE {
            decorations_at.get_or_insert(writer.out.len());
        }
        match (instruction[0] & 0xffff, instruction) {
            (NAME | MEMBER_NAME, _) => {}
            (FUNCTION, [_, _, id, ..]) if stand_ins.contains_key(id) => leaving = true,
            (FUNCTION_END, _) if leaving => leaving = false,
            _ if leaving => {}
            (FUNCTION_CALL, [_, kind, result, function, arguments @ ..])
                if stand_ins.contains_key(function) =>
            {
                let call = Call { kind: *kind, result: *result, arguments };
                writer.call(stand_ins[function], &call, elements)?;
            }
            _ => writer.out.extend(instruction),
        }
        let is_type = |id| instruction[0] & 0xffff == TYPE_FLOAT && instruction[1] == id;
        if declares_half && is_type(writer.float) {
            writer.put(TYPE_FLOAT, &[writer.half, 16]);
        }
        if declares_pair && is_type(if declares_half { writer.float } else { writer.half }) {
            writer.put(TYPE_VECTOR, &[writer.pair, writer.half, 2]);
        }
    }
    writer.out[3] = writer.next;
    if !writer.kept_apart.is_empty() {
        let at = decorations_at.ok_or("sums of rows, in a module that decorates nothing")?;
        let decorations = writer.kept_apart.iter().flat_map(|&id| [3 << 16 | DECORATE, id, NO_CONTRACTION]);
        let decorations: Vec<u32> = decorations.collect();
        writer.out.splice(at..at, decorations);
    }
    Ok(writer.out)
}

/// A call of a function that stands for an operation: ids of its type, of its result, and of what it is given.
struct Call<'a> {
    kind: u32,
    result: u32,
    arguments: &'a [u32],
}

impl Call<'_> {
    fn argument(&self, n: usize) -> Result<u32, String> {
        let argument = self.arguments.get(n).copied();
        argument.ok_or_else(|| "an operation on elements, of too little".to_owned())
    }
}

struct Writer {
    out: Vec<u32>,
    /// The first id that is free.
    next: u32,
    /// What constants are, by their ids.
    numbers: HashMap<u32, u32>,
    // Ids of types, and of the extended instructions; 0 for what the module does not have.
    float: u32,
    half: u32,
    /// Two halves.
    pair: u32,
    word: u32,
    bool: u32,
    glsl: u32,
    /// Sums that no compiler may join with a product before them, so that the bits of all kernels are the same.
    kept_apart: Vec<u32>,
}

impl Writer {
    /// A module so far, of which only the header is written.
    fn of(words: &[u32]) -> Self {
        let of = |operation: u32| Instructions(&words[HEADER..]).filter(move |i| i[0] & 0xffff == operation);
        let float = |bits: u32| of(TYPE_FLOAT).find(|i| i[2] == bits).map_or(0, |i| i[1]);
        let half = float(16);
        Self {
            out: words[..HEADER].to_vec(),
            next: words[3],
            numbers: of(CONSTANT).map(|i| (i[2], i[3])).collect(),
            float: float(32),
            half,
            pair: of(TYPE_VECTOR).find(|i| i[2..] == [half, 2]).map_or(0, |i| i[1]),
            word: of(TYPE_INT).find(|i| i[2..] == [32, 0]).map_or(0, |i| i[1]),
            bool: of(TYPE_BOOL).next().map_or(0, |i| i[1]),
            glsl: of(EXTENDED_IMPORT).next().map_or(0, |i| i[1]),
            kept_apart: Vec::new(),
        }
    }

    fn new_id(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }

    fn put(&mut self, operation: u32, operands: &[u32]) {
        self.out.push((operands.len() as u32 + 1) << 16 | operation);
        self.out.extend(operands);
    }

    /// An instruction with a result of its own.
    fn value(&mut self, operation: u32, kind: u32, operands: &[u32]) -> u32 {
        let result = self.new_id();
        self.put(operation, &[&[kind, result], operands].concat());
        result
    }

    fn element(&mut self, matrix: u32, at: u32) -> u32 {
        self.value(EXTRACT, self.float, &[matrix, at])
    }

    /// A matrix `from` with some elements replaced, as the result of a call.
    fn replaced(&mut self, call: &Call<'_>, from: u32, values: &[(u32, u32)]) {
        let mut so_far = from;
        for (i, &(at, value)) in values.iter().enumerate() {
            let to = if i + 1 == values.len() { call.result } else { self.new_id() };
            self.put(INSERT, &[call.kind, to, value, so_far, at]);
            so_far = to;
        }
    }

    /// The largest of elements that are numbers, of at least one.
    fn peak(&mut self, matrix: u32, mut of: impl Iterator<Item = u32>) -> u32 {
        let mut peak = of.next().map_or(0, |at| self.element(matrix, at));
        for at in of {
            let element = self.element(matrix, at);
            peak = self.value(EXTENDED, self.float, &[self.glsl, NUMBERS_MAX, peak, element]);
        }
        peak
    }

    /// What a function stands for, in place of a call of it.
    fn call(
        &mut self,
        operation: Operation,
        call: &Call<'_>,
        elements: Option<&Elements>,
    ) -> Result<(), String> {
        let x = call.argument(0)?;
        // Which element or row is a constant, given by its id.
        if let Operation::Element = operation {
            let at = *self.numbers.get(&call.argument(1)?).ok_or("an element without a constant number")?;
            self.put(EXTRACT, &[call.kind, call.result, x, at]);
            return Ok(());
        }
        let elements = elements.ok_or("which elements threads hold is not known")?;
        let glsl = self.glsl;
        if [self.float, self.half, self.bool, glsl].contains(&0) {
            return Err("operations on elements, in a module without the types for them".to_owned());
        }
        let row = |writer: &Self| -> Result<u32, String> {
            let number = writer.numbers.get(&call.argument(1)?).ok_or("a row without a constant number")?;
            let first = elements.firsts().nth(*number as usize);
            Ok(first.ok_or("a row that threads do not have")?)
        };
        match operation {
            Operation::Times => self.put(MULTIPLY, &[call.kind, call.result, x, call.argument(1)?]),
            Operation::Peak => {
                // A result has an id that is given: the largest, and itself.
                let peak = self.peak(x, 0..elements.count());
                self.put(EXTENDED, &[self.float, call.result, glsl, NUMBERS_MAX, peak, peak]);
            }
            Operation::Row => {
                let first = row(self)?;
                self.put(EXTRACT, &[self.float, call.result, x, first]);
            }
            Operation::SetRow => {
                let first = row(self)?;
                self.replaced(call, x, &[(first, call.argument(2)?)]);
            }
            Operation::OfWords => {
                let mut values = Vec::new();
                for word in 0..elements.count().div_ceil(2) {
                    let own = self.value(EXTRACT, self.word, &[x, word]);
                    let pair = self.value(BITCAST, self.pair, &[own]);
                    for half in 0..2 {
                        values.push((2 * word + half, self.value(EXTRACT, self.half, &[pair, half])));
                    }
                }
                let from = self.value(UNDEFINED, call.kind, &[]);
                self.replaced(call, from, &values);
            }
            Operation::FactorOf => {
                let from = self.value(UNDEFINED, call.kind, &[]);
                let values = self.values(operation, call, elements)?;
                self.replaced(call, from, &values);
            }
            _ => {
                let values = self.values(operation, call, elements)?;
                self.replaced(call, x, &values);
            }
        }
        Ok(())
    }

    /// The elements that an operation computes, by their numbers in the matrix that it gives.
    fn values(
        &mut self,
        operation: Operation,
        call: &Call<'_>,
        elements: &Elements,
    ) -> Result<Vec<(u32, u32)>, String> {
        let (x, float) = (call.argument(0)?, self.float);
        let all = 0..elements.count();
        let of_row = |first: u32| (0..elements.count()).filter(move |&at| elements.first(at) == first);
        let mut values = Vec::new();
        match operation {
            Operation::Exp2 => {
                for at in all {
                    let element = self.element(x, at);
                    values.push((at, self.value(EXTENDED, float, &[self.glsl, EXP2, element])));
                }
            }
            Operation::FactorOf => {
                for at in all {
                    let element = self.element(x, at);
                    values.push((elements.factor(at), self.value(CONVERT, self.half, &[element])));
                }
            }
            Operation::OfRows => {
                values.extend(all.map(|at| (at, self.element(x, elements.first(at)))));
            }
            Operation::Between => {
                let [y, first, end, otherwise] = [1, 2, 3, 4].map(|n| call.argument(n));
                let (y, first, end, otherwise) = (y?, first?, end?, otherwise?);
                for at in all {
                    let (own, place) = (self.element(x, at), self.element(y, at));
                    let low = self.element(first, elements.first(at));
                    let high = self.element(end, elements.first(at));
                    let above = self.value(NOT_LESS, self.bool, &[place, low]);
                    let below = self.value(LESS, self.bool, &[place, high]);
                    let inside = self.value(AND, self.bool, &[above, below]);
                    values.push((at, self.value(SELECT, float, &[inside, own, otherwise])));
                }
            }
            Operation::RowAdd => {
                let y = call.argument(1)?;
                for first in elements.firsts() {
                    let mut sum = self.element(x, first);
                    for at in of_row(first) {
                        let element = self.element(y, at);
                        sum = self.value(ADD, float, &[sum, element]);
                        self.kept_apart.push(sum);
                    }
                    values.push((first, sum));
                }
            }
            Operation::RowPeaks => {
                values.extend(elements.firsts().map(|first| (first, self.peak(x, of_row(first)))));
            }
            other => return Err(format!("{other:?} computes no elements")),
        }
        Ok(values)
    }
}

/// A string as SPIR-V has it: bytes in words, up to a zero.
fn text(words: &[u32]) -> String {
    let bytes = words.iter().flat_map(|word| word.to_le_bytes()).take_while(|byte| *byte != 0);
    String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::super::elements::tests::nvidia;
    use super::super::{SubgroupBarrier, translate};
    use super::*;

    const KERNEL: &str = "
enable f16;
enable wgpu_cooperative_matrix;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
var<workgroup> tile: array<f32, 256>;
var<workgroup> halves: array<f16, 256>;
fn matrix_exp2(x: coop_mat16x16<f32, C>) -> coop_mat16x16<f32, C> { return x; }
fn matrix_row_add(x: coop_mat16x16<f32, C>, y: coop_mat16x16<f32, C>) -> coop_mat16x16<f32, C> { return x; }
fn matrix_row(x: coop_mat16x16<f32, C>, row: u32) -> f32 { return 0.0; }
fn matrix_factor_of(x: coop_mat16x16<f32, C>) -> coop_mat16x16<f16, A> { return coop_mat16x16<f16, A>(); }
@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) thread: u32) {
    let x = matrix_exp2(coopLoadT<coop_mat16x16<f32, C>>(&tile[0], 16u));
    var sums = coop_mat16x16<f32, C>();
    sums = matrix_row_add(sums, x);
    let b = coopLoadT<coop_mat16x16<f16, B>>(&halves[0], 16u);
    coopStoreT(coopMultiplyAdd(matrix_factor_of(x), b, x), &tile[0], 16u);
    out[thread] = select(0.0, matrix_row(sums, 1u), thread < 3u);
}";

    #[test]
    fn calls_become_operations_on_the_elements_of_each_thread() {
        let words = translate(KERNEL, SubgroupBarrier::Waits, Some(&nvidia())).unwrap().words;
        let count = |operation| Instructions(&words[HEADER..]).filter(|i| i[0] & 0xffff == operation).count();
        assert_eq!([count(FUNCTION_CALL), count(NAME), count(FUNCTION)], [0, 0, 1]);
        // Of 2^x eight elements, of two sums five each, of the factor eight, and one of a row.
        assert_eq!(count(EXTRACT), 8 + 2 * 5 + 8 + 1);
        assert_eq!([count(INSERT), count(ADD), count(CONVERT)], [8 + 2 + 8, 8, 8]);
        let of = |operation| Instructions(&words[HEADER..]).filter(move |i| i[0] & 0xffff == operation);
        let apart = of(DECORATE).filter(|i| i[2] == NO_CONTRACTION).map(|i| i[1]);
        assert!(apart.eq(of(ADD).map(|i| i[2])), "each sum is kept apart from what is multiplied before it");
        // No id is made twice.
        let mut results: Vec<u32> = Instructions(&words[HEADER..])
            .filter(|i| matches!(i[0] & 0xffff, EXTRACT | INSERT | ADD | CONVERT | EXTENDED | UNDEFINED))
            .map(|i| i[2])
            .collect();
        let all = results.len();
        results.sort_unstable();
        results.dedup();
        assert_eq!(results.len(), all);
        assert!(results.last() < Some(&words[3]));
    }

    #[test]
    fn words_become_the_elements_of_a_matrix() {
        let text = KERNEL.replace("fn matrix_row_add", "fn matrix_of_words(x: vec4<u32>) -> coop_mat16x16<f16, B> { return coop_mat16x16<f16, B>(); }\nfn matrix_row_add")
            .replace("coopLoadT<coop_mat16x16<f16, B>>(&halves[0], 16u)", "matrix_of_words(vec4<u32>(thread))");
        let words = translate(&text, SubgroupBarrier::Waits, Some(&nvidia())).unwrap().words;
        let of = |operation| Instructions(&words[HEADER..]).filter(move |i| i[0] & 0xffff == operation);
        let half = of(TYPE_FLOAT).find(|i| i[2] == 16).unwrap()[1];
        let pairs: Vec<u32> = of(TYPE_VECTOR).filter(|i| i[2..] == [half, 2]).map(|i| i[1]).collect();
        assert_eq!(pairs.len(), 1, "the type is declared once");
        // Each of four words is a pair, whose halves become elements, the lower first.
        assert_eq!(of(BITCAST).filter(|i| i[1] == pairs[0]).count(), 4);
        let places: Vec<[u32; 2]> = of(EXTRACT).filter(|i| i[1] == half).map(|i| [i[3], i[4]]).collect();
        let casts: Vec<u32> = of(BITCAST).filter(|i| i[1] == pairs[0]).map(|i| i[2]).collect();
        let want: Vec<[u32; 2]> = casts.iter().flat_map(|&pair| [[pair, 0], [pair, 1]]).collect();
        assert_eq!(places, want);
    }

    #[test]
    fn a_module_whose_halves_are_in_words_gets_their_type() {
        let words = translate(
            &KERNEL.replace("f16>", "f32>").replace("<f16,", "<f32,").replace("array<f16", "array<f32"),
            SubgroupBarrier::Waits,
            Some(&nvidia()),
        );
        let words = words.unwrap().words;
        let of = |operation| Instructions(&words[HEADER..]).filter(move |i| i[0] & 0xffff == operation);
        let half = of(TYPE_FLOAT).find(|i| i[2] == 16).unwrap()[1];
        assert_eq!(of(TYPE_FLOAT).count(), 2);
        assert!(of(CAPABILITY).any(|i| i[1] == FLOAT16));
        assert!(of(CONVERT).count() == 8 && of(CONVERT).all(|i| i[1] == half));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let why = translate(KERNEL, SubgroupBarrier::Waits, None).err().unwrap();
        assert!(why.contains("not known"), "{why}");
        let text = KERNEL.replace("matrix_row(sums, 1u)", "matrix_row(sums, 2u)");
        let why = translate(&text, SubgroupBarrier::Waits, Some(&nvidia())).err().unwrap();
        assert!(why.contains("do not have"), "{why}");
        let text = KERNEL.replace("matrix_row(sums, 1u)", "matrix_row(sums, thread)");
        let why = translate(&text, SubgroupBarrier::Waits, Some(&nvidia())).err().unwrap();
        assert!(why.contains("constant"), "{why}");
    }
}
