//! The part of Python's pickle that PyTorch writes for weights, read without running anything.
//!
//! A pickle is a program for a stack machine. This one knows the opcodes that tensors, dictionaries, numbers and strings
//! need, calls nothing, and turns every object it does not know (an optimiser's options, `argparse.Namespace`) into an
//! opaque value. All values live in one arena, so that hostile nesting can neither recurse nor multiply, and their memory
//! is counted: a byte of a program can make a value of many.
use std::collections::HashMap;
use std::rc::Rc;

use super::table::StoredType;
use crate::shown;

/// Longest program. That of a training state with optimiser is about one megabyte.
pub(crate) const MAX_PICKLE: u64 = 8 << 20;

/// Most bytes of all values together. A training state's need about two.
const MAX_MEMORY: usize = 64 << 20;

/// Longest key of a storage and name of a class: they are copied at each use, and a few bytes can make many uses.
const MAX_NAME: usize = 256;

/// Place of a value in the arena.
pub(crate) type Id = u32;

/// What a program makes.
#[derive(Debug)]
pub(crate) enum Value {
    Int(i64),
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or function, `module.name`.
    Global(String),
    Storage(Rc<Storage>),
    Tensor(Box<TensorRef>),
    /// A tensor of a kind that is not read, and what it is, as the rest of a sentence about it.
    Unread(String),
    /// Numbers and objects that no weight needs.
    Opaque,
}

impl Value {
    /// Bytes that it takes, those beside the arena among them. Lists and dictionaries start empty, what is put into them
    /// is on the stack: 4 bytes for at least one of the program's.
    fn memory(&self) -> usize {
        let beside = match self {
            Self::Text(text) | Self::Global(text) | Self::Unread(text) => text.len(),
            Self::Tuple(items) | Self::List(items) => 4 * items.len(),
            Self::Storage(storage) => size_of::<Storage>() + storage.key.len(),
            Self::Tensor(tensor) => {
                size_of::<TensorRef>()
                    + 8 * (tensor.shape.len() + tensor.strides.len())
                    // Which may be its own.
                    + size_of::<Storage>()
                    + tensor.storage.key.len()
            }
            Self::Int(_) | Self::Dict(_) | Self::Opaque => 0,
        };
        // And what an allocation costs.
        size_of::<Self>() + beside + if beside > 0 { 16 } else { 0 }
    }
}

/// A block of numbers outside of the pickle.
#[derive(Debug)]
pub(crate) struct Storage {
    pub dtype: StoredType,
    pub key: String,
    pub elements: usize,
}

/// A view into a storage, in elements.
#[derive(Debug)]
pub(crate) struct TensorRef {
    pub storage: Rc<Storage>,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// What a program left.
#[derive(Debug)]
pub(crate) struct Pickle {
    pub arena: Vec<Value>,
    pub root: Id,
    /// Bytes read, up to and with STOP.
    pub length: usize,
}

impl Pickle {
    pub fn value(&self, id: Id) -> &Value {
        &self.arena[id as usize]
    }

    /// The text of a value, if it is one; numbers as dictionaries' keys too.
    pub fn text(&self, id: Id) -> Option<String> {
        match self.value(id) {
            Value::Text(text) => Some(text.clone()),
            Value::Int(n) => Some(n.to_string()),
            _ => None,
        }
    }
}

/// Runs the program at the start of `bytes`.
///
/// # Errors
/// What is wrong, and at which byte.
pub(crate) fn run(bytes: &[u8]) -> Result<Pickle, String> {
    let mut machine = Machine {
        bytes,
        at: 0,
        arena: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        memory: 0,
    };
    let root = loop {
        let start = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(root)) => break root,
            Err(reason) => return Err(format!("{reason} at byte {start} of the pickle")),
        }
    };
    Ok(Pickle {
        length: machine.at,
        arena: machine.arena,
        root,
    })
}

/// What a tensor is that this function of PyTorch makes, and what to do.
fn unread(function: &str) -> Option<String> {
    let kind = function.strip_prefix("torch._utils._rebuild_")?;
    Some(match kind {
        "sparse_tensor" => "is sparse; save it dense (tensor.to_dense())".into(),
        "qtensor" => "is quantized; save it as floats (tensor.dequantize())".into(),
        "meta_tensor_no_storage" => {
            "is on the device 'meta' and has no numbers; save the weights after loading them".into()
        }
        "wrapper_subclass" => {
            "wraps other tensors (torchao, DTensor); save plain ones (tensor.dequantize(), tensor.full_tensor())".into()
        }
        kind => format!("is a {}, which is not read; save plain tensors", shown(kind)),
    })
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    arena: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Bytes of what the program made.
    memory: usize,
}

type Step<T> = Result<T, String>;

impl Machine<'_> {
    fn step(&mut self) -> Step<Option<Id>> {
        let opcode = self.take(1)?[0];
        match opcode {
            // PROTO, FRAME
            0x80 => _ = self.take(1)?,
            0x95 => _ = self.take(8)?,
            // STOP
            b'.' => return self.pop().map(Some),
            // MARK, POP, POP_MARK, DUP
            b'(' => self.marks.push(self.stack.len()),
            b'0' => match self.marks.last() {
                Some(&mark) if mark == self.stack.len() => _ = self.marks.pop(),
                _ => _ = self.pop()?,
            },
            b'1' => _ = self.pop_mark()?,
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            // NONE, NEWTRUE, NEWFALSE, BINFLOAT
            b'N' => self.push(Value::Opaque)?,
            0x88 => self.push(Value::Int(1))?,
            0x89 => self.push(Value::Int(0))?,
            b'G' => {
                self.take(8)?;
                self.push(Value::Opaque)?;
            }
            // BININT, BININT1, BININT2, LONG1, LONG4
            b'J' => {
                let n = self.number(4)? as u32 as i32;
                self.push(Value::Int(n.into()))?;
            }
            b'K' => self.int(1)?,
            b'M' => self.int(2)?,
            0x8a => {
                let length = self.number(1)?;
                self.long(length)?;
            }
            0x8b => {
                let length = self.number(4)?;
                self.long(length)?;
            }
            // BINUNICODE, SHORT_BINUNICODE, BINUNICODE8
            b'X' => self.text(4)?,
            0x8c => self.text(1)?,
            0x8d => self.text(8)?,
            // BINSTRING, SHORT_BINSTRING, BINBYTES, SHORT_BINBYTES, BINBYTES8
            b'T' | b'B' => self.skip_text(4)?,
            b'U' | b'C' => self.skip_text(1)?,
            0x8e => self.skip_text(8)?,
            // EMPTY_TUPLE, TUPLE1..3, TUPLE
            b')' => self.push(Value::Tuple(Vec::new()))?,
            0x85..=0x87 => {
                let items = self.pop_last(usize::from(opcode - 0x84))?;
                self.push(Value::Tuple(items))?;
            }
            b't' => {
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items))?;
            }
            // EMPTY_LIST, LIST, EMPTY_SET, FROZENSET
            b']' | 0x8f => self.push(Value::List(Vec::new()))?,
            b'l' | 0x91 => {
                let items = self.pop_mark()?;
                self.push(Value::List(items))?;
            }
            // APPEND, APPENDS, ADDITEMS
            b'a' => {
                let items = self.pop_last(1)?;
                self.extend_list(items)?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.extend_list(items)?;
            }
            // EMPTY_DICT, DICT, SETITEM, SETITEMS
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b'd' => {
                let items = self.pop_mark()?;
                self.push(Value::Dict(Vec::new()))?;
                self.extend_dict(items)?;
            }
            b's' => {
                let items = self.pop_last(2)?;
                self.extend_dict(items)?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.extend_dict(items)?;
            }
            // BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET
            b'q' | b'r' => {
                let key = self.number(if opcode == b'q' { 1 } else { 4 })? as u32;
                self.remember(key)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            b'h' | b'j' => {
                let key = self.number(if opcode == b'h' { 1 } else { 4 })? as u32;
                let id = *self.memo.get(&key).ok_or("recalls what was never stored")?;
                self.stack.push(id);
            }
            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global(format!("{module}.{name}")))?;
            }
            0x93 => {
                let parts = self.pop_last(2)?;
                let name = match (self.value(parts[0]), self.value(parts[1])) {
                    (Value::Text(module), Value::Text(name)) => {
                        if module.len() + name.len() > MAX_NAME {
                            return Err("a class with a name of more than 256 bytes".into());
                        }
                        format!("{module}.{name}")
                    }
                    _ => return Err("a class without a name".into()),
                };
                self.push(Value::Global(name))?;
            }
            // REDUCE, NEWOBJ, NEWOBJ_EX, BUILD
            b'R' | 0x81 => {
                let call = self.pop_last(2)?;
                let value = self.call(call[0], call[1])?;
                self.push_or(value)?;
            }
            0x92 => {
                self.pop_last(3)?;
                self.push(Value::Opaque)?;
            }
            b'b' => _ = self.pop()?,
            // BINPERSID
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(Value::Storage(Rc::new(storage)))?;
            }
            other => return Err(format!("unexpected opcode 0x{other:02x}")),
        }
        Ok(None)
    }

    fn take(&mut self, count: usize) -> Step<&[u8]> {
        let end = self.at.checked_add(count);
        let part = end.and_then(|end| self.bytes.get(self.at..end));
        let part = part.ok_or("the program ends early")?;
        self.at += count;
        Ok(part)
    }

    fn number(&mut self, bytes: usize) -> Step<u64> {
        let low = self.take(bytes)?.iter().rev();
        Ok(low.fold(0, |n, &b| n << 8 | u64::from(b)))
    }

    fn int(&mut self, bytes: usize) -> Step<()> {
        let n = self.number(bytes)?;
        self.push(Value::Int(n as i64))
    }

    /// A two's complement integer of any length; beyond 64 bits nothing needs it.
    fn long(&mut self, length: u64) -> Step<()> {
        let bytes = self.take(usize::try_from(length).map_err(|_| "a number too long")?)?;
        if bytes.len() > 8 {
            return self.push(Value::Opaque);
        }
        let fill = match bytes.last() {
            Some(b) if b & 0x80 != 0 => 0xff,
            _ => 0,
        };
        let mut all = [fill; 8];
        all[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(all)))
    }

    fn text(&mut self, length: usize) -> Step<()> {
        let length = self.number(length)?;
        let bytes = self.take(usize::try_from(length).map_err(|_| "a text too long")?)?;
        let text = String::from_utf8(bytes.to_vec()).map_err(|_| "a text that is not UTF-8")?;
        self.push(Value::Text(text))
    }

    fn skip_text(&mut self, length: usize) -> Step<()> {
        let length = self.number(length)?;
        self.take(usize::try_from(length).map_err(|_| "bytes too long")?)?;
        self.push(Value::Opaque)
    }

    fn line(&mut self) -> Step<String> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&b| b == b'\n');
        let length = length.ok_or("the program ends early")?;
        let line = std::str::from_utf8(self.take(length + 1)?);
        let line = line.map_err(|_| "a name that is not UTF-8")?;
        Ok(line.trim_end().to_owned())
    }

    fn value(&self, id: Id) -> &Value {
        &self.arena[id as usize]
    }

    fn push(&mut self, value: Value) -> Step<()> {
        self.push_or(Ok(value))
    }

    /// Pushes a new value, or one that is there already.
    fn push_or(&mut self, value: Result<Value, Id>) -> Step<()> {
        let id = match value {
            Err(id) => id,
            Ok(value) => {
                self.take_memory(value.memory())?;
                self.arena.push(value);
                (self.arena.len() - 1) as Id
            }
        };
        self.stack.push(id);
        Ok(())
    }

    fn take_memory(&mut self, bytes: usize) -> Step<()> {
        self.memory += bytes;
        match self.memory <= MAX_MEMORY {
            true => Ok(()),
            false => Err(format!("its values need more than {} MB", MAX_MEMORY >> 20)),
        }
    }

    /// Stores the top of the stack under a number.
    fn remember(&mut self, key: u32) -> Step<()> {
        let top = self.top()?;
        if self.memo.insert(key, top).is_none() {
            self.take_memory(2 * size_of::<(u32, Id)>())?;
        }
        Ok(())
    }

    /// Height below which the current mark's items must not reach.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Step<Id> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => Err("the stack is empty".into()),
        }
    }

    fn pop(&mut self) -> Step<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_last(&mut self, count: usize) -> Step<Vec<Id>> {
        let start = self.stack.len().checked_sub(count);
        match start.filter(|&start| start >= self.floor()) {
            Some(start) => Ok(self.stack.split_off(start)),
            None => Err("the stack is empty".into()),
        }
    }

    fn pop_mark(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().ok_or("there is no mark")?;
        Ok(self.stack.split_off(mark))
    }

    fn extend_list(&mut self, items: Vec<Id>) -> Step<()> {
        let top = self.top()?;
        match &mut self.arena[top as usize] {
            Value::List(list) => list.extend(items),
            Value::Opaque => {}
            _ => return Err("appends to what is no list".into()),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: Vec<Id>) -> Step<()> {
        let top = self.top()?;
        match &mut self.arena[top as usize] {
            Value::Dict(dict) => dict.extend(items.chunks_exact(2).map(|p| (p[0], p[1]))),
            Value::Opaque => {}
            _ => return Err("sets items of what is no dictionary".into()),
        }
        Ok(())
    }

    /// What a call makes: a new value, or one of its arguments.
    fn call(&self, mut function: Id, mut arguments: Id) -> Step<Result<Value, Id>> {
        // A tensor with attributes set on it, or of a class of its own: how it would be made without them.
        if let (Value::Global(name), Value::Tuple(parts)) =
            (self.value(function), self.value(arguments))
        {
            if let ("torch._tensor._rebuild_from_type_v2", [inner, _, inside, ..]) =
                (name.as_str(), &parts[..])
            {
                (function, arguments) = (*inner, *inside);
            }
        }
        let Value::Global(name) = self.value(function) else {
            return Ok(Ok(Value::Opaque));
        };
        let Value::Tuple(arguments) = self.value(arguments) else {
            return Err(format!("calls {name} with what is no tuple"));
        };
        Ok(Ok(match (name.as_str(), &arguments[..]) {
            ("collections.OrderedDict", []) => Value::Dict(Vec::new()),
            ("torch._utils._rebuild_tensor_v2", [storage, offset, shape, strides, ..])
            | ("torch._utils._rebuild_tensor", [storage, offset, shape, strides]) => {
                Value::Tensor(Box::new(self.tensor(*storage, *offset, *shape, *strides)?))
            }
            (
                "torch._utils._rebuild_tensor_v3",
                [storage, offset, shape, strides, _, _, dtype, ..],
            ) => {
                let mut tensor = self.tensor(*storage, *offset, *shape, *strides)?;
                let dtype = self.untyped(*dtype)?;
                tensor.storage = Rc::new(Storage {
                    dtype,
                    key: tensor.storage.key.clone(),
                    elements: tensor.storage.elements / dtype.size(),
                });
                Value::Tensor(Box::new(tensor))
            }
            // With attributes set on it: they are no weights.
            (
                "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state",
                [tensor, ..],
            ) => return Ok(Err(*tensor)),
            (name, _) => unread(name).map_or(Value::Opaque, Value::Unread),
        }))
    }

    fn tensor(&self, storage: Id, offset: Id, shape: Id, strides: Id) -> Step<TensorRef> {
        let Value::Storage(storage) = self.value(storage) else {
            return Err("a tensor without a storage".into());
        };
        Ok(TensorRef {
            storage: storage.clone(),
            offset: self.size(offset)?,
            shape: self.numbers(shape)?,
            strides: self.numbers(strides)?,
        })
    }

    /// The type of a tensor on an untyped storage: those that came after typed storages.
    fn untyped(&self, id: Id) -> Step<StoredType> {
        let Value::Global(name) = self.value(id) else {
            return Err("a tensor without a type".into());
        };
        Ok(match name.as_str() {
            "torch.float8_e4m3fn" => StoredType::Other("F8_E4M3", 1),
            "torch.float8_e5m2" => StoredType::Other("F8_E5M2", 1),
            "torch.uint16" => StoredType::Other("U16", 2),
            "torch.uint32" => StoredType::Other("U32", 4),
            "torch.uint64" => StoredType::Other("U64", 8),
            other => return Err(format!("a tensor of the unknown type {}", shown(other))),
        })
    }

    fn size(&self, id: Id) -> Step<usize> {
        match self.value(id) {
            Value::Int(n) => usize::try_from(*n).map_err(|_| format!("a size of {n}")),
            _ => Err("a size that is no number".into()),
        }
    }

    fn numbers(&self, id: Id) -> Step<Vec<usize>> {
        match self.value(id) {
            Value::Tuple(items) | Value::List(items) => {
                items.iter().map(|&id| self.size(id)).collect()
            }
            _ => Err("a shape that is no tuple of numbers".into()),
        }
    }

    /// `("storage", class, key, device, elements, ..)`
    fn storage(&self, id: Id) -> Step<Storage> {
        let wrong = || "a persistent id that is no storage".to_owned();
        let Value::Tuple(parts) = self.value(id) else {
            return Err(wrong());
        };
        let [kind, class, key, _, elements, ..] = &parts[..] else {
            return Err(wrong());
        };
        let (Value::Text(kind), Value::Global(class), Value::Text(key)) =
            (self.value(*kind), self.value(*class), self.value(*key))
        else {
            return Err(wrong());
        };
        if key.len() > MAX_NAME {
            return Err(format!("a storage key of {} bytes", key.len()));
        }
        if kind != "storage" {
            return Err(wrong());
        }
        let dtype = match class.as_str() {
            "torch.FloatStorage" => StoredType::F32,
            "torch.DoubleStorage" => StoredType::F64,
            "torch.HalfStorage" => StoredType::F16,
            "torch.BFloat16Storage" => StoredType::Bf16,
            "torch.LongStorage" => StoredType::Other("I64", 8),
            "torch.IntStorage" => StoredType::Other("I32", 4),
            "torch.ShortStorage" => StoredType::Other("I16", 2),
            "torch.CharStorage" => StoredType::Other("I8", 1),
            "torch.ByteStorage" => StoredType::Other("U8", 1),
            "torch.BoolStorage" => StoredType::Other("BOOL", 1),
            "torch.ComplexFloatStorage" => StoredType::Other("C64", 8),
            "torch.ComplexDoubleStorage" => StoredType::Other("C128", 16),
            "torch.QInt8Storage" => StoredType::Other("QINT8", 1),
            "torch.QUInt8Storage" => StoredType::Other("QUINT8", 1),
            "torch.QInt32Storage" => StoredType::Other("QINT32", 4),
            // Bytes, of which the tensor tells the type.
            "torch.storage.UntypedStorage" => StoredType::Other("U8", 1),
            other => return Err(format!("a storage of the unknown class {other}")),
        };
        Ok(Storage {
            dtype,
            key: key.clone(),
            elements: self.size(*elements)?,
        })
    }
}
