//! The container, read with every length checked against the bytes that are left, so that a malformed
//! file costs neither memory nor a panic. Format: the GGUF specification, versions 2 and 3.

use std::collections::BTreeMap;

use candle_core::quantized::GgmlDType;

/// A metadata value. Integers of every width are widened.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(String),
    Array(Vec<Value>),
}

impl Value {
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(x) => Some(*x),
            Self::Signed(x) => u64::try_from(*x).ok(),
            _ => None,
        }
    }

    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Float(x) => Some(*x),
            Self::Unsigned(x) => Some(*x as f64),
            Self::Signed(x) => Some(*x as f64),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    pub fn as_array(&self) -> Option<&[Value]> {
        match self {
            Self::Array(values) => Some(values),
            _ => None,
        }
    }
}

/// One tensor: shape in row-major order and its bytes in its file.
#[derive(Debug, Clone)]
pub(crate) struct TensorInfo {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: GgmlDType,
    /// Which of the files of a split model.
    pub part: usize,
    pub start: usize,
    pub end: usize,
}

#[derive(Debug)]
pub(crate) struct Parsed {
    pub metadata: BTreeMap<String, Value>,
    pub tensors: Vec<TensorInfo>,
}

const MAX_KEY: usize = 65_535;
const MAX_TENSOR_NAME: usize = 256;
const MAX_DIMS: u32 = 4;
const MAX_NESTING: u32 = 4;
/// Far above real files: a thousand keys, a few thousand tensors, a million array elements.
const MAX_ENTRIES: u64 = 1 << 16;
const MAX_ELEMENTS: usize = 1 << 22;

type Result<T> = std::result::Result<T, String>;

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Array elements that may still come.
    elements_left: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8]> {
        let left = self.bytes.len() - self.at;
        if len > left {
            return Err(format!(
                "{what} needs {len} bytes at {}, the file has {left} left",
                self.at
            ));
        }
        let bytes = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(bytes)
    }

    fn number<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        Ok(self
            .take(N, what)?
            .try_into()
            .expect("take returns the asked length"))
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.number(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.number(what).map(u64::from_le_bytes)
    }

    fn string(&mut self, max: usize, what: &str) -> Result<String> {
        let len = self.u64(what)?;
        if len > max as u64 {
            return Err(format!("{what} is {len} bytes long, more than {max}"));
        }
        let bytes = self.take(len as usize, what)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| format!("{what} is not UTF-8"))
    }

    /// A count of things that take at least `bytes_each` bytes, so it cannot exceed what is left.
    fn count(&mut self, bytes_each: usize, what: &str) -> Result<usize> {
        let count = self.u64(what)?;
        let left = (self.bytes.len() - self.at) / bytes_each;
        if count > left as u64 {
            return Err(format!("{what}: {count} do not fit into the file"));
        }
        Ok(count as usize)
    }

    fn entries(&mut self, bytes_each: usize, what: &str) -> Result<usize> {
        let count = self.count(bytes_each, what)?;
        match count as u64 <= MAX_ENTRIES {
            true => Ok(count),
            false => Err(format!("{count} {what}, more than {MAX_ENTRIES}")),
        }
    }

    fn value(&mut self, kind: u32, key: &str, nesting: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(self.number::<1>(key)?[0])),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.number(key)?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.number(key)?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.number(key)?))),
            4 => Value::Unsigned(u64::from(self.u32(key)?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.number(key)?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.number(key)?))),
            7 => match self.number::<1>(key)?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => return Err(format!("{key} is a boolean with value {other}")),
            },
            8 => Value::String(self.string(self.bytes.len(), key)?),
            9 => self.array(key, nesting)?,
            10 => Value::Unsigned(self.u64(key)?),
            11 => Value::Signed(i64::from_le_bytes(self.number(key)?)),
            12 => Value::Float(f64::from_le_bytes(self.number(key)?)),
            other => return Err(format!("{key} has the unknown type {other}")),
        })
    }

    fn array(&mut self, key: &str, nesting: u32) -> Result<Value> {
        if nesting == 0 {
            return Err(format!("{key} nests more than {MAX_NESTING} arrays"));
        }
        let kind = self.u32(key)?;
        let bytes_each = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            9 => 12,
            _ => 8,
        };
        let count = self.count(bytes_each, key)?;
        self.elements_left = self.elements_left.checked_sub(count).ok_or_else(|| {
            format!("{key} of {count} elements makes more than {MAX_ELEMENTS} in all arrays")
        })?;
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            values.push(self.value(kind, key, nesting - 1)?);
        }
        Ok(Value::Array(values))
    }
}

/// Reads and checks the whole header.
///
/// # Errors
/// One sentence on what is wrong.
pub(crate) fn parse(bytes: &[u8]) -> Result<Parsed> {
    let mut reader = Reader {
        bytes,
        at: 0,
        elements_left: MAX_ELEMENTS,
    };
    if reader.take(4, "the magic")? != b"GGUF" {
        return Err("does not start with GGUF".to_owned());
    }
    match reader.u32("the version")? {
        2 | 3 => {}
        version if version > 16 && version.swap_bytes() < 16 => {
            return Err("is big-endian, which is not read".to_owned());
        }
        version => return Err(format!("has version {version}; 2 and 3 are read")),
    }
    let num_tensors = reader.entries(24, "tensors")?;
    let num_keys = reader.entries(13, "metadata keys")?;
    let mut metadata = BTreeMap::new();
    for _ in 0..num_keys {
        let key = reader.string(MAX_KEY, "a metadata key")?;
        let kind = reader.u32(&key)?;
        let value = reader.value(kind, &key, MAX_NESTING)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("{key} stands twice"));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(value) => value
            .as_u64()
            .filter(|alignment| (8..=65_536).contains(alignment) && alignment.is_multiple_of(8))
            .ok_or_else(|| {
                format!("general.alignment is {value:?}, not a multiple of 8 up to 65536")
            })?,
    };
    let mut headers = Vec::new();
    for _ in 0..num_tensors {
        headers.push(header(&mut reader)?);
    }
    // An alignment of at most 65536 cannot overflow what fits into memory.
    let data_start = (reader.at as u64).next_multiple_of(alignment);
    let mut tensors = Vec::new();
    for header in headers {
        tensors.push(place(header, data_start, alignment, bytes.len() as u64)?);
    }
    check_overlaps(&tensors)?;
    Ok(Parsed { metadata, tensors })
}

struct Header {
    name: String,
    shape: Vec<usize>,
    dtype: GgmlDType,
    bytes: u64,
    offset: u64,
}

fn header(reader: &mut Reader) -> Result<Header> {
    let name = reader.string(MAX_TENSOR_NAME, "a tensor name")?;
    let num_dims = reader.u32(&name)?;
    if num_dims == 0 || num_dims > MAX_DIMS {
        return Err(format!("tensor {name} has {num_dims} dimensions"));
    }
    let mut shape = Vec::new();
    let mut elements = 1u64;
    for _ in 0..num_dims {
        let dim = reader.u64(&name)?;
        elements = elements
            .checked_mul(dim)
            .filter(|n| *n > 0)
            .ok_or_else(|| format!("tensor {name} has a dimension of {dim}"))?;
        shape.push(
            usize::try_from(dim).map_err(|_| format!("tensor {name} has a dimension of {dim}"))?,
        );
    }
    // The file lists the fastest-varying dimension first.
    shape.reverse();
    let kind = reader.u32(&name)?;
    let dtype =
        dtype(kind).ok_or_else(|| format!("tensor {name} has type {kind}, which is not read"))?;
    let (block, size) = (dtype.block_size() as u64, dtype.type_size() as u64);
    let row = *shape.last().expect("at least one dimension") as u64;
    if !row.is_multiple_of(block) {
        return Err(format!(
            "tensor {name} has rows of {row}, not a multiple of {block}"
        ));
    }
    let bytes = (elements / block)
        .checked_mul(size)
        .ok_or_else(|| format!("tensor {name} is too large"))?;
    let offset = reader.u64(&name)?;
    Ok(Header {
        name,
        shape,
        dtype,
        bytes,
        offset,
    })
}

fn place(header: Header, data_start: u64, alignment: u64, file: u64) -> Result<TensorInfo> {
    let Header {
        name,
        shape,
        dtype,
        bytes,
        offset,
    } = header;
    if !offset.is_multiple_of(alignment) {
        return Err(format!(
            "tensor {name} starts at {offset}, not a multiple of {alignment}"
        ));
    }
    let start = data_start.checked_add(offset);
    let end = start
        .and_then(|start| start.checked_add(bytes))
        .filter(|end| *end <= file);
    match (start, end) {
        (Some(start), Some(end)) => Ok(TensorInfo {
            name,
            shape,
            dtype,
            part: 0,
            start: start as usize,
            end: end as usize,
        }),
        _ => Err(format!(
            "tensor {name} of {bytes} bytes at {offset} reaches beyond the file of {file} bytes"
        )),
    }
}

fn check_overlaps(tensors: &[TensorInfo]) -> Result<()> {
    let mut sorted: Vec<&TensorInfo> = tensors.iter().collect();
    sorted.sort_by_key(|tensor| tensor.start);
    for pair in sorted.windows(2) {
        if pair[0].end > pair[1].start {
            return Err(format!(
                "tensors {} and {} overlap",
                pair[0].name, pair[1].name
            ));
        }
    }
    let mut names: Vec<&str> = tensors.iter().map(|tensor| &*tensor.name).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("tensor {} stands twice", pair[0])),
        None => Ok(()),
    }
}

/// Types that candle dequantises.
fn dtype(kind: u32) -> Option<GgmlDType> {
    Some(match kind {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        15 => GgmlDType::Q8K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}
